"""Readers of configurations: presets, YAML files, overrides, and errors that name every wrong key."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from distkg.config.errors import ConfigError
from distkg.config.families import FAMILIES, family_of
from distkg.config.fields import Section
from distkg.config.run_config import (
    RunConfig,
    dead_keys,
    describe_condition,
    unmet_condition,
    value_in,
    without_dead_keys,
)
from distkg.config.strict import did_you_mean
from distkg.documents import DocumentError, is_regular_file, parse_document, parse_yaml, read_yaml

PRESETS = Path(__file__).parent.parent / "presets"
CLUSTERS = PRESETS / "clusters"
SHOWN = 20
"""Maximum number of wrong keys that an error lists."""
LONGEST_SHOWN = 120
"""Maximum number of characters of an override that an error shows."""


def preset_names() -> list[str]:
    """Return the names usable as ``preset:NAME``."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(source: str, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file or ``preset:NAME`` and apply ``section.key=value`` overrides in order.

    A key of the file that acts with the file's own settings, but not with an override (such as another
    ``objective.name``), is dropped.

    Raises:
        ConfigError: no such file or preset, not YAML, an unknown key, a value out of bounds, or a key that does not
            act.
    """
    return _with_overrides(read_tree(source), source, overrides or [])


def load_config_content(content: bytes, source: str, overrides: list[str] | None = None) -> RunConfig:
    """Parse the content of a YAML file and apply overrides, as ``load_config``; ``source`` names the file in errors.

    Raises:
        ConfigError: as for ``load_config``.
    """
    return _with_overrides(_sections(lambda: parse_document(content, source), source), source, overrides or [])


def change_config(config: RunConfig, overrides: Sequence[str], source: str) -> RunConfig:
    """Return a configuration with ``section.key=value`` overrides, as ``load_config`` applies them to a file.

    Raises:
        ConfigError: as for ``load_config``; ``source`` names the configuration.
    """
    return _with_overrides(config.model_dump(), source, overrides)


def _with_overrides(tree: dict[str, Any], source: str, overrides: Sequence[str]) -> RunConfig:
    own = {key: value for key, value in tree.items() if isinstance(value, dict)}
    before = set(dead_keys(own, own))
    changed = {_apply(tree, override): override for override in overrides}
    now = dead_keys(tree, tree)
    tree = _without(tree, [key for key in now if key not in before and not _is_set_by(key, changed)])
    return parse_config(tree, source, changed)


def load_written_config(source: str) -> RunConfig:
    """Read a configuration that distkg wrote; keys that do not act, which earlier versions wrote, are ignored.

    Raises:
        ConfigError: as for ``load_config``.
    """
    return parse_config(read_tree(source), source, dead_keys_are="dropped")


def parse_config(
    tree: dict[str, Any],
    source: str,
    overrides: Mapping[str, str] | None = None,
    *,
    dead_keys_are: Literal["refused", "dropped"] = "refused",
) -> RunConfig:
    """Validate a nested dict.

    Args:
        source: name of the file or preset in errors.
        overrides: dotted keys that an override has set → the override, which errors of these keys name instead.
        dead_keys_are: treatment of keys that do not act with the other settings.

    Raises:
        ConfigError: names every key that is wrong.
    """
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, source, overrides or {})) from None
    dead = dead_keys(tree, tree)
    if dead and dead_keys_are == "refused":
        lines = [f"{_origin(key.split('.'), source, overrides or {})}: {_explain_dead(key, tree)}" for key in dead]
        raise ConfigError(_listed(lines, source))
    return RunConfig.model_validate(without_dead_keys(tree, tree)) if dead else config


def _explain_dead(key: str, tree: Mapping[str, Any]) -> str:
    unmet = unmet_condition(key, tree)
    assert unmet is not None
    other, values = unmet
    belongs = f"{key}: belongs to {describe_condition(other, values)}"
    if other == "family":
        name = value_in(tree, "model.name")
        return f"{belongs}; model.name {name} is one of the {FAMILIES[family_of(str(name))]}. Leave the key out"
    value = json.dumps(value_in(tree, other), default=str)
    return f"{belongs}; {other} is {value} here, so it would do nothing. Leave the key out, or set {other}"


def _is_set_by(key: str, overrides: Mapping[str, str]) -> bool:
    """Return whether an override has set a dotted key, or a part of its value."""
    return any(dotted == key or dotted.startswith(f"{key}.") for dotted in overrides)


def _without(tree: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    for key in keys:
        *path, last = key.split(".")
        node = tree
        for name in path:
            node = node[name]
        del node[last]
    return tree


def preset_file(source: str, folder: Path, kind: str, error: type[ConfigError]) -> Path | None:
    """Return the file of ``preset:NAME`` in a folder of presets; None if ``source`` is the path of another file.

    Raises:
        ConfigError: no preset of that name.
    """
    if not source.startswith("preset:"):
        return None
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    name = source.removeprefix("preset:")
    if name not in known:
        raise error(f"there is no {kind} {source!r}. Known: {', '.join(known)}{did_you_mean(name, known)}")
    return folder / f"{name}.yaml"


def read_tree(source: str) -> dict[str, Any]:
    """Read the sections of a YAML file or of ``preset:NAME``.

    Raises:
        ConfigError: no such file or preset, or not YAML with sections.
    """
    path = preset_file(source, PRESETS, "preset", ConfigError) or Path(source)
    if not is_regular_file(path):
        raise ConfigError(f"configuration {source!r} is not a file. Write a YAML file or name a preset: preset:NAME.")
    return _sections(lambda: read_yaml(path, source), source)


def _sections(read: Callable[[], Any], source: str) -> dict[str, Any]:
    try:
        tree = read()
    except DocumentError as error:
        raise ConfigError(str(error)) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{source} must hold sections such as `model:`; it holds {_kind_of(tree)}")
    return tree


def _apply(tree: dict[str, Any], override: str) -> str:
    """Set the key of ``section.key=value`` and return it."""
    dotted, separator, text = override.partition("=")
    keys = dotted.split(".")
    if not separator or len(keys) < 2:
        raise ConfigError(f"override {_shown(override)} must read section.key=value, such as model.dim=128")
    if not text.strip():
        raise ConfigError(f"override {_shown(override)} has no value; write {dotted}='' for an empty text, or null")
    node = tree
    for key in keys[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise ConfigError(f"override {_shown(override)}: {key!r} is a value, not a section")
    try:
        node[keys[-1]] = parse_yaml(text, f"override {_shown(override)}")
    except DocumentError as error:
        raise ConfigError(f"{error}. Quote the whole override for the shell: --set '{dotted}=…'") from None
    return dotted


def _shown(override: str) -> str:
    return repr(override if len(override) <= LONGEST_SHOWN else f"{override[:LONGEST_SHOWN]}…")


def _kind_of(value: Any) -> str:
    names: dict[type, str] = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


def _explain(error: ValidationError, source: str, overrides: Mapping[str, str]) -> str:
    lines = [_explain_one([str(part) for part in each["loc"]], each, source, overrides) for each in error.errors()]
    return _listed(lines, source)


def _listed(lines: Sequence[str], source: str) -> str:
    """Return the first messages, and the number of the others."""
    more = [f"{source}: {len(lines) - SHOWN:,} further keys are wrong"] if len(lines) > SHOWN else []
    return "\n".join([*lines[:SHOWN], *more])


def _explain_one(location: list[str], problem: Mapping[str, Any], source: str, overrides: Mapping[str, str]) -> str:
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        message = f"is not a key of {'.'.join(location[:-1]) or 'the configuration'}; known: {', '.join(known)}"
        message += did_you_mean(location[-1], known)
    elif problem["type"] == "string_type":
        message += f", not {_kind_of(problem['input'])}; put it in quotes if it is text"
    return f"{_origin(location, source, overrides)}: {'.'.join(location)}: {message}"


def _origin(location: list[str], source: str, overrides: Mapping[str, str]) -> str:
    """Return the override that has set a key or a part of its value; else the file."""
    for dotted, override in overrides.items():
        if all(one == other for one, other in zip(dotted.split("."), location, strict=False)):
            return f"override {_shown(override)}"
    return source


def _known_keys(path: list[str]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for key in path:
        kind = section.model_fields[key].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        section = kind
    return list(section.model_fields)
