"""Telemetry of the negatives of a foundation model: their scores, and the replies of actors since the last report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distkg.embedding.telemetry import delivery_report, hardness_report, ratio, sum_over
from distkg.negatives import NegativeSource
from distkg.negatives.prefetch.pool_client import PoolClient
from distkg.sharding.ranks import Ranks
from distkg.training.run_dir import Record

TOP = 10  # highest-scoring negatives of a query


class HardnessTelemetry:
    """Statistics of hard negatives in a training run on one graph or several; ``report`` is collective."""

    def __init__(self, sources: Sequence[NegativeSource], count: int, ranks: Ranks) -> None:
        """``sources`` are the negative sources of the graphs; each puts hard negatives first (``hard_first``)."""
        self._sources, self._count, self._ranks = sources, count, ranks
        self._sums = torch.zeros(6, dtype=torch.float64)

    def see(self, scores: Tensor, mask: Tensor, hard: int) -> None:
        """Add a step's scores of negatives, float32 [b, K], of which the first ``hard`` are hard."""
        scores, valid = scores.detach(), ~mask
        parts = slice(None, hard), slice(hard, None)
        sums = [float((scores[:, part] * valid[:, part]).sum()) for part in parts]
        counts = [float(valid[:, part].sum()) for part in parts]
        top = scores.masked_fill(mask, -torch.inf).topk(min(TOP, scores.shape[1]), dim=1).indices
        hard_in_top = [float((top < hard).sum()), float(top.numel())] if hard else [0.0, 0.0]
        self._sums += torch.tensor([*sums, *counts, *hard_in_top], dtype=torch.float64)

    def report(self) -> Record:
        """Return statistics over all ranks since the last call.

        Returns:
            ``score`` and ``uniform_score``, mean logits of hard and of random negatives; ``hard_among_top``, share of
            hard negatives among the ten with the highest scores of each query, in steps with hard negatives; and the
            keys of ``NegativeTelemetry.report`` such as ``hard_share``, ``rejected`` and ``delivered``.
        """
        hard, random, hard_count, random_count, hard_in_top, top = sum_over(self._ranks, self._sums.tolist())
        self._sums.zero_()
        line: Record = {
            "score": ratio(hard, hard_count),
            "uniform_score": ratio(random, random_count),
            "hard_among_top": ratio(hard_in_top, top),
            **hardness_report(self._sources, self._count, self._ranks),
        }
        clients: list[PoolClient[Any, Any]] = [client for source in self._sources for client in source.pool_clients()]
        return line | (delivery_report(clients, self._ranks) if clients else {})
