"""An extension of griffe that makes docstrings safe to read as Markdown.

Three forms that docstrings use mean something else to griffe or in Markdown: doctests, brackets followed by parentheses
(no links), and several arguments in one line (``entities, relations: how many.``).
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_SEVERAL = re.compile(r"^(?P<indent>\s+)(?P<names>\w+(?:, \w+)+): (?P<text>.+)")


def as_markdown(docstring: str) -> str:
    """Put doctests into fenced blocks, give each argument a line of its own, and escape what looks like a link."""
    return _fenced(_one_by_one(docstring))


def _one_by_one(docstring: str) -> str:
    """Repeat a description for each of the arguments that it names."""
    lines, split = docstring.splitlines(), list[str]()
    while lines:
        line = lines.pop(0)
        match = _SEVERAL.match(line)
        if match is None:
            split.append(line)
            continue
        more = []
        while lines and lines[0].startswith(match["indent"] + " "):
            more.append(lines.pop(0))
        for name in match["names"].split(", "):
            split += [f"{match['indent']}{name}: {match['text']}", *more]
    return "\n".join(split)


def _fenced(docstring: str) -> str:
    lines: list[str] = []
    inside = False
    for line in docstring.splitlines():
        begins = line.lstrip().startswith(">>>")
        if begins and not inside:
            lines.append(_indent(line) + "```pycon")
        elif inside and not line.strip():
            lines.append(_indent(lines[-1]) + "```")
        inside = begins or (inside and bool(line.strip()))
        lines.append(line if inside else re.sub(r"\]\((?!https?:)", r"]\\(", line))
    if inside:
        lines.append(_indent(lines[-1]) + "```")
    return "\n".join(lines)


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


class MarkdownDocstrings(Extension):
    """Rewrites the docstring of every object that griffe loads."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring in place."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
