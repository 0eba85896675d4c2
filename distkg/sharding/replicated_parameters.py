"""Replicated parameters: relations and small networks, with all-reduced gradients and equal updates on every rank."""

from __future__ import annotations

from collections.abc import Mapping

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

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, ranks: Ranks, trained: Mapping[str, Tensor] | None = None
    ) -> None:
        """Take over the parameters of a module.

        Args:
            trained: values to train, as in ``FlatParameters.mask``; all others, and their optimizer state, stay as they
                are. Default: all are trained.
        """
        self._ranks, self._clip, self._decay = ranks, config.clip_norm, config.weight_decay
        self._rate = config.relation_learning_rate or config.learning_rate
        self._flat = FlatParameters(module)
        kind = OPTIMIZERS["adam" if config.name == "adam" else "adagrad"]
        self._optimizer = kind(1, self._flat.values.shape[1], ranks.device)
        self._frozen = None if trained is None else ~self._flat.mask(trained)

    def reduce(self) -> Work:
        """Start to sum gradients over ranks."""
        return self._ranks.all_reduce(self._flat.gradients, wait=False)

    def step(self, factor: float) -> None:
        """Clip gradients, update with the learning rate × ``factor``, and clear gradients."""
        gradients, frozen = self._flat.gradients, self._frozen
        if frozen is None:
            self._update(factor)
            return
        # The state is put back too: Adam would move a value without a gradient by the mean of earlier ones.
        widths = [tensor for tensor in self._optimizer.state.values() if tensor.shape == gradients.shape]
        before = [(tensor, tensor[:, frozen]) for tensor in (self._flat.values, *widths)]
        gradients[:, frozen] = 0
        self._update(factor)
        for tensor, kept in before:
            tensor[:, frozen] = kept

    def _update(self, factor: float) -> None:
        gradients = self._flat.gradients
        if self._clip is not None:
            gradients *= (self._clip / (gradients.norm() + 1e-6)).clamp_max(1.0)
        if self._decay:
            self._flat.values *= 1 - self._rate * factor * self._decay
        self._flat.step(self._optimizer, self._rate * factor)

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer state by name."""
        return self._optimizer.state
