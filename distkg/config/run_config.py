"""Configuration of a run: a union of variants, tagged by ``model.name`` (the family) and ``objective.name``.

All variants share one class; every key declares with which settings it acts. A key that does not act is refused when a
configuration is read (`distkg.config.loading`), and is not written, printed or hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from distkg.config.families import FAMILIES, FamilyName, family_of
from distkg.config.fields import Conditions, Resume, Section, section
from distkg.config.sections import (
    BUILT_IN,
    EMBEDDING,
    SAMPLED,
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    NegativesConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RegularizerConfig,
    TrainConfig,
)
from distkg.documents import yaml_of
from distkg.printable import printable_lines
from distkg.redaction import is_remote, redact_tree

DRAWS_NEGATIVES: Conditions = {"family": ("embedding", "foundation"), "objective.name": SAMPLED}


class RunConfig(Section):
    """Configuration of a run."""

    data: DataConfig = section(DataConfig, "Training graph.")
    model: ModelConfig = section(ModelConfig, "Model and its initial weights.")
    objective: ObjectiveConfig = section(ObjectiveConfig, "Training objective.")
    regularizer: RegularizerConfig = section(RegularizerConfig, "Norm penalty on vectors.", EMBEDDING)
    negatives: NegativesConfig = section(NegativesConfig, "Negative sampling.", DRAWS_NEGATIVES)
    optimizer: OptimizerConfig = section(OptimizerConfig, "Optimizer and learning rate.")
    train: TrainConfig = section(TrainConfig, "Workers, epochs, batches and precision of training.")
    evaluate: EvaluateConfig = section(EvaluateConfig, "Exact filtered ranking.")
    checkpoint: CheckpointConfig = section(CheckpointConfig, "Checkpoints.")
    cluster: ClusterConfig = section(ClusterConfig, "Ray cluster, resources of workers, and faults.")

    @model_serializer(mode="wrap")
    def _acting_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        return without_dead_keys(tree, tree)

    def to_yaml(self, *, help_text: bool = False, ascii_only: bool = False) -> str:
        """Return YAML with every key that acts; addresses are written without secrets.

        Args:
            help_text: put each key's help above it as a comment.
            ascii_only: escape all other characters of values.
        """
        shown = self.redacted()
        if not help_text:
            return _yaml(shown.model_dump(), ascii_only, sort_keys=False)
        return "\n".join(_documented(shown.model_dump(), RunConfig, 0, ascii_only)) + "\n"

    def redacted(self) -> RunConfig:
        """Return a copy without the secrets of addresses, for files and output."""
        return RunConfig.model_validate(redact_tree(self.model_dump()))

    @property
    def private(self) -> bool:
        """True if the run reads remote addresses; its files are then readable by their owner only."""
        addresses = [self.data.store, *self.data.graphs, self.model.start, self.negatives.vectors]
        return any(map(is_remote, addresses))

    def sha256(self) -> str:
        """Return the hash of the resolved configuration, as written to result.json."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()


def flatten(config: RunConfig) -> dict[str, Any]:
    """Return the acting values by dotted key, such as model.dim; options have a key each."""
    return flatten_tree(config.model_dump())


def flatten_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested mappings by dotted key, as ``flatten``; they need not be a valid configuration.

    >>> flatten_tree({"model": {"dim": 8, "options": {"norm": "l1"}}, "negatives": {"options": {}}})
    {'model.dim': 8, 'model.options.norm': 'l1'}
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            values |= {f"{key}.{below}": each for below, each in flatten_tree(value).items()}
        else:
            values[key] = value
    return values


def resume_class(key: str) -> Resume | None:
    """Return the ``Resume`` class of a dotted key; None if there is no such key."""
    names = key.split(".")
    for end in range(len(names), 0, -1):  # an option has the class of its section's options
        field = _fields().get(".".join(names[:end]))
        if field is not None:
            return field["resume"] if end == len(names) or field["default"] == {} else None
    return None


def default_values() -> dict[str, Any]:
    """Return the default of every key of every variant, by dotted key."""
    return {key: field["default"] for key, field in _fields().items()}


def conditions_of(key: str) -> Conditions:
    """Return the settings with which a dotted key and its sections act; empty if it always acts."""
    conditions: dict[str, tuple[Any, ...]] = {}
    kind: type[BaseModel] = RunConfig
    for name in key.split("."):
        field = kind.model_fields.get(name)
        if field is None:
            break  # an option of a registered class
        extra = field.json_schema_extra
        if isinstance(extra, dict):
            own: Any = extra.get("acts_with", {})
            conditions |= {other: tuple(values) for other, values in own.items()}
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            break
        kind = field.annotation
    return conditions


def unmet_condition(key: str, tree: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]] | None:
    """Return the first condition of a dotted key that a configuration, or a part of one, does not meet; None if it
    meets all."""
    for other, values in conditions_of(key).items():
        if not _is_met(other, values, tree):
            return other, values
    return None


def _is_met(key: str, values: tuple[Any, ...], tree: Mapping[str, Any]) -> bool:
    if key == "family":
        return family_of(str(value_in(tree, "model.name"))) in values
    value = value_in(tree, key)
    if key == "objective.name":
        return value in values or value not in BUILT_IN
    return unmet_condition(key, tree) is None and (value in values if values else bool(value))


def exists_in(family: FamilyName, key: str) -> bool:
    """Return True if a dotted key acts with some configuration of a family of models."""
    return all(
        family in values if other == "family" else exists_in(family, other)
        for other, values in conditions_of(key).items()
    )


def value_in(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key in nested mappings, else its default."""
    node: Any = tree
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return _fields()[key]["default"] if node is None else node


def describe_condition(key: str, values: tuple[Any, ...]) -> str:
    """Format a condition for a message.

    >>> describe_condition("objective.name", ("margin", "self_adversarial"))
    'objective.name: margin or self_adversarial'
    >>> describe_condition("negatives.pool.actors", ())
    'a run with negatives.pool.actors'
    """
    if key == "family":
        return " and ".join(FAMILIES[name] for name in values)
    if not values:
        return f"a run with {key}"
    *others, last = map(str, values)
    return f"{key}: {', '.join(others)} or {last}" if others else f"{key}: {last}"


def dead_keys(tree: Mapping[str, Any], whole: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys of a part of a configuration that do not act in the whole."""
    return list(_dead(tree, whole, ""))


def _dead(tree: Mapping[str, Any], whole: Mapping[str, Any], above: str) -> Iterator[str]:
    for name, value in tree.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping) and key not in _fields():
            yield from _dead(value, whole, f"{key}.")
        elif unmet_condition(key, whole) is not None:
            yield key


def without_dead_keys(tree: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested mappings without the keys that do not act in the whole, and without sections that hold
    only such keys."""
    dead = set(dead_keys(tree, whole))

    def copy(node: Mapping[str, Any], above: str) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, value in node.items():
            key = f"{above}{name}"
            if isinstance(value, Mapping) and key not in _fields():
                below = copy(value, f"{key}.")
                if below or not value:
                    kept[name] = below
            elif key not in dead:
                kept[name] = value
        return kept

    return copy(tree, "")


@cache
def _fields() -> dict[str, dict[str, Any]]:
    """Return the resume class and the default of every key, by dotted key."""
    fields: dict[str, dict[str, Any]] = {}

    def visit(kind: type[Section], above: str) -> None:
        for name, field in kind.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                visit(field.annotation, f"{above}{name}.")
                continue
            extra = field.json_schema_extra
            resume = extra.get("resume") if isinstance(extra, dict) else None
            fields[f"{above}{name}"] = {"resume": resume, "default": field.get_default(call_default_factory=True)}

    visit(RunConfig, "")
    return fields


def _yaml(value: Any, ascii_only: bool = False, **options: Any) -> str:
    """Return printable YAML of a value: non-ASCII letters are escaped only if it holds unprintable characters."""
    text = yaml_of(value, ascii_only=ascii_only, **options)
    return text if printable_lines(text) == text else yaml_of(value, ascii_only=True, **options)


def _documented(tree: Mapping[str, Any], kind: type[BaseModel], indent: int, ascii_only: bool) -> list[str]:
    """Return the YAML lines of a section, with help above each key."""
    pad, lines = "  " * indent, []
    for key, value in tree.items():
        field = kind.model_fields[key]
        lines.append(f"{pad}# {field.description}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            lines.append(f"{pad}{key}:")
            lines.extend(_documented(value, field.annotation, indent + 1, ascii_only))
        else:
            text = _yaml(value, ascii_only, default_flow_style=True, width=1000)
            lines.append(f"{pad}{key}: " + text.removesuffix("...\n").strip())
    return lines
