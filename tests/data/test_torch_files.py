"""Files of ``torch.save`` from strangers: plain tensors, or TorchFileError; no code runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distkg.data.storage.torch_files import TorchFileError, is_plain, read_torch_file


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read(tmp_path: Path, zipped: bool) -> None:
    content = {"a": torch.arange(6.0).reshape(2, 3), "b": [torch.tensor(3), "text", None]}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "x.pth")
    assert torch.equal(found["a"], content["a"])
    assert found["b"][0].item() == 3
    assert is_plain(found["a"])


class Code:
    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._trace,)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_runs(tmp_path: Path, zipped: bool) -> None:
    torch.save({"a": Code(tmp_path / "trace")}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Code(tmp_path / "trace")))
    for name in ("x.pth", "plain.pth"):
        with pytest.raises(TorchFileError):
            read_torch_file(tmp_path / name)
    assert not (tmp_path / "trace").exists()


def rewrite(path: Path, change: dict[bytes, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Change the pickle within a file of torch.save, and make the archive anew."""
    with zipfile.ZipFile(path) as archive:
        parts = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            for old, new in change.items() if name.endswith("data.pkl") else ():
                assert content.count(old) == 1
                content = content.replace(old, new)
            archive.writestr(name, content)


def test_a_storage_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    torch.save(torch.arange(7.0), tmp_path / "x.pth")
    many = b"J\x00\x00\x10\x00"  # 2**20, where 7 stood
    rewrite(tmp_path / "x.pth", {b"cpuq\x04K\x07": b"cpuq\x04" + many, b"K\x00K\x07\x85": b"K\x00" + many + b"\x85"})
    with pytest.raises(TorchFileError):
        read_torch_file(tmp_path / "x.pth")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(1 << 20), tmp_path / "x.pth")
    rewrite(tmp_path / "x.pth", {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(TorchFileError, match="compressed archive"):
        read_torch_file(tmp_path / "x.pth")


def read_or_refuse(path: Path) -> Any:
    try:
        return read_torch_file(path)
    except TorchFileError:
        return None


def saved(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2, 2)}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


SAVED = [saved(True), saved(False)]


@given(
    content=st.sampled_from(SAVED),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    cut=st.floats(0, 1),
)
def test_whatever_bytes_are_there_no_other_error_comes(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, places: list[tuple[float, int]], cut: float
) -> None:
    changed = bytearray(content)
    for place, value in places:
        changed[int(place * len(changed))] = value
    path = tmp_path_factory.getbasetemp() / "mutated.pth"
    path.write_bytes(changed[: int(cut * len(changed)) or None])
    read_or_refuse(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    for name, why in (("absent", "No such file"), ("pipe", "not a regular file"), (".", "not a regular file")):
        with pytest.raises(TorchFileError, match=why):
            read_torch_file(tmp_path / name)
    with pytest.raises(TorchFileError):
        read_torch_file(tmp_path / "empty")


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64),
        [1.0],
    ],
)
def test_other_things_are_not_plain(value: Any) -> None:
    assert not is_plain(value)
