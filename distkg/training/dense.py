"""Replicated parameters: relations and small networks, all-reduced and moved alike on every rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distkg.config import OptimizerConfig
from distkg.sharding.optimizers import OPTIMIZERS
from distkg.sharding.ranks import Ranks, Work


class DenseParameters:
    """The parameters of a module that every rank holds in full.

    Values and gradients are laid into one buffer each, so that a step costs one all-reduce and one update: that of
    a table with a single row. Row-wise Adagrad would give all of them one rate, so they take Adagrad instead.
    """

    def __init__(self, module: nn.Module, config: OptimizerConfig, ranks: Ranks) -> None:
        parameters = list(module.parameters())
        self._ranks, self._clip, self._decay = ranks, config.clip_norm, config.weight_decay
        self._rate = config.relation_learning_rate or config.learning_rate
        with torch.no_grad():
            self._values = torch.cat([parameter.flatten() for parameter in parameters])[None]
        self._gradients = torch.zeros_like(self._values)
        self._row = torch.zeros(1, dtype=torch.int64, device=ranks.device)
        kind = OPTIMIZERS["adam" if config.name == "adam" else "adagrad"]
        self._optimizer = kind(1, self._values.shape[1], ranks.device)
        sizes = [parameter.numel() for parameter in parameters]
        parts = zip(parameters, self._values[0].split(sizes), self._gradients[0].split(sizes), strict=True)
        for parameter, values, gradients in parts:
            parameter.data, parameter.grad = values.view_as(parameter), gradients.view_as(parameter)

    def reduce(self) -> Work:
        """Begin to sum gradients over ranks."""
        return self._ranks.all_reduce(self._gradients, wait=False)

    def step(self, factor: float) -> None:
        """Clip, move by the learning rate × ``factor``, and clear gradients."""
        if self._clip is not None:
            self._gradients *= (self._clip / (self._gradients.norm() + 1e-6)).clamp_max(1.0)
        self._optimizer.step(self._row, self._gradients, self._rate * factor)
        if self._decay:
            self._values *= 1 - self._rate * factor * self._decay
        self._values += self._gradients
        self._gradients.zero_()

    def state(self) -> dict[str, Tensor]:
        """Optimizer state by name."""
        return self._optimizer.state
