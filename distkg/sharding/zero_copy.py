"""Values as a small head and large arrays, so that several processes read the arrays where they lie.

Whoever carries a packed value may map its arrays read-only: unpacking copies none of them.
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
    """A value taken apart.

    Attributes:
        head: all of it but the numbers.
        arrays: uint8 [n] each, the numbers of its arrays and tensors.
    """

    head: bytes
    arrays: list[NDArray[np.uint8]]

    @property
    def nbytes(self) -> int:
        return len(self.head) + sum(array.nbytes for array in self.arrays)


def packed(value: object) -> Packed:
    """Take apart a value that can be pickled; its arrays are shared with it, not copied."""
    buffers: list[pickle.PickleBuffer] = []
    head = io.BytesIO()
    _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(value)
    return Packed(head.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers])


def unpacked(parts: Packed) -> Any:
    """The value again, whose arrays and tensors are views of the packed ones.

    Where those are read-only, so are its arrays; a tensor cannot know, and must not be written to either.
    """
    return pickle.loads(parts.head, buffers=parts.arrays)


class _Pickler(pickle.Pickler):
    """Tensors go as arrays: left to themselves they would be copied."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
            return _tensor, (value.detach().cpu().numpy(),)
        return NotImplemented


def _tensor(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        # torch warns of every array that it cannot write to.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
