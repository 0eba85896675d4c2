"""Zero-copy serialisation: a small head and separate arrays, which several processes can read in place.

The arrays of a packed value may be mapped read-only; unpacking does not copy them.
"""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Serialised value.

    Attributes:
        head: pickle of the value without the contents of its arrays and tensors.
        arrays: uint8 [n] each, contents of its arrays and tensors.
    """

    head: bytes
    arrays: list[NDArray[np.uint8]]

    @property
    def nbytes(self) -> int:
        return len(self.head) + sum(array.nbytes for array in self.arrays)


def packed(value: object) -> Packed:
    """Serialise a picklable value; its arrays are shared with the value, not copied."""
    buffers: list[pickle.PickleBuffer] = []
    head = io.BytesIO()
    _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(value)
    return Packed(head.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers])


def unpacked(parts: Packed) -> Any:
    """Deserialise a value, whose arrays and tensors are views of the packed arrays.

    NumPy arrays are read-only if the packed arrays are. Tensors cannot be read-only, but must not be written to either.
    """
    return pickle.loads(parts.head, buffers=parts.arrays)


class _Pickler(pickle.Pickler):
    """Pickler that handles tensors as arrays, since torch's own pickling copies them."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
            return _tensor, (value.detach().cpu().numpy(),)
        return NotImplemented


def _tensor(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        # torch warns about every array that is not writable.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
