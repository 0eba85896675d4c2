"""Cells of Markdown tables, as Python-Markdown reads them on the site and GitHub reads them in the guides."""

from __future__ import annotations

import re

_CODE = re.compile(r"(`[^`]*`)")


def cell(text: str) -> str:
    """Return a text as one cell: in one line, with pipes and angle brackets escaped outside of code."""
    parts = _CODE.split(" ".join(text.split()))
    return "".join(
        part if part.startswith("`") and len(part) > 1 else part.replace("|", "\\|").replace("<", "&lt;")
        for part in parts
    )


def unescape_pipes(markdown: str) -> str:
    """Take the backslash from pipes in the code of table rows: GitHub needs it there, Python-Markdown shows it."""
    lines = markdown.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|"):
            lines[number] = _CODE.sub(lambda match: match[0].replace("\\|", "|"), line)
    return "\n".join(lines) + "\n"
