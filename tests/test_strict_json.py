"""JSON of strangers: the value of ``json.loads``, or JsonError, whatever the bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distkg.strict_json import MAX_BYTES, JsonError, check_regular, parse_json, read_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(values)
def test_what_json_writes_is_read(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=60) | st.text('[]{}":,0123456789eE.-NaInfity \\u', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        parse_json(content)
    except JsonError:
        return
    json.loads(content)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not valid JSON at line 1, column 1"),
        (b"{", "not valid JSON at line 1, column 2"),
        (b"[1,\n2,]", r"not valid JSON at line 2, column [23]"),  # the comma, from Python 3.13 on
        (b"NaN", "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b"[1e999]", "the number 1e999 is too large"),
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a' occurs twice"),
        (b'{"\\u001b[31m": 1, "\\u001b[31m": 2}', r"key '\\x1b\[31m' occurs twice"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"9" * 5000, "integer string"),
        (b" " * (MAX_BYTES + 1), "at most 16,777,216 are read"),
    ],
)
def test_what_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(JsonError, match=why):
        parse_json(content)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "link").symlink_to("a.json")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    assert read_json(tmp_path / "a.json") == [1]
    assert check_regular(tmp_path / "a.json") == 3
    for name, why in (("link", "is a link"), ("folder", "no.* regular"), ("pipe", "no.* regular"), ("none", "No such")):
        with pytest.raises(JsonError, match=why):
            read_json(tmp_path / name)
