"""Decorators that compile CPU kernels with numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from distkg.compilation import njit

F = TypeVar("F", bound=Callable[..., Any])

# Reassociation lets sums use vector registers. NaN and infinity keep their meaning, because a kernel that optimised
# these away would hide a diverged run.
_FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}


def kernel(function: F) -> F:
    """Compile a function for this CPU at its first call (cached on disk); it releases the GIL while it runs."""
    compiled: F = njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")(function)
    return compiled


def kernel_in_order(function: F) -> F:
    """Compile like ``kernel``, but keep sums in the written order, for arithmetic that relies on rounding."""
    compiled: F = njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")(function)
    return compiled


def on_cpu(*tensors: Tensor) -> bool:
    """Return True if the compiled kernels can read these tensors."""
    for tensor in tensors:  # noqa: SIM110 - a loop takes a third of the time of all(…), and each kernel asks
        if not tensor.is_cpu:
            return False
    return True


def part_of_kernel(function: F) -> F:
    """Inline a function into the kernels that call it, with their arithmetic; it may take functions as arguments."""
    compiled: F = njit(inline="always", fastmath=_FAST, error_model="numpy")(function)
    return compiled
