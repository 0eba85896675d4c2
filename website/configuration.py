"""The configuration reference, made from the JSON Schema of a run's configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from website.tables import cell

Node = Mapping[str, Any]

INTRODUCTION = """# Configuration

A configuration is a YAML file. Every key has a default, and a file sets only the keys that differ from it. `--set
section.key=value` sets a key on the command line. `distkg config preset:NAME` prints a preset with the meaning of every
key, and `distkg config --schema` prints the JSON Schema from which this page is made.

The column *On resume* says what `distkg train --resume` does when a key differs from the run's record: `fixed` refuses,
`course` asks for `--accept-changes`, `free` accepts ([rules](../operations.md#what-a-resumed-run-may-change)).
"""
_NAMED = 4
"""A family with at most so many models is labelled by their names."""


@dataclass(frozen=True)
class Variant:
    """One alternative of a tagged union, or one key of it.

    Attributes:
        label: the models that it is for; empty for all.
        node: its schema.
        required: whether a configuration must set it.
    """

    label: str
    node: Node
    required: bool = False


class Schema:
    """A JSON Schema with its definitions, and the few questions that the reference asks."""

    def __init__(self, root: Node) -> None:
        self._root = root

    def resolve(self, node: Node) -> dict[str, Any]:
        """Follow references and merge ``allOf``; keys beside a reference replace those of its definition."""
        merged: dict[str, Any] = {}
        if "$ref" in node:
            place: Any = self._root
            for name in str(node["$ref"]).removeprefix("#/").split("/"):
                place = place[name]
            merged.update(self.resolve(place))
        for part in node.get("allOf", ()):
            other = self.resolve(part)
            properties = {**merged.get("properties", {}), **other.get("properties", {})}
            merged.update({**other, "properties": properties} if properties else other)
        own = {key: value for key, value in node.items() if key not in ("$ref", "allOf")}
        if "properties" in own and "properties" in merged:
            own["properties"] = {**merged["properties"], **own["properties"]}
        return {**merged, **own}

    def variants(self, node: Node) -> list[Variant]:
        """Return the object shapes that a node may have: several for a union, one for an object, none for a value."""
        resolved = self.resolve(node)
        raw = resolved.get("oneOf") or resolved.get("anyOf") or []
        mapping = resolved.get("discriminator", {}).get("mapping", {})
        shapes = []
        for alternative in raw:
            names = [name for name, reference in mapping.items() if reference == alternative.get("$ref")]
            for inner in self.variants(alternative):
                label = inner.label or self._label(names, inner.node, resolved)
                shapes.append(Variant(label, inner.node))
        if shapes:
            return shapes if len(shapes) > 1 else [Variant("", shapes[0].node)]
        return [Variant("", resolved)] if resolved.get("properties") else []

    def _label(self, names: list[str], node: Node, union: Node) -> str:
        tag = union.get("discriminator", {}).get("propertyName", "")
        told = self.resolve(node["properties"].get(tag, {})) if tag else {}
        names = names or [str(name) for name in told.get("enum", [told["const"]] if "const" in told else [])]
        if 0 < len(names) <= _NAMED:
            return ", ".join(names)
        title = str(node.get("title", ""))
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", title.removesuffix("Config").removesuffix("Run")).lower() or "other"

    def kind(self, node: Node) -> str:
        """Return the type of a value with its bounds, as one phrase of Markdown."""
        node = self.resolve(node)
        for union in ("anyOf", "oneOf"):
            if union in node:
                return " or ".join(dict.fromkeys(self.kind(alternative) for alternative in node[union]))
        if "const" in node:
            return f"`{_value(node['const'])}`"
        if "enum" in node:
            return " or ".join(f"`{_value(value)}`" for value in node["enum"])
        name = node.get("type", "any value")
        if isinstance(name, list):
            return " or ".join(name)
        if name == "array":
            inner = self.kind(node["items"]) if node.get("items") else ""
            plural = re.sub(r"^(string|integer|number)", r"\1s", inner)
            return f"list of {plural}" if inner else "list"
        words = {"object": "mapping", "null": "`null`", "boolean": "`true` or `false`"}.get(name, name)
        return " ".join([words, *_bounds(node)])


def _bounds(node: Node) -> list[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {_value(node[key])}" for key, sign in signs.items() if key in node]
    if "pattern" in node:
        found.append(f"matching `{node['pattern']}`")
    return [", ".join(found)] if found else []


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value or "''"
    return json.dumps(value, ensure_ascii=False)


def _default(node: Node, *, required: bool) -> str:
    if "default" in node:
        return f"`{_value(node['default'])}`"
    return "required" if required else {"array": "`[]`", "object": "`{}`"}.get(str(node.get("type")), "")


def _shapes_by_section(schema: Schema, root: Node) -> dict[str, list[Variant]]:
    """Group the root's properties by name, over all of its variants."""
    sections: dict[str, list[Variant]] = {}
    for shape in schema.variants(root):
        for name, node in shape.node["properties"].items():
            sections.setdefault(name, []).append(Variant(shape.label, node))
    return sections


def _grouped(shapes: list[Variant]) -> dict[str, list[Variant]]:
    """Group the keys of several object shapes: key → its different definitions, each with the labels that have it."""
    keys: dict[str, dict[str, tuple[Variant, list[str]]]] = {}
    for shape in shapes:
        for key, node in shape.node["properties"].items():
            variant = Variant("", node, key in shape.node.get("required", ()))
            same = keys.setdefault(key, {}).setdefault(json.dumps(node, sort_keys=True), (variant, []))
            same[1].append(shape.label)
    everywhere = list(dict.fromkeys(shape.label for shape in shapes))
    grouped: dict[str, list[Variant]] = {}
    for key, different in keys.items():
        for variant, labels in different.values():
            told = list(dict.fromkeys(labels))
            label = "" if told == everywhere else ", ".join(told)
            grouped.setdefault(key, []).append(Variant(label, variant.node, variant.required))
    return grouped


def _condition(node: Node) -> str:
    """Return the sentence that says with which other settings a key acts, from the schema's ``acts_with``."""
    told = [
        f"`{key}` {' or '.join(f'`{value}`' for value in values)}" if values else f"`{key}` set"
        for key, values in node.get("acts_with", {}).items()
        if key != "family"  # the column of models says it
    ]
    return f"Acts with {' and '.join(told)}." if told else ""


def _section(schema: Schema, name: str, candidates: list[Variant], level: int, families: list[str]) -> list[str]:
    shapes = [
        Variant(", ".join(filter(None, (candidate.label, inner.label))), inner.node)
        for candidate in candidates
        for inner in schema.variants(candidate.node)
    ]
    first = schema.resolve(candidates[0].node)
    labels = list(dict.fromkeys(candidate.label for candidate in candidates))
    only = f"Only for {' and '.join(labels)}." if all(labels) and labels != families else ""
    sentences = [first.get("description", ""), only, _condition(first)]
    lines = [f"{'#' * level} {name}", "", " ".join(filter(None, sentences)), ""]
    keys = _grouped(shapes)
    by_family = any(variant.label for variants in keys.values() for variant in variants)
    headings = ["Key", *(["Models"] if by_family else []), "Value", "Default", "On resume", "Meaning"]
    rows, nested = [], {}
    for key, variants in keys.items():
        if all(schema.variants(variant.node) for variant in variants):
            nested[f"{name}.{key}"] = variants
            continue
        for number, variant in enumerate(variants):
            node = schema.resolve(variant.node)
            anchor = f"{{ #{name}.{key} }}" if number == 0 else ""
            default = _default(node, required=variant.required)
            cells = [f"`{key}`{anchor}", *([variant.label or "all"] if by_family else []), schema.kind(node), default]
            meaning = " ".join(filter(None, (str(node.get("description", "")), _condition(node))))
            rows.append([*cells, str(node.get("resume", "")), meaning])
    if rows:
        lines += ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
        lines += ["| " + " | ".join(cell(text) for text in row) + " |" for row in rows]
    lines.append("")
    for inner, variants in nested.items():
        lines += _section(schema, inner, variants, min(level + 1, 6), families)
    return lines


def configuration_page(root: Node) -> str:
    """Return the reference of every section and key, as Markdown.

    Args:
        root: the JSON Schema, as ``distkg config --schema`` prints it.
    """
    schema = Schema(root)
    lines = [INTRODUCTION]
    families = [shape.label for shape in schema.variants(root)]
    for name, candidates in _shapes_by_section(schema, root).items():
        if any(schema.variants(candidate.node) for candidate in candidates):
            lines += _section(schema, name, candidates, 2, families)
    return "\n".join(lines)
