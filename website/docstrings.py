"""An extension of griffe that makes docstrings safe to read as Markdown.

Two forms that docstrings use mean something else in Markdown: doctests, and brackets followed by parentheses, which
look like links.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


def as_markdown(docstring: str) -> str:
    """Put doctests into fenced blocks, and escape what looks like a link."""
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
