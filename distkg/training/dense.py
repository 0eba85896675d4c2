"""Replicated parameters: relations and small networks, all-reduced and moved alike on every rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distkg.config import OptimizerConfig
from distkg.sharding.ranks import Ranks, Work


class DenseParameters:
    """The parameters of a module that every rank holds in full.

    Their gradients are laid into one buffer, so that a step costs one all-reduce.
    """

    def __init__(self, module: nn.Module, config: OptimizerConfig, ranks: Ranks) -> None:
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._ranks, self._clip = ranks, config.clip_norm
        rate = config.relation_learning_rate or config.learning_rate
        kind = torch.optim.Adam if config.name == "adam" else torch.optim.Adagrad
        self.optimizer: torch.optim.Optimizer = kind(self._parameters, lr=rate)
        self._rate = rate
        self._flat = torch.zeros(sum(parameter.numel() for parameter in self._parameters), device=ranks.device)
        for parameter, view in zip(self._parameters, self._views(), strict=True):
            parameter.grad = view

    def _views(self) -> list[Tensor]:
        sizes = [parameter.numel() for parameter in self._parameters]
        return [
            part.view_as(parameter) for part, parameter in zip(self._flat.split(sizes), self._parameters, strict=True)
        ]

    def reduce(self) -> Work:
        """Begin to sum gradients over ranks."""
        return self._ranks.all_reduce(self._flat, wait=False)

    def step(self, factor: float) -> None:
        """Clip, move by the learning rate × ``factor``, and clear gradients."""
        if self._clip is not None:
            norm = self._flat.norm()
            self._flat.mul_((self._clip / (norm + 1e-6)).clamp_max(1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * factor
        self.optimizer.step()
        self._flat.zero_()

    def state(self) -> dict[str, Tensor]:
        """Optimizer state as named tensors."""
        return {
            f"{i}.{name}": value
            for i, parameter in enumerate(self._parameters)
            for name, value in sorted(self.optimizer.state[parameter].items())
            if isinstance(value, Tensor)
        }

    def prepare_state(self) -> None:
        """Create the optimizer's state without moving a parameter, so that a checkpoint can be read into it."""
        before = [parameter.detach().clone() for parameter in self._parameters]
        self._flat.zero_()
        self.optimizer.step()
        with torch.no_grad():
            for parameter, value in zip(self._parameters, before, strict=True):
                parameter.copy_(value)
        for tensor in self.state().values():
            tensor.zero_()
