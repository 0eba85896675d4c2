import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unsafe_text import VISIBLE

from distkg.printable import from_printable, printable, printable_html, printable_json, printable_lines

UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}

text = st.text(st.characters() | st.sampled_from("\\xuU05c1b9\x1b\n\t\u202e\u200b\U000e0041\ud800"))


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("plain é 日本 [red] %s", "plain é 日本 [red] %s"),
        ("a\tb\nc\rd", r"a\x09b\x0ac\x0dd"),
        ("\x1b[31m\x1b]0;title\x07", r"\x1b[31m\x1b]0;title\x07"),
        ("\x00\x7f\x85\x9b", r"\x00\x7f\x85\x9b"),
        ("\u202eevil\u2066\u2069\u200f\u061c", r"\u202eevil\u2066\u2069\u200f\u061c"),
        ("\ufeffa\u200bb\u200dc\u2060\xad", r"\ufeffa\u200bb\u200dc\u2060\xad"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("C:\\new\\table", r"C:\new\table"),
        ("\\x1b", r"\x5cx1b"),
        ("\\\x1b", r"\\x1b"),
        ("\\x5cx1b", r"\x5cx5cx1b"),
        ("caf\\u00e9", r"caf\u00e9"),
    ],
)
def test_what_is_unsafe_is_shown_as_an_escape_and_read_back(label: str, shown: str) -> None:
    assert printable(label) == shown
    assert from_printable(shown) == label


def test_every_unsafe_character_of_unicode_is_escaped() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in UNSAFE and code not in VISIBLE:
            assert printable(character).startswith("\\"), hex(code)
    assert all(printable(chr(code)) == chr(code) for code in VISIBLE)


@given(text)
def test_the_label_comes_back(label: str) -> None:
    assert from_printable(printable(label)) == label
    assert not any(unicodedata.category(c) in UNSAFE and ord(c) not in VISIBLE for c in printable(label))


@given(text, text)
def test_two_labels_are_never_shown_alike(one: str, other: str) -> None:
    assert (printable(one) == printable(other)) == (one == other)


LETTERS_WITHOUT_GLYPH = "\u115f\u1160\u3164\uffa0"


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="\\" + LETTERS_WITHOUT_GLYPH)))
def test_ordinary_labels_stay_as_they_are(label: str) -> None:
    assert printable(label) == label
    assert from_printable(label) == label


def test_messages_keep_their_lines() -> None:
    assert printable_lines("one\r\ntwo\n\x1b[2J\r\u2028") == "one\ntwo\n\\x1b[2J\\x0d\\u2028"


def test_html_neither_opens_tags_nor_leaves_attributes() -> None:
    assert printable_html("</script><b a='\"\x1b'>&") == "&lt;/script&gt;&lt;b a=&#x27;&quot;\\x1b&#x27;&gt;&amp;"


@given(st.lists(text), st.booleans())
def test_json_is_printable_and_holds_the_value(labels: list[str], ascii_only: bool) -> None:
    written = printable_json(labels, ensure_ascii=ascii_only, indent=1)
    assert json.loads(written) == labels
    assert all(printable(line) == line or "\\" in line for line in written.split("\n"))
    assert not any(unicodedata.category(c) in UNSAFE and ord(c) not in VISIBLE for c in written.replace("\n", ""))
    assert not ascii_only or written.isascii()


def test_json_keeps_letters_where_the_output_can_hold_them() -> None:
    assert printable_json("é\u202e\x7f\U000e0041\ud800", ensure_ascii=False) == (
        '"é\\u202e\\u007f\\udb40\\udc41\\ud800"'
    )
