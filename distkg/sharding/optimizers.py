"""Sparse optimizers: update only the rows with a gradient, each row once.

The update is not linear in the gradient, so the gradients of duplicate rows must be summed before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu
from distkg.kernels.threads import for_each_part
from distkg.registry import Registry
from distkg.sharding.row_storage import DeviceMemory, RowStorage

_FEWEST = 256  # rows of a part: with fewer, a thread costs more than it saves

OPTIMIZERS: Registry[type[RowOptimizer]] = Registry("optimizer")


class RowOptimizer(ABC):
    """Base class: optimizer state of ``rows`` rows of ``width`` floats.

    Attributes:
        state: name → tensor whose first dimension is the row, as in checkpoints.
    """

    def __init__(self, rows: int, width: int, device: torch.device, storage: RowStorage | None = None) -> None:
        """Allocate the state in ``storage``, by default in the memory of ``device``."""
        storage = storage or DeviceMemory(device)
        self.state: dict[str, Tensor] = {
            name: storage.zeros(rows, columns, torch.float32) for name, columns in self.columns(width).items()
        }

    @staticmethod
    @abstractmethod
    def columns(width: int) -> dict[str, int]:
        """Return the floats of state per row, by name."""

    @abstractmethod
    def step(self, ids: Tensor, grad: Tensor, learning_rate: float) -> None:
        """Replace gradients by the changes to add to the rows, and update the state.

        Args:
            ids: int64 [k], unique row numbers.
            grad: float32 [k, width], overwritten with the changes.
        """


@OPTIMIZERS.register("rowwise_adagrad")
class RowwiseAdagrad(RowOptimizer):
    """Adagrad with one accumulator per row, the mean of squares over the row (PyTorch-BigGraph, Lerer et al. 2019)."""

    EPSILON = 1e-10

    @staticmethod
    def columns(width: int) -> dict[str, int]:
        return {"sum": 1}

    def step(self, ids: Tensor, grad: Tensor, learning_rate: float) -> None:
        total = self.state["sum"]
        if on_cpu(ids, grad):
            _update_rows(_rowwise_adagrad, [total], ids, grad, learning_rate, self.EPSILON)
            return
        fresh = total[ids] + grad.square().mean(1, keepdim=True)
        total[ids] = fresh
        grad.div_(fresh.sqrt_().add_(self.EPSILON)).mul_(-learning_rate)


@OPTIMIZERS.register("adagrad")
class Adagrad(RowOptimizer):
    """Adagrad (Duchi et al. 2011): one accumulator per float."""

    EPSILON = 1e-10

    @staticmethod
    def columns(width: int) -> dict[str, int]:
        return {"sum": width}

    def step(self, ids: Tensor, grad: Tensor, learning_rate: float) -> None:
        total = self.state["sum"]
        if on_cpu(ids, grad):
            _update_rows(_adagrad, [total], ids, grad, learning_rate, self.EPSILON)
            return
        fresh = total[ids].addcmul_(grad, grad)
        total[ids] = fresh
        grad.div_(fresh.sqrt_().add_(self.EPSILON)).mul_(-learning_rate)


@OPTIMIZERS.register("adam")
class LazyAdam(RowOptimizer):
    """Lazy Adam (Kingma & Ba 2015): rows without gradient are unchanged, and each row counts its own steps.

    With the count the bias correction is right for rows that are updated rarely.
    """

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    @staticmethod
    def columns(width: int) -> dict[str, int]:
        return {"mean": width, "square": width, "steps": 1}

    def step(self, ids: Tensor, grad: Tensor, learning_rate: float) -> None:
        mean, square, steps = self.state["mean"], self.state["square"], self.state["steps"]
        if on_cpu(ids, grad):
            _update_rows(_lazy_adam, [mean, square, steps], ids, grad, learning_rate, *self.BETAS, self.EPSILON)
            return
        first, second = self.BETAS
        count = steps[ids] + 1
        fresh_mean = mean[ids].lerp_(grad, 1 - first)
        fresh_square = square[ids].mul_(second).addcmul_(grad, grad, value=1 - second)
        steps[ids], mean[ids], square[ids] = count, fresh_mean, fresh_square
        scale = (fresh_square / (1 - second**count)).sqrt() + self.EPSILON
        grad.copy_(fresh_mean / (1 - first**count) / scale).mul_(-learning_rate)


def _update_rows(
    update: Callable[..., None], state: Sequence[Tensor], ids: Tensor, grad: Tensor, *constants: float
) -> None:
    """Call a kernel of an optimizer for parts of the rows."""
    states, rows, gradients = [tensor.numpy() for tensor in state], ids.numpy(), grad.numpy()
    singles = [np.float32(value) for value in constants]
    for_each_part(len(rows), lambda low, high: update(*states, rows[low:high], gradients[low:high], *singles), _FEWEST)


@kernel
def _rowwise_adagrad(
    total: np.ndarray, ids: np.ndarray, grad: np.ndarray, rate: np.float32, epsilon: np.float32
) -> None:
    width = grad.shape[1]
    for i in range(ids.shape[0]):
        square = np.float32(0)
        for j in range(width):
            square += grad[i, j] * grad[i, j]
        total[ids[i], 0] += square / np.float32(width)
        scale = -rate / (np.sqrt(total[ids[i], 0]) + epsilon)
        for j in range(width):
            grad[i, j] *= scale


@kernel
def _adagrad(total: np.ndarray, ids: np.ndarray, grad: np.ndarray, rate: np.float32, epsilon: np.float32) -> None:
    for i in range(ids.shape[0]):
        row = ids[i]
        for j in range(grad.shape[1]):
            total[row, j] += grad[i, j] * grad[i, j]
            grad[i, j] = -rate * grad[i, j] / (np.sqrt(total[row, j]) + epsilon)


@kernel
def _lazy_adam(
    mean: np.ndarray,
    square: np.ndarray,
    steps: np.ndarray,
    ids: np.ndarray,
    grad: np.ndarray,
    rate: np.float32,
    first: np.float32,
    second: np.float32,
    epsilon: np.float32,
) -> None:
    one = np.float32(1)
    latest, mean_scale, square_scale = np.float32(0), one, one
    for i in range(ids.shape[0]):
        row = ids[i]
        steps[row, 0] += one
        # Two powers cost as much as the row itself; consecutive rows often have the same step count.
        if steps[row, 0] != latest:
            latest = steps[row, 0]
            mean_scale = np.float32(-rate / (one - first**latest))
            square_scale = np.float32(one / (one - second**latest))
        for j in range(grad.shape[1]):
            mean[row, j] = first * mean[row, j] + (one - first) * grad[i, j]
            square[row, j] = second * square[row, j] + (one - second) * grad[i, j] * grad[i, j]
            grad[i, j] = mean_scale * mean[row, j] / (np.sqrt(square_scale * square[row, j]) + epsilon)
