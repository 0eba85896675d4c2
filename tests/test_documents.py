"""YAML from outside: one meaning for each value, bounds, and errors that name file and line."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distkg.documents import MAX_BYTES, DocumentError, parse_yaml, read_yaml, yaml_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1_000", 1000),
        ("0x1f", 31),
        ("0o17", 15),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("2001-01-01", "2001-01-01"),
        ("'010'", "010"),
        ("true", True),
        ("~", None),
        ("127.0.0.1:6379", "127.0.0.1:6379"),
        ("!!str 1", "1"),
    ],
)
def test_a_plain_value_has_one_meaning(text: str, value: Any) -> None:
    found = parse_yaml(f"key: {text}", "x")["key"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 010\n", "x.yaml is not valid YAML: line 2: 010 is read differently by versions of YAML"),
        ("a: 1:30\nb: 1\n", "line 1: 1:30 is read differently"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is given twice, first in line 1; keep one"),
        ("a: {b: 1, b: 2}", "x.yaml is not valid YAML: the key 'b' is given twice"),
        ("a: &x [*x]", "an alias (*name) that contains itself"),
        ("a: !!python/name:os.system x", "the tag !!python/name:os.system is not allowed"),
        ("a: !!set {x}", "the tag !!set is not allowed"),
        ("a: !!int x", "x cannot be read as int"),
        ("a: !!binary eA==", "the tag !!binary is not allowed"),
        ("--- 1\n--- 2\n", "line 2: expected a single document in the stream but found another document"),
        ("? [1]\n: 2", "a key must be a word, not a list or a mapping"),
        ('a: "\\x00"', "a text holds the control character U+0000"),
        ('a: "\\ud800"', "a text holds the control character U+D800"),
        ("a: \x01", "it holds the control character U+0001"),
        ("\ta: 1", "indent with spaces"),
        ("[" * 100_000, "values are nested more than 32 deep"),
        ("a: " + "9" * 5000, "cannot be read as int"),
        ("<<: 1", "the merge key << takes a mapping"),
        ("*a", "found undefined alias"),
    ],
)
def test_what_has_no_single_meaning_is_refused_by_line(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_yaml(text, "x.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_and_merge_keys_are_copies() -> None:
    found = parse_yaml("a: &x {b: 1, c: 2}\nd: *x\ne: {<<: [*x, {f: 5}], b: 3}", "x")
    assert found == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 2}, "e": {"b": 3, "c": 2, "f": 5}}
    found["d"]["b"] = 7
    assert found["a"]["b"] == 1


def test_what_aliases_expand_to_is_bounded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(DocumentError, match="more than 100,000 values"):
        parse_yaml("\n".join(lines), "x")


def test_keys_are_text() -> None:
    assert parse_yaml("1: a\ntrue: b\nnull: c\non: d", "x") == {"1": "a", "true": "b", "null": "c", "on": "d"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: é".encode("latin-1"), "x.yaml:1: byte 0xe9 is not UTF-8 (the file may be Latin-1"),
        (b"a: 1\nb: \xe9", "x.yaml:2: byte 0xe9 is not UTF-8"),
        ("a: 1".encode("utf-16"), "the file is UTF-16. Save it as UTF-8"),
        ("a: 1".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("a: 1".encode("utf-32"), "the file is UTF-"),
        (b"#" * (MAX_BYTES + 1), "is larger than 256 KiB"),
    ],
)
def test_other_encodings_and_sizes_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(DocumentError) as caught:
        read_yaml(tmp_path / "x.yaml", "x.yaml")
    assert message in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: ü", "utf-8-sig")
    assert read_yaml(tmp_path / "x.yaml", "x") == {"a": "ü"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "absent"):
        with pytest.raises(DocumentError, match="is not a regular file"):
            read_yaml(path, "x")


LOOK_ALIKES = st.sampled_from(
    ["1e3", "-1E+5", "0o17", "0b1", "1:30", "010", "yes", ".5", "5.", "~", "<<", "=", "2001-01-01"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | LOOK_ALIKES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=15,
)


def outcome(text: str) -> tuple[Any, str]:
    """The value of a text, or the message that refuses it."""
    try:
        return parse_yaml(text, "x"), ""
    except DocumentError as error:
        return None, str(error)


@given(VALUES, st.booleans())
def test_what_is_written_is_read_back_or_refused_for_a_control_character(value: Any, ascii_only: bool) -> None:
    found, message = outcome(yaml_of(value, ascii_only=ascii_only))
    assert found == value if not message else "control character" in message


@given(st.text(max_size=200))
def test_any_text_is_a_value_or_one_message(text: str) -> None:
    _, message = outcome(text)
    assert not message or message.startswith("x is not valid YAML: ")


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "a\u2029", "ü\x85"])
def test_line_breaks_of_unicode_are_written_as_escapes(text: str) -> None:
    assert text not in yaml_of({"key": text})
    assert outcome(yaml_of({"key": text.replace("\x85", "")}))[0] == {"key": text.replace("\x85", "")}
