"""Strict YAML parser for files of users, with limits of size and depth (for JSON see ``distkg.strict_json``).

YAML is read as version 1.1 without its pitfalls: ``no`` and ``on`` are text (boolean keys accept both), dates are text,
``1e-3`` is a number, and a repeated key is an error, as is a number that YAML 1.1 and 1.2 read differently (``010``,
``1:30``). Anchors, aliases and merge keys work; their expansion is limited.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

MAX_BYTES = 1 << 18
MAX_DEPTH = 32
MAX_VALUES = 100_000

_TAG = "tag:yaml.org,2002:"
_MERGE, _AMBIGUOUS = f"{_TAG}merge", "!ambiguous"
_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}
_LINE_BREAKS = re.compile("[\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class DocumentError(ValueError):
    """A YAML text is invalid; the message names the file and line and says what to do."""


def is_regular_file(path: Path) -> bool:
    """Return ``Path.is_file()``, and False for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_yaml(path: Path, name: str) -> Any:
    """Read a YAML file of at most 256 KiB of UTF-8, with or without a byte order mark; None if it is empty.

    Args:
        name: name of the file in errors.

    Raises:
        DocumentError: another encoding, not YAML, or an ambiguous value; names file and line.
        OSError: the file cannot be read.
    """
    if not is_regular_file(path):
        raise DocumentError(f"{name} is not a regular file")
    with path.open("rb") as file:
        return parse_document(file.read(MAX_BYTES + 1), name)


def parse_document(content: bytes, name: str) -> Any:
    """Parse the content of a YAML file, of which the first ``MAX_BYTES + 1`` bytes are enough; as ``read_yaml``."""
    if len(content) > MAX_BYTES:
        raise DocumentError(
            f"{name} is larger than {MAX_BYTES >> 10} KiB, the limit of YAML files. Check that it is the right file"
        )
    return parse_yaml(_decoded(content, name), name)


def parse_yaml(text: str, name: str) -> Any:
    """Parse a YAML text; ``name`` is the name of its source in errors.

    Raises:
        DocumentError: as ``read_yaml``.
    """
    try:
        return _Reader(text).value()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = " ".join(filter(None, (error.context, error.problem)))
        hint = "; indent with spaces" if "'\\t'" in problem else ""
        raise _not_yaml(name, text, line, f"{problem}{hint}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _not_yaml(name, text, line, f"it holds the control character U+{_code(error):04X}") from None


def yaml_of(value: Any, *, ascii_only: bool = False, **options: Any) -> str:
    """Dump a value as YAML that ``parse_yaml`` reads back as the same value; options are those of ``yaml.dump``."""
    text: str = yaml.dump(value, Dumper=_Writer, allow_unicode=not ascii_only, **options)
    if not ascii_only and _LINE_BREAKS.search(text):  # unescaped, they would be folded into spaces
        return yaml_of(value, ascii_only=True, **options)
    return text


def _not_yaml(name: str, text: str, line: int, problem: str) -> DocumentError:
    where = f"line {line}: " if "\n" in text.rstrip() else ""
    return DocumentError(f"{name} is not valid YAML: {where}{problem}")


def _decoded(content: bytes, name: str) -> str:
    encoding = next((known for mark, known in _ENCODINGS.items() if content.startswith(mark)), None)
    if encoding is None and b"\0" in content:
        encoding = "UTF-16 without a byte order mark, or not text"
    if encoding is not None:
        raise DocumentError(f"{name}: the file is {encoding}. Save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError(
            f"{name}:{line}: byte 0x{content[error.start]:02x} is not UTF-8 (the file may be Latin-1 or Windows-1252). "
            "Save it as UTF-8"
        ) from None


def _code(error: yaml.reader.ReaderError) -> int:
    character: int | str = error.character
    return ord(character) if isinstance(character, str) else character


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


class _Reader(yaml.SafeLoader):
    """Parser of one document to dict, list, str, int, float, bool and None; aliases become copies."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0

    def value(self) -> Any:
        try:
            root = self.get_single_node()
            return None if root is None else self._value(root)
        finally:
            self.dispose()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            event = self.peek_event()
            problem = f"values are nested more than {MAX_DEPTH} deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def _value(self, node: yaml.Node, depth: int = 0) -> Any:
        self._values += 1
        if self._values > MAX_VALUES or depth > MAX_DEPTH:
            raise _error(f"it has more than {MAX_VALUES:,} values, or an alias (*name) that contains itself", node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self._value(child, depth + 1) for child in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, depth + 1)
        raise _error(f"the tag {_tag_of(node)} is not allowed; write plain values", node)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        mapping: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            line = key_node.start_mark.line + 1
            if key in lines:
                raise _error(f"the key {key!r} is given twice, first in line {lines[key]}; keep one", key_node)
            lines[key] = line
            if key_node.tag == _MERGE:
                merged = self._merged(value_node, depth)
            else:
                mapping[key] = self._value(value_node, depth)
        return {**merged, **mapping}

    def _merged(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        """Return the merged keys of the mapping, or mappings, of ``<<``; the first of several wins."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for each in nodes:
            if not isinstance(each, yaml.MappingNode):
                raise _error("the merge key << takes a mapping or a list of mappings", each)
            merged = {**self._value(each, depth), **merged}
        return merged

    def _key(self, node: yaml.Node) -> str:
        """Return a key as text, even if it looks like a number."""
        if not isinstance(node, yaml.ScalarNode):
            raise _error("a key must be a word, not a list or a mapping", node)
        return _checked_text(node)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        if node.tag == _AMBIGUOUS:
            raise _error(
                f"{text} is read differently by versions of YAML. Write a plain number (without leading zeros or "
                "colons), or put it in quotes if it is text",
                node,
            )
        kind = node.tag.removeprefix(_TAG)
        try:
            if kind == "str":
                return _checked_text(node)
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text.replace("_", ""), 0)
            if kind == "float":
                return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError):
            shown = text if len(text) <= 40 else f"{text[:40]}…"
            raise _error(f"{shown} cannot be read as {kind}", node) from None
        raise _error(f"the tag {_tag_of(node)} is not allowed; write plain values", node)


def _tag_of(node: yaml.Node) -> str:
    return f"!!{node.tag.removeprefix(_TAG)}" if node.tag.startswith(_TAG) else str(node.tag)


def _checked_text(node: yaml.ScalarNode) -> str:
    text: str = node.value
    control = _CONTROL.search(text)
    if control:
        raise _error(f"a text holds the control character U+{ord(control.group()):04X}, which is not allowed", node)
    return text


class _Writer(yaml.SafeDumper):
    """Writer that quotes all text that ``_Reader`` would read as a number, including what YAML 1.1 would not."""


for _kind, _pattern, _first in (
    (_TAG + "bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    (_TAG + "null", r"(?:~|null|Null|NULL|)", "~nN\0"),
    (_TAG + "merge", r"<<", "<"),
    (_AMBIGUOUS, r"[-+]?(?:0[0-9_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)", "-+0123456789"),
    (_TAG + "int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)", "-+0123456789"),
    (
        _TAG + "float",
        r"[-+]?(?:(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+|[0-9][0-9_]*\.[0-9]*|\.[0-9]+|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _characters = [character if character != "\0" else "" for character in _first]
    _Reader.add_implicit_resolver(_kind, re.compile(f"^(?:{_pattern})$"), _characters)
    if _kind.endswith(("int", "float")):
        _Writer.add_implicit_resolver(_kind, re.compile(f"^(?:{_pattern})$"), _characters)
