"""Escaping of text for display: control, bidirectional and invisible characters become escapes such as ``\\x1b``.

Labels, paths and messages of libraries are data. Unescaped, an escape sequence moves the cursor of a terminal, a
newline forges a line of a log or a row of a TSV file, and a bidirectional mark reverses the rest of a line.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

# Controls (C0, DEL, C1), format characters (soft hyphen, zero-width, bidirectional, byte order mark, annotations,
# tags), separators of lines and paragraphs, letters and marks without a glyph, noncharacters, lone surrogates.
# Variation selectors U+FE00 to U+FE0F stay: they choose between two visible forms of the character before them.
_UNSAFE = (
    "\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff\ud800-\udfff"
)
_UNSAFE_CHARACTER = re.compile(f"[{_UNSAFE}]")
_UNSAFE_IN_LINES = re.compile(f"(?!\n)[{_UNSAFE}]")
_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_BACKSLASH = "\\x5c"


def printable(text: str) -> str:
    r"""Escape every unsafe character as ``\xHH``, ``\uHHHH`` or ``\UHHHHHHHH``.

    Other text, including backslashes, is unchanged, and ``from_printable`` inverts the function: a backslash that would
    begin one of these escapes is itself escaped as ``\x5c``.

    >>> print(printable("a\tb\x1b[31m\u202e"), printable("C:\\new"), printable(r"\x1b"))
    a\x09b\x1b[31m\u202e C:\new \x5cx1b
    """
    return _UNSAFE_CHARACTER.sub(_escaped, _guarded(text))


def from_printable(text: str) -> str:
    r"""Invert ``printable``; escapes that ``printable`` does not write are unchanged.

    >>> from_printable(r"a\x09b"), from_printable(r"caf\u00e9 C:\new")
    ('a\tb', 'caf\\u00e9 C:\\new')
    """
    return _ESCAPE.sub(lambda match: _character(match[0]) or match[0], text)


def printable_lines(text: str) -> str:
    """Escape a message like ``printable``, but keep its line breaks."""
    return _UNSAFE_IN_LINES.sub(_escaped, text.replace("\r\n", "\n"))


def printable_html(text: str) -> str:
    """Escape a text for HTML, inside an element or a quoted attribute."""
    return html.escape(printable(text), quote=True)


def printable_json(value: Any, **options: Any) -> str:
    """Dump JSON in printable characters; arguments are those of ``json.dumps``."""
    return _UNSAFE_IN_LINES.sub(_json_escaped, json.dumps(value, **options))


def _guarded(text: str) -> str:
    """Escape the backslashes that begin a sequence that reads as an escape."""
    return _ESCAPE.sub(lambda match: _BACKSLASH + match[0][1:] if _character(match[0]) else match[0], text)


def _escaped(match: re.Match[str]) -> str:
    return _escape(ord(match[0]))


def _json_escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0]).strip('"') if match[0] != "\x7f" else "\\u007f"


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _character(escape: str) -> str | None:
    """Return the character that ``printable`` writes as this escape; None if there is none."""
    code = int(escape[2:], 16)
    if code > 0x10FFFF or _escape(code) != escape:
        return None
    return chr(code) if code == ord("\\") or _UNSAFE_CHARACTER.match(chr(code)) else None
