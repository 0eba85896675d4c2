"""Headers of safetensors files: what safetensors writes is read, what could mislead is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from distkg.data.storage.tensor_files import (
    DTYPES,
    TensorFileError,
    TensorHeader,
    check_tensors,
    read_header,
    write_tensors,
)

fixtures = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@fixtures
@given(
    tensors=st.dictionaries(
        st.text("abc.", min_size=1, max_size=4),
        st.tuples(st.sampled_from(sorted(DTYPES.values(), key=str)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=4,
    )
)
def test_what_safetensors_writes_is_read(tmp_path: Path, tensors: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    save_file({name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in tensors.items()}, tmp_path / "x")
    expected = {name: TensorHeader(dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}
    assert read_header(tmp_path / "x") == expected


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_whoever_may_read_the_folder_may_read_what_is_written(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    tensors = {"a": torch.arange(3), "b": torch.ones(2, 2)}
    write_tensors(tmp_path / "x", tensors)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode & 0o666
    assert read_header(tmp_path / "x") == {name: TensorHeader.of(tensor) for name, tensor in tensors.items()}


def write(path: Path, header: Any, data: int = 8, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + b"\0" * data)


def tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"a": tensor(shape=[10**12], offsets=[0, 4 * 10**12])}, "do not fill its 8 bytes"),
        ({"a": tensor(shape=[10**12])}, "'a' is float32 .1000000000000., but fills 8 bytes"),
        ({"a": tensor(shape=[2**62, 2**62, 0], offsets=[0, 0])}, "do not fill its 8 bytes"),
        ({"a": tensor(shape=[2**63])}, "whole numbers from 0"),
        ({"a": tensor(shape=[1] * 65)}, "whole numbers from 0"),
        ({"a": tensor(shape=[-2])}, "whole numbers from 0"),
        ({"a": tensor(shape=[2.0])}, "whole numbers from 0"),
        ({"a": tensor(shape=[True, 2])}, "whole numbers from 0"),
        ({"a": tensor(shape="2")}, "whole numbers from 0"),
        ({"a": tensor(offsets=[0])}, "whole numbers from 0"),
        ({"a": tensor(offsets=[8, 0])}, "fills -8 bytes"),
        ({"a": tensor(dtype="F8_E4M3", shape=[8])}, "data type 'F8_E4M3'"),
        ({"a": tensor(dtype=["F32"])}, r"data type \['F32'\]"),
        ({"a": tensor(more=1)}, "must have dtype, shape and data_offsets"),
        ({"a": [1, 2]}, "must have dtype, shape and data_offsets"),
        ({"a": tensor(), "b": tensor()}, "without gap and overlap"),
        ({"a": tensor(shape=[1], offsets=[0, 4]), "b": tensor(shape=[1], offsets=[2, 6])}, "without gap and overlap"),
        ({"a": tensor(shape=[1], offsets=[4, 8])}, "without gap and overlap"),
        ({"a": tensor(), "__metadata__": {"a": 1}}, "__metadata__ must be an object with string values"),
        ([], "not a JSON object"),
        (b"{", "not valid JSON at"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1, "a": 1}', "occurs twice"),
    ],
)
def test_headers_that_mislead_are_refused(tmp_path: Path, header: Any, why: str) -> None:
    write(tmp_path / "x", header)
    with pytest.raises(TensorFileError, match=why):
        read_header(tmp_path / "x")


@pytest.mark.parametrize("length", [2**64 - 1, 2**40, 12])
def test_a_header_longer_than_its_file_is_refused(tmp_path: Path, length: int) -> None:
    write(tmp_path / "x", {}, data=0, length=length)
    with pytest.raises(TensorFileError, match=f"claims {length:,} bytes, the file has 10"):
        read_header(tmp_path / "x")


@pytest.mark.parametrize("content", [b"", b"\0" * 7])
def test_a_file_without_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(TensorFileError, match=f"the file has {len(content)}"):
        read_header(tmp_path / "x")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "x")
    (tmp_path / "link").symlink_to("x")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "absent", "."):
        with pytest.raises(TensorFileError):
            read_header(tmp_path / name)


@fixtures
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.integers(0, 3))
def test_whatever_byte_changes_safetensors_reads_what_is_accepted(
    tmp_path: Path, place: float, value: int, cut: int
) -> None:
    save_file({"first": torch.arange(6.0).reshape(2, 3), "second": torch.zeros(4, dtype=torch.int64)}, tmp_path / "x")
    content = bytearray((tmp_path / "x").read_bytes())
    content[int(place * len(content))] = value
    (tmp_path / "x").write_bytes(content[: len(content) - cut])
    try:
        headers = read_header(tmp_path / "x")
    except TensorFileError:
        return
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert {name: TensorHeader.of(file.get_tensor(name)) for name in file.keys()} == headers  # noqa: SIM118


def test_safetensors_refuses_what_overlaps_too(tmp_path: Path) -> None:
    write(tmp_path / "x", {"a": tensor(), "b": tensor()})
    with pytest.raises(SafetensorError):
        safe_open(tmp_path / "x", framework="pt")


def test_tensors_are_held_against_those_expected() -> None:
    float32, int64 = TensorHeader(torch.float32, (2,)), TensorHeader(torch.int64, (2,))
    check_tensors({"a": float32}, {"a": float32}, "the manifest")
    with pytest.raises(TensorFileError, match=r"holds a as int64 \[2\], the manifest says float32 \[2\]"):
        check_tensors({"a": int64}, {"a": float32}, "the manifest")
    with pytest.raises(TensorFileError, match=r"of shape \[2\], the manifest says \[3\]"):
        check_tensors({"a": float32}, {"a": TensorHeader(torch.float32, (3,))}, "the manifest")
    with pytest.raises(TensorFileError, match="lacks the tensor a"):
        check_tensors({}, {"a": float32}, "the manifest")
    with pytest.raises(TensorFileError, match="holds an unexpected tensor 'a'"):
        check_tensors({"a": float32}, {}, "the manifest")
