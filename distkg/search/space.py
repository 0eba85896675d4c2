"""Search space: which keys of a run vary, and over which values.

A space is a YAML file of keys with a distribution each::

    optimizer.learning_rate: {log_uniform: [1e-4, 1e-1]}
    objective.query_share: {choice: [0.05, 0.1, 0.2]}
    train.batch_size: {int_log_uniform: [128, 2048]}
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from distkg.config import PRESETS, ConfigError, RunConfig, Section, parse_config, preset_file
from distkg.config.run_config import conditions_of, describe_condition, unmet_condition
from distkg.documents import DocumentError, is_regular_file, read_yaml, yaml_of
from distkg.redaction import redact_tree

Value = bool | int | float | str | None
Parameters = dict[str, Value]

SPACES = PRESETS / "spaces"

SPACES_OF_MODELS = {
    "bilinear": ("complex", "cp", "distmult", "quate", "rescal", "simple"),
    "conve": ("conve",),
    "distances": ("hake", "interht", "murp", "pairre", "rotate", "trans", "transe", "triplere"),
    "isometries": ("atth", "refh", "rote", "roth", "rotl"),
    "own_graph": ("compgcn", "nbfnet", "rgcn"),
    "relations": ("trix_relations",),
    "tucker": ("tucker",),
    "ultra": ("motif", "semma", "tofu", "trix", "ultra"),
}
"""Space that comes with distkg → models that it is for; ``hale`` is for runs of HaLE, whatever their scorer."""

INTERVALS = {"uniform": (False, False), "log_uniform": (False, True), "int_uniform": (True, False)}
INTERVALS["int_log_uniform"] = (True, True)
KINDS = ("choice", *INTERVALS)

# Trials are compared with each other, so they share the graph, the evaluation and the machines.
FIXED = {
    "data": "all trials train on one graph",
    "evaluate": "all trials are evaluated in the same way",
    "cluster": "it says where a run is executed, not what it learns",
    "train.workers": "it says where a run is executed, not what it learns",
}

# YAML 1.1 reads numbers without a dot, such as 1e-4, as text.
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
_INSIDE = 0.381966  # relative position inside an interval that gives no round number


class SpaceError(ConfigError):
    """Error of an invalid space; the message names the key, what is wrong and what is allowed."""


@dataclass(frozen=True)
class Choice:
    """Distribution over unordered values."""

    values: tuple[Value, ...]

    def holds(self, value: Value) -> bool:
        return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in self.values)

    def samples(self) -> list[Value]:
        """Return every value."""
        return list(self.values)

    def to_dict(self) -> dict[str, list[Value]]:
        return {"choice": list(self.values)}


@dataclass(frozen=True)
class Interval:
    """Distribution over numbers from ``low`` to ``high``, inclusive; integers if ``whole``, log-uniform if ``log``."""

    low: float
    high: float
    whole: bool
    log: bool

    def holds(self, value: Value) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (not self.whole or value == int(value))

    def samples(self) -> list[Value]:
        """Return both ends, and a value between them that an integer key does not accept by accident."""
        if self.log:
            between = math.exp(math.log(self.low) + _INSIDE * (math.log(self.high) - math.log(self.low)))
        else:
            between = self.low + _INSIDE * (self.high - self.low)
        return [self.low, self.high, round(between) if self.whole else between]

    def to_dict(self) -> dict[str, list[Value]]:
        kind = next(name for name, form in INTERVALS.items() if form == (self.whole, self.log))
        return {kind: [self.low, self.high]}


Distribution = Choice | Interval
Space = dict[str, Distribution]


def space_names() -> list[str]:
    """Return the names of spaces usable as ``preset:NAME``."""
    return sorted(path.stem for path in SPACES.glob("*.yaml"))


def space_of_model(model: str) -> str:
    """Return the name of the space that comes with distkg for a ``model.name``.

    Raises:
        SpaceError: there is none, such as for a scorer of a plug-in.
    """
    for name, models in SPACES_OF_MODELS.items():
        if model in models:
            return name
    raise SpaceError(f"no space comes with distkg for model.name = {model}: give one with --space")


def read_space(source: str) -> Space:
    """Read a space from a YAML file, or one that comes with distkg as ``preset:NAME``.

    Raises:
        SpaceError: there is no such file or preset, it is not YAML or has no keys, a key is not one of a run or must
            not vary, or a distribution is invalid.
    """
    path = preset_file(source, SPACES, "space", SpaceError) or Path(source)
    if not is_regular_file(path):
        raise SpaceError(f"space {source!r} is not a file. Write lines such as {_example()}")
    try:
        tree = read_yaml(path, str(path))
    except DocumentError as error:
        raise SpaceError(str(error)) from None
    return parse_space(tree, str(path))


def parse_space(tree: Any, source: str) -> Space:
    """Return the space of a mapping of keys to distributions; ``source`` names it in errors, as in `read_space`."""
    if not isinstance(tree, dict) or not tree:
        raise SpaceError(f"{source} must map keys of a run to distributions, with lines such as {_example()}")
    if redact_tree(tree) != tree:
        raise SpaceError(
            f"{source} holds the credentials of an address, which trials would record. Remove the credentials"
        )
    space: Space = {}
    for key, form in tree.items():
        where = f"{source}: {key}"
        _check_key(key, where)
        space[key] = _parse_distribution(form, where)
    return space


def space_yaml(space: Space) -> str:
    """Return the space as YAML that `read_space` reads to the same space."""
    tree = {key: distribution.to_dict() for key, distribution in space.items()}
    return yaml_of(tree, sort_keys=False, default_flow_style=None)


def with_parameters(config: RunConfig, parameters: Mapping[str, Value]) -> RunConfig:
    """Return the configuration with dotted keys set; keys that do not act with the values of others are left out.

    Raises:
        ConfigError: a key does not accept its value.
    """
    tree = config.model_dump()
    for dotted, value in parameters.items():
        *path, last = dotted.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return parse_config(tree, f"parameters {describe_parameters(parameters)}", dead_keys_are="dropped")


def parameters_of(config: RunConfig, space: Space) -> Parameters | None:
    """Return the configuration as a point of the space; None if one of its values is outside."""
    parameters: Parameters = {}
    for dotted, distribution in space.items():
        value: Any = config.model_dump()
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, dict | list) or not distribution.holds(value):
            return None
        parameters[dotted] = value
    return parameters


def check_space(space: Space, config: RunConfig, check: Callable[[RunConfig], object], source: str) -> None:
    """Check every choice, and the ends and the inside of every interval, each alone with ``config`` for the rest.

    Args:
        check: raises ConfigError or another ValueError for a configuration that cannot be run.
        source: names the space in errors.

    Raises:
        SpaceError: names a value with which no run can start, with the reason, or a key that acts with no point of the
            space.
    """
    for key in space:
        _check_acts(key, space, config, source)
    for key, value in _single_changes(space):
        try:
            check(with_parameters(config, {key: value}))
        except ValueError as error:
            raise SpaceError(
                f"{source}: {key}: the space offers {describe_value(value)}, with which no run can start. "
                f"Narrow the distribution, or change CONFIG. {error}"
            ) from None


def _check_acts(key: str, space: Space, config: RunConfig, source: str) -> None:
    """Refuse a key that would do nothing, whatever the space chooses for the keys that it depends on."""
    unmet = unmet_condition(key, config.model_dump())
    if unmet is not None and all(unmet_condition(key, each.model_dump()) for each in _offered(key, space, config)):
        raise SpaceError(
            f"{source}: {key}: belongs to {describe_condition(*unmet)}, which neither CONFIG nor the space has, so "
            "that it would do nothing. Leave it out"
        )


def _offered(key: str, space: Space, config: RunConfig) -> Iterator[RunConfig]:
    """Yield the configurations with every choice of the space for the keys on which ``key`` depends."""
    tags = [tag for other in conditions_of(key) if (tag := "model.name" if other == "family" else other) in space]
    for values in product(*(space[tag].samples() for tag in tags)):
        with suppress(ConfigError):  # choices that exclude each other
            yield with_parameters(config, dict(zip(tags, values, strict=True)))


def describe_value(value: Value) -> str:
    """Return a value as in YAML; floats with six digits.

    >>> [describe_value(v) for v in (0.1, 1.23456789e-5, 32, None, True, "cosine")]
    ['0.1', '1.23457e-05', '32', 'null', 'true', 'cosine']
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def describe_parameters(parameters: Mapping[str, Value]) -> str:
    """Return keys and values on one line."""
    return ", ".join(f"{key}={describe_value(value)}" for key, value in parameters.items())


def _single_changes(space: Space) -> Iterator[tuple[str, Value]]:
    for key, distribution in space.items():
        for value in distribution.samples():
            yield key, value


def _example() -> str:
    return "`optimizer.learning_rate: {log_uniform: [1e-4, 1e-1]}`"


def _check_key(key: Any, where: str) -> None:
    path = key.split(".") if isinstance(key, str) else []
    section = RunConfig.model_fields.get(path[0]) if len(path) > 1 else None
    if section is None:
        sections = ", ".join(RunConfig.model_fields)
        raise SpaceError(f"{where}: must be of the form section.key, such as model.dim; sections: {sections}")
    kind = section.annotation
    assert isinstance(kind, type)
    assert issubclass(kind, Section)
    field = kind.model_fields.get(path[1])
    # Below a key that holds a mapping, such as model.options, the scorer defines the names.
    deepest = 3 if field is not None and field.default_factory is dict else 2
    if field is None or len(path) > deepest:
        known = ", ".join(kind.model_fields)
        raise SpaceError(f"{where}: is not a key of {path[0]}; known: {known}")
    for fixed, reason in FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise SpaceError(f"{where}: must not vary: {reason}. Set it in CONFIG.")


def _parse_distribution(form: Any, where: str) -> Distribution:
    if not isinstance(form, dict) or len(form) != 1:
        raise SpaceError(
            f"{where}: must be one distribution, such as {{choice: [32, 64]}}; known distributions: {_kinds()}"
        )
    kind, values = next(iter(form.items()))
    if kind not in KINDS:
        raise SpaceError(f"{where}: {kind!r} is not a distribution; known distributions: {_kinds()}")
    if not isinstance(values, list):
        raise SpaceError(f"{where}: {kind} takes a list in brackets, not {values!r}")
    numbers = [_number(value) for value in values]
    return _choice(numbers, where) if kind == "choice" else _interval(kind, numbers, where)


def _kinds() -> str:
    return ", ".join(KINDS)


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _choice(values: list[Any], where: str) -> Choice:
    if not values:
        raise SpaceError(f"{where}: choice needs at least one value")
    for position, value in enumerate(values):
        if not isinstance(value, bool | int | float | str | None):
            raise SpaceError(
                f"{where}: choice takes numbers, words, true, false and null, not {value!r}. "
                "The options of a scorer have keys of their own, such as model.options.norm."
            )
        if value in values[:position]:
            raise SpaceError(f"{where}: choice lists {describe_value(value)} twice (1, 1.0 and true are equal)")
    return Choice(tuple(values))


def _interval(kind: str, ends: list[Any], where: str) -> Interval:
    whole, log = INTERVALS[kind]
    number_type = int if whole else int | float
    if len(ends) != 2 or not all(isinstance(end, number_type) and not isinstance(end, bool) for end in ends):
        noun = "whole numbers" if whole else "numbers"
        raise SpaceError(f"{where}: {kind} takes two {noun}, [LOW, HIGH], not {ends!r}")
    low, high = ends
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise SpaceError(f"{where}: {kind} must go from a lower to a higher finite number, not [{low}, {high}]")
    if log and low <= 0:
        raise SpaceError(f"{where}: {kind} must begin above 0, not at {low}")
    return Interval(low if whole else float(low), high if whole else float(high), whole, log)
