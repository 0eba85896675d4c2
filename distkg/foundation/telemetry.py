"""How hard the negatives of a foundation model were since the last report, and how they came."""

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

TOP = 10  # negatives of a query that weigh most


class HardnessTelemetry:
    """Reports on hard negatives of a training on one graph or several; ``report`` is collective."""

    def __init__(self, sources: Sequence[NegativeSource], count: int, ranks: Ranks) -> None:
        """``sources`` are those of the graphs, in all of which hard negatives are the first ones."""
        self._sources, self._count, self._ranks = sources, count, ranks
        self._sums = torch.zeros(6, dtype=torch.float64)

    def see(self, scores: Tensor, mask: Tensor, hard: int) -> None:
        """A step's scores float32 [b, K] of negatives, of which the first ``hard`` are hard."""
        scores, meant = scores.detach(), ~mask
        parts = slice(None, hard), slice(hard, None)
        sums = [float((scores[:, part] * meant[:, part]).sum()) for part in parts]
        counts = [float(meant[:, part].sum()) for part in parts]
        top = scores.masked_fill(mask, -torch.inf).topk(min(TOP, scores.shape[1]), dim=1).indices
        among = [float((top < hard).sum()), float(top.numel())] if hard else [0.0, 0.0]
        self._sums += torch.tensor([*sums, *counts, *among], dtype=torch.float64)

    def report(self) -> Record:
        """Over all ranks, since the last call: ``score`` and ``uniform_score``, mean logits of hard and of random
        negatives; ``hard_among_top``, share of hard ones among the ten of each query that weigh most, in steps that had
        some; and as of ``NegativeTelemetry.report`` ``hard_share``, ``rejected``, ``delivered`` and so on."""
        hard, random, hard_count, random_count, among, top = sum_over(self._ranks, self._sums.tolist())
        self._sums.zero_()
        line: Record = {
            "score": ratio(hard, hard_count),
            "uniform_score": ratio(random, random_count),
            "hard_among_top": ratio(among, top),
            **hardness_report(self._sources, self._count, self._ranks),
        }
        clients: list[PoolClient[Any, Any]] = [client for source in self._sources for client in source.pool_clients()]
        return line | (delivery_report(clients, self._ranks) if clients else {})
