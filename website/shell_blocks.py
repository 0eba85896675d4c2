"""Shell blocks of the guides, and the marks that say which of them a test runs.

A mark is a comment in the line above a block, invisible on GitHub and a line of text on the site::

    <!-- tested: tests/documentation/test_readme.py::test_the_five_minutes_run_as_printed -->
    <!-- not tested: needs a cluster -->
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SHELL = ("bash", "console", "sh", "shell")
_MARK = re.compile(r"^(?P<indent>\s*)<!-- (?P<state>tested|not tested): (?P<text>.+?) -->\s*$")
_OPENING = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})(?P<language>[\w-]*)")


@dataclass(frozen=True)
class Mark:
    """What a document says about the testing of a block: the test's address, or why there is none."""

    tested: bool
    text: str


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: of its opening fence, counted from 1.
        language: after the fence; empty where there is none.
        code: between the fences, without their indentation.
        mark: in the line above; None where there is none.
    """

    line: int
    language: str
    code: str
    mark: Mark | None


def read_mark(line: str) -> Mark | None:
    """Return the mark that a line holds; None where it holds none."""
    match = _MARK.match(line)
    return Mark(match["state"] == "tested", match["text"]) if match else None


def blocks(markdown: str) -> list[Block]:
    """Return every fenced block of a document, in order."""
    found, lines = [], markdown.splitlines()
    start = 0
    while start < len(lines):
        opening = _OPENING.match(lines[start])
        if not opening:
            start += 1
            continue
        end = start + 1
        while end < len(lines) and lines[end].strip() != opening["fence"]:
            end += 1
        code = "\n".join(line.removeprefix(opening["indent"]) for line in lines[start + 1 : end])
        above = read_mark(lines[start - 1]) if start else None
        found.append(Block(start + 1, opening["language"], code, above))
        start = end + 1
    return found


def commands(code: str) -> list[str]:
    """Return the commands of a shell block: continued lines joined, comments and prompts left out."""
    joined = re.sub(r"\s*\\\n\s*", " ", code)
    lines = [re.sub(r"(^|\s)#\s.*$", "", line).strip().removeprefix("$ ") for line in joined.splitlines()]
    return [line for line in lines if line]


def show_marks(markdown: str) -> str:
    """Turn marks into lines that readers of the site see above their blocks."""
    shown = []
    for line in markdown.splitlines():
        match, mark = _MARK.match(line), read_mark(line)
        if match is None or mark is None:
            shown.append(line)
            continue
        kind, said = ("tested", f"`{mark.text}`") if mark.tested else ("untested", mark.text)
        label = "tested by" if mark.tested else "not tested:"
        shown += [f"{match['indent']}{label} {said}", f"{match['indent']}{{ .shell-mark .{kind} }}", ""]
    return "\n".join(shown) + "\n"
