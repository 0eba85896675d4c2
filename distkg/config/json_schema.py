"""JSON Schema of configuration files: one variant for each family of models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distkg.config.families import FAMILIES, FAMILY_OF_MODEL, FamilyName
from distkg.config.fields import Section
from distkg.config.run_config import RunConfig, exists_in


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of configuration files, from which editors complete keys and check values.

    ``oneOf`` has a variant for each family, distinguished by ``model.name``. Each key has ``resume``, whether it may
    differ when a run is resumed (`distkg.config.fields.Resume`), and ``acts_with``, the settings with which it acts.
    """
    definitions: dict[str, Any] = {}
    for family in FAMILIES:
        definitions |= _variant(family)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "distkg configuration",
        "oneOf": [{"$ref": f"#/$defs/{family}"} for family in FAMILIES],
        "$defs": definitions,
    }


def _variant(family: FamilyName) -> dict[str, Any]:
    """Return the definitions of a family's sections, as ``family.Section``, and of its configuration, as ``family``."""
    schema = RunConfig.model_json_schema()
    sections = schema.pop("$defs")
    for kind, above in _sections(RunConfig, ""):
        properties = (schema if kind is RunConfig else sections[kind.__name__])["properties"]
        for key in [key for key in properties if not exists_in(family, f"{above}{key}")]:
            del properties[key]
    own = sorted(name for name, kind in FAMILY_OF_MODEL.items() if kind == family)
    name = sections["ModelConfig"]["properties"]["name"]
    if own:
        name["enum"] = own
        del name["default"]
        sections["ModelConfig"]["required"] = ["name"]
        schema["required"] = ["model"]
    else:
        name["not"] = {"enum": sorted(FAMILY_OF_MODEL)}
    schema |= {"title": FAMILIES[family]}
    definitions = {family: schema} | {f"{family}.{key}": definition for key, definition in sections.items()}
    renamed: dict[str, Any] = _renamed(definitions, family)
    return renamed


def _sections(kind: type[Section], above: str) -> Iterator[tuple[type[Section], str]]:
    """Yield a section and those in it, each with the start of its dotted keys."""
    yield kind, above
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _sections(field.annotation, f"{above}{name}.")


def _renamed(node: Any, family: FamilyName) -> Any:
    """Return a copy with references to the sections of the family."""
    if isinstance(node, dict):
        return {
            key: f"#/$defs/{family}.{value.removeprefix('#/$defs/')}" if key == "$ref" else _renamed(value, family)
            for key, value in node.items()
        }
    return [_renamed(each, family) for each in node] if isinstance(node, list) else node
