"""Whether tensors hold only numbers, in one pass and without a copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; the smallest and the largest say so, and torch finds both in one pass."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, in order."""
    return sorted(name for name, tensor in tensors.items() if not is_finite(tensor))
