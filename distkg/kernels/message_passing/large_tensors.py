"""Allocation of the large tensors of a layer, on huge pages.

A result of more than 32 MiB gets fresh memory from the system each time, and a page fault for every 4 KiB that is
written. For FB15k-237 and a batch of 64 the faults took longer than the sums themselves; a page of 2 MiB faults once.
The commands of distkg have huge pages for all of torch's tensors (`torch_variables`); this is for programs that import
it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.process_memory import advise_huge_pages


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised tensor on the device of ``like``, with its shape and dtype by default."""
    tensor = like.new_empty(shape or like.shape, dtype=dtype or like.dtype)
    if tensor.is_cpu:
        advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor
