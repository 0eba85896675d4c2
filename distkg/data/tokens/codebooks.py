"""Readers of codebooks: one frozen vector per token, made by the model that made the tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from distkg.data.errors import IngestError
from distkg.data.storage.local_path import local_path

WORD_VECTORS = ("word_embeddings.weight", "embed_tokens.weight", "wte.weight", "tok_embeddings.weight")


def read_codebook(file: Path) -> NDArray[np.float32]:
    """Read the vectors of tokens in id order: float32 [V, d].

    Args:
        file: a matrix as ``.npy``; a ``.safetensors`` file with one matrix, or of a language model, whose input
            embeddings are read; or a ``.pth`` or ``.pt`` file of one tensor, as MyGO's. Pickles are read with torch's
            ``weights_only`` loader, which runs no code.

    Raises:
        IngestError: no such file, or a file of another form.
    """
    file = local_path(file, "codebook", "file")
    readers = {".npy": _numpy, ".safetensors": _safetensors, ".pth": _torch, ".pt": _torch}
    if file.suffix not in readers:
        raise IngestError(f"codebook {file} must be a file that ends with one of {', '.join(readers)}")
    if not file.is_file():
        raise IngestError(f"codebook {file} cannot be read: there is no such file")
    try:
        matrix = readers[file.suffix](file)
    except Exception as error:  # the exceptions of these libraries for damaged files are undocumented
        lines = str(error).splitlines() or [type(error).__name__]
        raise IngestError(f"codebook {file} cannot be read: {lines[0]}") from None
    if matrix.ndim != 2 or not matrix.size:
        raise IngestError(f"codebook {file} has shape {list(matrix.shape)}; one vector per token is expected: [V, d]")
    if matrix.dtype.kind not in "fiu":
        raise IngestError(f"codebook {file} holds {matrix.dtype}; vectors of real numbers are expected")
    with np.errstate(over="ignore"):
        vectors = np.asarray(matrix, np.float32)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise IngestError(f"codebook {file}: the vector of token {broken[0]} is not finite")
    return vectors


def _numpy(file: Path) -> np.ndarray:
    matrix: np.ndarray = np.load(file, allow_pickle=False)
    return matrix


def _safetensors(file: Path) -> np.ndarray:
    with safe_open(file, framework="np") as tensors:
        names = list(tensors.keys())
        candidates = names if len(names) == 1 else [name for name in names if name.endswith(WORD_VECTORS)]
        if len(candidates) != 1:
            raise ValueError(
                f"it holds {len(names)} tensors; it must hold one, or one whose name ends with {WORD_VECTORS[0]}"
            )
        matrix: np.ndarray = tensors.get_tensor(candidates[0])
    return matrix


def _torch(file: Path) -> np.ndarray:
    import torch  # imported here, so that other files are read without it

    from distkg.data.storage.torch_files import read_torch_file

    content = read_torch_file(file)
    if isinstance(content, dict) and len(content) == 1:
        (content,) = content.values()
    if not isinstance(content, torch.Tensor):
        raise ValueError(f"it holds {type(content).__name__} instead of one tensor")
    matrix: np.ndarray = content.detach().float().numpy()
    return matrix
