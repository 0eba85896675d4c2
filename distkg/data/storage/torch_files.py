"""Safe reader of ``torch.save`` files from untrusted sources: plain tensors and containers only, no code.

torch's ``weights_only`` loader runs no code. Zip-format files are mapped into memory, so that unused tensors cost
nothing, and no tensor is larger than its file.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distkg.data.storage.tensor_files import DTYPES
from distkg.strict_json import check_regular


class TorchFileError(ValueError):
    """A file is not made of plain tensors and containers; the message says why, but not in which file."""


def read_torch_file(file: Path) -> Any:
    """Read a file written by ``torch.save``.

    Raises:
        TorchFileError: no such file, a file with code or other objects, or a damaged file.
    """
    try:
        check_regular(file.resolve())
        mapped = zipfile.is_zipfile(file)
        if mapped:
            _refuse_compressed(file)
        with warnings.catch_warnings(action="ignore"):  # warnings about other pickle protocols
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped or None)
    except Exception as error:  # arbitrary bytes can raise anything in the loader
        lines = str(error).strip().splitlines()
        raise TorchFileError(lines[0][:300] if lines else type(error).__name__) from None


def is_plain(tensor: Any) -> bool:
    """Return True for a dense tensor of real numbers: not sparse, quantized or on the meta device."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in DTYPES.values()
    )


def _refuse_compressed(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise TorchFileError("it is a compressed archive, which torch.save does not write")
