"""Replicated parameters: relations and small networks, with all-reduced gradients and equal updates on every rank."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distkg.config import OptimizerConfig
from distkg.sharding.device_copies import moved
from distkg.sharding.flat import FlatParameters
from distkg.sharding.optimizers import OPTIMIZERS
from distkg.sharding.ranks import Ranks, Work

SUMMED_WHOLE = 1 << 16
"""Bytes of gradients by row that are summed whole: the message that tells which rows are used would cost more time."""


@dataclass(frozen=True)
class UsedRows:
    """Rows that a step uses: sorted int64 [u]."""

    rows: Tensor


class ReplicatedParameters:
    """Parameters of a module that is replicated on every rank.

    They are one flat row, so a step costs one all-reduce and one update. Row-wise Adagrad would use one learning rate
    for the whole row, so Adagrad is used instead. Of parameters with a row for each relation, only the gradients of
    rows that a step uses need to be summed.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimizerConfig,
        ranks: Ranks,
        trained: Mapping[str, Tensor] | None = None,
        by_row: Collection[str] = (),
    ) -> None:
        """Take over the parameters of a module.

        Args:
            trained: values to train, as in ``FlatParameters.mask``; all others, and their optimizer state, stay as they
                are. Default: all are trained.
            by_row: names of parameters of which a step uses some rows, and no others have gradients. The module need
                not have all of them; those that it has have equally many rows.
        """
        large = [parameter for name, parameter in module.named_parameters() if name in by_row]
        self._by_row = by_row if ranks.size > 1 and sum(each.nbytes for each in large) > SUMMED_WHOLE else ()
        self._rows = len(large[0]) if self._by_row else 0
        self._ranks, self._clip, self._decay = ranks, config.clip_norm, config.weight_decay
        self._rate = config.relation_learning_rate or config.learning_rate
        self._flat = FlatParameters(module)
        kind = OPTIMIZERS["adam" if config.name == "adam" else "adagrad"]
        self._optimizer = kind(1, self._flat.values.shape[1], ranks.device)
        self._frozen = None if trained is None else ~self._flat.mask(trained)

    def used_rows(self, rows_of_steps: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Return the rows of parameters ``by_row`` that each step uses on any rank, for ``reduce``; collective.

        Args:
            rows_of_steps: for each step, the rows that it uses on this rank, int64 with repetitions.

        Returns:
            Sorted rows int64 [u], equal on all ranks; None if the gradients are to be summed whole.
        """
        if not self._rows:
            return [None] * len(rows_of_steps)
        used = torch.zeros(len(rows_of_steps), self._rows, dtype=torch.uint8, device=self._ranks.device)
        for step, rows in enumerate(rows_of_steps):
            used[step, rows] = 1
        self._ranks.all_reduce(used, "max")
        rows_used = [UsedRows(each.nonzero().flatten()) for each in used.cpu()]  # one wait for a device, for all steps
        on_device = moved(rows_used, self._ranks.device)
        return [each.rows if len(each.rows) < self._rows else None for each in on_device]

    def reduce(self, rows: Tensor | None = None) -> Work:
        """Start to sum gradients over ranks: of parameters ``by_row``, those of ``rows``, as ``used_rows`` returns."""
        if rows is None:
            return self._ranks.all_reduce(self._flat.gradients, wait=False)
        packed = self._flat.packed_gradients(self._by_row, rows)
        summing = self._ranks.all_reduce(packed, wait=False)

        def finish() -> None:
            summing.wait()
            self._flat.unpack_gradients(packed, self._by_row, rows)

        return Work(finish)

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
