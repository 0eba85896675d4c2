"""The entity table, a contiguous range of rows on each rank; the whole of it is never on one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distkg.kernels.rows import add_rows
from distkg.sharding.exchange import Route, plan_routes
from distkg.sharding.optimizers import RowOptimizer
from distkg.sharding.ranks import Ranks, Work
from distkg.sharding.shards import Shards

_CACHED_ROWS = 1024  # rows that stay in cache between the optimizer's pass and the addition; bounds float32 copies


@dataclass(frozen=True)
class Arriving:
    """Rows under way; ``wait`` gives them as float32."""

    rows: Tensor
    work: Work
    source: Tensor  # kept alive until the sending ends

    def wait(self) -> Tensor:
        self.work.wait()
        return self.rows.float()


@dataclass(frozen=True)
class Departing:
    """Gradients under way to their owners."""

    route: Route
    gradients: Tensor
    work: Work
    source: Tensor


class ShardedTable:
    """``shards.rows`` rows of ``width`` floats; this rank holds ``local`` and its optimizer state.

    Attributes:
        local: float32 or bfloat16 [rows of this rank, width].
        optimizer: state of the local rows; None where the table is only read.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        optimizer: type[RowOptimizer] | None,
        ranks: Ranks,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shards = Shards(rows, ranks.size)
        self.width = width
        self.ranks = ranks
        self.local = torch.zeros(self.shards.count(ranks.rank), width, dtype=dtype, device=ranks.device)
        self.optimizer = optimizer(len(self.local), width, ranks.device) if optimizer else None
        self._every_row = torch.arange(len(self.local), device=ranks.device)

    def fetch(self, route: Route) -> Arriving:
        """Begin to bring the rows of ``route`` here: float32 [len(route.ids), width] on arrival; collective."""
        served = self.local.index_select(0, route.serve)
        if self.ranks.size == 1:
            return Arriving(served, Work(), served)
        rows = served.new_empty(len(route.ids), self.width)
        work = self.ranks.all_to_all(rows, served, route.ask, route.serve_counts, wait=False)
        return Arriving(rows, work, served)

    def push(self, route: Route, gradients: Tensor) -> Departing:
        """Begin to send gradients float32 [len(route.ids), width] to the owners of their rows; collective."""
        if self.ranks.size == 1:
            return Departing(route, gradients, Work(), gradients)
        received = gradients.new_empty(len(route.serve), self.width)
        work = self.ranks.all_to_all(received, gradients, route.serve_counts, route.ask, wait=False)
        return Departing(route, received, work, gradients)

    def collect(self, departing: Departing) -> tuple[Tensor, Tensor]:
        """Arrived gradients, duplicates summed: local row numbers int64 [u] and float32 [u, width]."""
        departing.work.wait()
        route = departing.route
        if self.ranks.size == 1:
            return route.updated, departing.gradients
        summed = departing.gradients.new_zeros(len(route.updated), self.width)
        add_rows(summed, route.position, departing.gradients)
        return route.updated, summed

    def update(self, ids: Tensor, gradients: Tensor, learning_rate: float) -> None:
        """One optimizer step for unique local rows; ``gradients`` [u, width] are overwritten."""
        if self.optimizer is None:
            raise TypeError("this table was made without an optimizer: it can be read, not trained")
        self.optimizer.step(ids, gradients, learning_rate)
        if self.local.dtype == torch.float32:
            add_rows(self.local, ids, gradients)
        else:
            self.local[ids] = round_stochastically(self.local[ids].float().add_(gradients))

    def update_all(self, gradients: Tensor, learning_rate: float) -> None:
        """One optimizer step for every local row, gradients [rows of this rank, width], which are overwritten."""
        for ids, part in zip(self._every_row.split(_CACHED_ROWS), gradients.split(_CACHED_ROWS), strict=True):
            self.update(ids, part, learning_rate)

    def gather(self, ids: Tensor) -> Tensor:
        """Rows float32 [k, width] of any ids int64 [k], repeated or not; no autograd; collective."""
        unique, position = torch.unique(ids, return_inverse=True)
        (route,) = plan_routes([unique], self.shards, self.ranks)
        return self.fetch(route).wait()[position]


def round_stochastically(values: Tensor) -> Tensor:
    """float32 -> bfloat16, up or down at random with the right mean.

    Rounding to nearest would lose every step smaller than 1/256 of its value, and training would stall.
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device)
    bits = (values.view(torch.int32) + noise).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)
