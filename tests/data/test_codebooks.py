"""Codebooks in the formats that there are, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from distkg.data.errors import IngestError
from distkg.data.tokens.codebooks import read_codebook

VECTORS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def write(file: Path) -> Path:
    tensor = torch.tensor(VECTORS)
    match file.name:
        case "a.npy":
            np.save(file, tensor.numpy())
        case "parameter.pth":
            torch.save(torch.nn.Parameter(tensor), file)
        case "half.pt":
            torch.save({"weight": tensor.half()}, file)
        case "one.safetensors":
            save_file({"anything": tensor.numpy()}, file)
        case "model.safetensors":
            other = {"encoder.weight": np.zeros((2, 2)), "embeddings.position_embeddings.weight": np.ones((3, 3))}
            save_file({**other, "embeddings.word_embeddings.weight": tensor.numpy()}, file)
    return file


@pytest.mark.parametrize("name", ["a.npy", "parameter.pth", "half.pt", "one.safetensors", "model.safetensors"])
def test_every_format_gives_the_same_vectors(tmp_path: Path, name: str) -> None:
    found = read_codebook(write(tmp_path / name))
    assert found.dtype == np.float32
    assert found.tolist() == VECTORS


class Runs:
    """A pickle that would run code if anything unpickled it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["bad.pth", "bad.npy"])
def test_no_code_of_a_file_is_run(tmp_path: Path, name: str) -> None:
    mark, file = tmp_path / "ran", tmp_path / name
    if name.endswith(".npy"):
        np.save(file, np.array([Runs(mark)], dtype=object), allow_pickle=True)
    else:
        file.write_bytes(pickle.dumps(Runs(mark), protocol=2))
    with pytest.raises(IngestError, match="cannot be read"):
        read_codebook(file)
    assert not mark.exists()


def test_what_is_no_codebook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"must be a file that ends with one of .npy, .safetensors, .pth, .pt"):
        read_codebook(tmp_path / "x.bin")
    with pytest.raises(IngestError, match="cannot be read"):
        read_codebook(tmp_path / "absent.pth")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    with pytest.raises(IngestError, match=r"has shape \[3\]; one vector per token"):
        read_codebook(tmp_path / "flat.npy")
    save_file({"a": np.zeros((1, 1)), "b": np.zeros((1, 1))}, tmp_path / "two.safetensors")
    with pytest.raises(IngestError, match="it holds 2 tensors"):
        read_codebook(tmp_path / "two.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(IngestError, match="list instead of one tensor"):
        read_codebook(tmp_path / "list.pth")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.array([[1.0, 2.0], [np.nan, 0.0]]), "the vector of token 1 is not finite"),
        (np.array([[1e300, 0.0]]), "the vector of token 0 is not finite"),
        (np.array([[1j]]), "holds complex128; vectors of real numbers are expected"),
        (np.array([["a"]]), "holds <U1; vectors of real numbers are expected"),
        (np.zeros((0, 3)), r"has shape \[0, 3\]"),
    ],
)
def test_vectors_are_real_and_finite(tmp_path: Path, matrix: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", matrix)
    with pytest.raises(IngestError, match=message):
        read_codebook(tmp_path / "x.npy")


@pytest.mark.parametrize("name", ["x.npy", "x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\xff" * 9])
def test_damaged_codebooks_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IngestError, match=f"{name} cannot be read: ."):
        read_codebook(tmp_path / name)
