"""How this package compiles its CPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from distkg.compilation import njit

F = TypeVar("F", bound=Callable[..., Any])

# Reassociation lets sums use vector registers; NaN and infinity keep their meaning, because a kernel that
# optimised them away would hide a diverged run.
_FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}


def kernel(function: F) -> F:
    """Compile for this CPU on first use (cached on disk); releases the interpreter lock while it runs."""
    compiled: F = njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")(function)
    return compiled


def kernel_in_order(function: F) -> F:
    """``kernel`` that leaves sums in the order in which they are written, for arithmetic that lives by its rounding."""
    compiled: F = njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")(function)
    return compiled


def on_cpu(*tensors: Tensor) -> bool:
    """True where the compiled kernels can read these tensors."""
    return all(tensor.device.type == "cpu" for tensor in tensors)


def part_of_kernel(function: F) -> F:
    """Compile into the kernels that call it: same arithmetic, no cache of its own. May take functions as arguments."""
    compiled: F = njit(inline="always", fastmath=_FAST, error_model="numpy")(function)
    return compiled
