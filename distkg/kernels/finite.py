"""Detection of NaN and infinity in tensors, in one pass and without a copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Return True if no value is NaN or infinite, from the minimum and maximum, which torch finds in one pass."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity, in order."""
    return sorted(name for name, tensor in tensors.items() if not is_finite(tensor))
