"""Labels with every character that may not reach a terminal, a TSV file or a page raw."""

from __future__ import annotations

import unicodedata

VISIBLE = {0x600, 0x601, 0x602, 0x603, 0x604, 0x605, 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
"""Format characters with a glyph: signs that stand over the Arabic, Syriac or Kaithi number behind them."""

LABELS = [
    *(f"c{code}{chr(code)}z" for code in [*range(0x20), *range(0x7F, 0xA0)]),
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
    "line\nerror: forged\r\n\ttab",
    "\u202egnp.exe\u202c \u2066\u2067\u2068\u2069 \u200e\u200f\u061c",
    "zero\u200bwidth\u200cnon\u200djoiner\u2060\ufeffmark\xad",
    "lines\u2028paragraphs\u2029next\x85",
    "tag\U000e0041\U000e007f \ufff9\ufffb",
    "[red]markup[/red] [link=http://evil]x[/link] [/]",
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>",
    "\"onmouseover='alert(1)' x=\"",
    "javascript:alert(1)",
    "=1+1\u0301\u0301\u0301",
    "日本語 é \\x1b \\u202e C:\\new",
    "http://example.org/ns#name?q=1",
]


def unsafe_characters(text: str, allowed: str = "\n") -> set[str]:
    """Characters of a text that do not print as themselves, those ``allowed`` left out."""
    unsafe = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return {c for c in set(text) - set(allowed) if unicodedata.category(c) in unsafe and ord(c) not in VISIBLE}
