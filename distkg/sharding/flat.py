"""Parameters of a network as one flat row, so that one optimizer update moves all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distkg.sharding.optimizers import RowOptimizer


class FlatParameters:
    """Flat buffers of the values and gradients of a module's trainable parameters, which become views of the buffers.

    Attributes:
        values, gradients: float32 [1, n], concatenated parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        with torch.no_grad():
            self.values = torch.cat([parameter.flatten() for parameter in parameters])[None]
        self.gradients: Tensor = torch.zeros_like(self.values)
        self._row = torch.zeros(1, dtype=torch.int64, device=self.values.device)
        sizes = [parameter.numel() for parameter in parameters]
        parts = zip(parameters, self.values[0].split(sizes), self.gradients[0].split(sizes), strict=True)
        for parameter, values, gradients in parts:
            parameter.data, parameter.grad = values.view_as(parameter), gradients.view_as(parameter)

    def step(self, optimizer: RowOptimizer, learning_rate: float) -> None:
        """Update the values with ``optimizer``, which has a single row, and clear the gradients."""
        optimizer.step(self._row, self.gradients, learning_rate)
        self.values += self.gradients
        self.gradients.zero_()
