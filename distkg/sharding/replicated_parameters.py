"""Replicated parameters: relations and small networks, with all-reduced gradients and equal updates on every rank."""

from __future__ import annotations

from torch import Tensor, nn

from distkg.config import OptimizerConfig
from distkg.sharding.flat import FlatParameters
from distkg.sharding.optimizers import OPTIMIZERS
from distkg.sharding.ranks import Ranks, Work


class ReplicatedParameters:
    """Parameters of a module that is replicated on every rank.

    They are one flat row, so a step costs one all-reduce and one update. Row-wise Adagrad would use one learning rate
    for the whole row, so Adagrad is used instead.
    """

    def __init__(self, module: nn.Module, config: OptimizerConfig, ranks: Ranks) -> None:
        self._ranks, self._clip, self._decay = ranks, config.clip_norm, config.weight_decay
        self._rate = config.relation_learning_rate or config.learning_rate
        self._flat = FlatParameters(module)
        kind = OPTIMIZERS["adam" if config.name == "adam" else "adagrad"]
        self._optimizer = kind(1, self._flat.values.shape[1], ranks.device)

    def reduce(self) -> Work:
        """Start to sum gradients over ranks."""
        return self._ranks.all_reduce(self._flat.gradients, wait=False)

    def step(self, factor: float) -> None:
        """Clip gradients, update with the learning rate × ``factor``, and clear gradients."""
        gradients = self._flat.gradients
        if self._clip is not None:
            gradients *= (self._clip / (gradients.norm() + 1e-6)).clamp_max(1.0)
        if self._decay:
            self._flat.values *= 1 - self._rate * factor * self._decay
        self._flat.step(self._optimizer, self._rate * factor)

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer state by name."""
        return self._optimizer.state
