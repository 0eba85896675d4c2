"""Parameters of a network as one flat row, so that one optimizer update moves all of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from distkg.sharding.optimizers import RowOptimizer


class FlatParameters:
    """Flat buffers of the values and gradients of a module's trainable parameters, which become views of the buffers.

    Attributes:
        values, gradients: float32 [1, n], concatenated parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        parameters = [parameter for _, parameter in named]
        self._shapes = [(name, parameter.shape) for name, parameter in named]
        with torch.no_grad():
            self.values = torch.cat([parameter.flatten() for parameter in parameters])[None]
        self.gradients: Tensor = torch.zeros_like(self.values)
        self._named_gradients: list[tuple[str, Tensor]] = []
        self._row = torch.zeros(1, dtype=torch.int64, device=self.values.device)
        sizes = [parameter.numel() for parameter in parameters]
        parts = zip(named, self.values[0].split(sizes), self.gradients[0].split(sizes), strict=True)
        for (name, parameter), values, gradients in parts:
            gradient = gradients.view_as(parameter)
            parameter.data, parameter.grad = values.view_as(parameter), gradient
            self._named_gradients.append((name, gradient))

    def step(self, optimizer: RowOptimizer, learning_rate: float) -> None:
        """Update the values with ``optimizer``, which has a single row, and clear the gradients."""
        optimizer.step(self._row, self.gradients, learning_rate)
        self.values += self.gradients
        self.gradients.zero_()

    def packed_gradients(self, by_row: Collection[str], rows: Tensor) -> Tensor:
        """Copy the gradients of ``rows`` int64 [u] of the parameters ``by_row``, and all of the others: float32 [m]."""
        parts = [gradient[rows] if name in by_row else gradient for name, gradient in self._named_gradients]
        return torch.cat([part.flatten() for part in parts])

    def unpack_gradients(self, packed: Tensor, by_row: Collection[str], rows: Tensor) -> None:
        """Overwrite gradients with those of ``packed_gradients``; those of other rows stay as they are."""
        low = 0
        for name, gradient in self._named_gradients:
            shape = (len(rows), *gradient.shape[1:]) if name in by_row else gradient.shape
            part = packed[low : low + math.prod(shape)].view(shape)
            if name in by_row:
                gradient[rows] = part
            else:
                gradient.copy_(part)
            low += part.numel()

    def mask(self, trained: Mapping[str, Tensor]) -> Tensor:
        """Return which values of the flat row are trained: bool [n].

        Args:
            trained: name of a parameter → bool of its shape; parameters that are not named are not trained.
        """
        parts = [trained.get(name, torch.zeros(shape, dtype=torch.bool)).flatten() for name, shape in self._shapes]
        return torch.cat(parts).to(self.values.device)
