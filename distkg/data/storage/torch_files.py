"""Files of ``torch.save``, read as data of strangers: plain tensors and containers, no code, no more than they hold.

torch's loader of plain tensors runs no code. Files of today's form are mapped into memory, so that tensors which nobody
asks for cost nothing, and none is larger than its file.
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
    """A file that is not plain tensors and containers of ``torch.save``; the message says why, but not which file."""


def read_torch_file(file: Path) -> Any:
    """The content of a file of ``torch.save``.

    Raises:
        TorchFileError: no such file, one that holds code or other objects, or one that is damaged.
    """
    try:
        check_regular(file.resolve())
        mapped = zipfile.is_zipfile(file)
        if mapped:
            _refuse_compressed(file)
        with warnings.catch_warnings(action="ignore"):  # that a pickle is of another protocol than torch writes
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped or None)
    except Exception as error:  # whatever a stranger's bytes make of a loader
        lines = str(error).strip().splitlines()
        raise TorchFileError(lines[0][:300] if lines else type(error).__name__) from None


def is_plain(tensor: Any) -> bool:
    """Whether it is a tensor of real numbers that lie in memory one by one: not sparse, quantized or without values."""
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
