"""Functions of the user's: what goes wrong in them is told with the file it went wrong on."""

from __future__ import annotations

from pathlib import Path

import pytest

from distkg.data.errors import StoreError
from distkg.data.plugins import ImageTokenizer, load_function


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("plugin_syntax", "def f(:\n", "module 'plugin_syntax' cannot be imported: SyntaxError: "),
        ("plugin_raises", "1 / 0\n", "module 'plugin_raises' cannot be imported: ZeroDivisionError: division by zero"),
        ("plugin_without", "f = 3\n", "module 'plugin_without' has no function 'f'"),
    ],
)
def test_a_module_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StoreError, match=message):
        load_function(f"{name}:f")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise OSError('image file is truncated')", r"fails on a\.png: OSError: image file is truncated"),
        ("raise ValueError", r"fails on a\.png: ValueError"),
        ("return [[1], [2, 3]]", r"fails on a\.png: ValueError: "),
        ("return [0.5]", r"must return a list of token ids; for a\.png"),
        ("return [9]", r"gives token 9 for a\.png; the codebook has 0 to 3"),
    ],
)
def test_an_image_that_a_function_fails_on_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    name = f"plugin_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def f(path):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StoreError, match=message):
        ImageTokenizer(f"{name}:f", 4)(["a.png"])
