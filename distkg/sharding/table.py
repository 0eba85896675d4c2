"""Sharded entity table: each rank holds a contiguous range of rows, and no rank holds the whole table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distkg.kernels.gather_scatter import add_rows, gather_rows, sum_rows
from distkg.kernels.jit import on_cpu
from distkg.sharding.exchange import Route, plan_routes
from distkg.sharding.optimizers import RowOptimizer
from distkg.sharding.ranks import Exchange, Ranks
from distkg.sharding.row_storage import DeviceMemory, RowStorage
from distkg.sharding.shards import Shards

_CACHED_ROWS = 1024  # rows that stay in cache between optimizer and addition; bounds float32 copies
_ROWS_ON_DEVICE = 1 << 17  # rows that occupy a device; bounds float32 copies


@dataclass(frozen=True)
class RowFetch:
    """Handle of an asynchronous fetch of rows; ``wait`` returns float32 rows.

    Attributes:
        rows: result, in which this rank's own rows are filled in.
        parts: views of ``rows`` by owner.
        exchange: exchange of the rows of other ranks; None with one rank.
    """

    rows: Tensor
    parts: Sequence[Tensor] = ()
    exchange: Exchange | None = None

    def wait(self) -> Tensor:
        if self.exchange is not None:
            for place, arrived in zip(self.parts, self.exchange.wait(), strict=True):
                if len(arrived):
                    place.copy_(arrived)
            self.exchange.end()
        return self.rows.float()


@dataclass(frozen=True)
class GradientPush:
    """Handle of an asynchronous push of gradients to the owners of their rows.

    Attributes:
        route: route of the rows.
        own: gradients that this rank computed for its own rows.
        exchange: exchange of gradients from other ranks; None with one rank.
    """

    route: Route
    own: Tensor
    exchange: Exchange | None = None


class ExchangedRows:
    """Base class of tables of ``shards.rows`` rows of ``width`` floats, whose ranges of rows ranks exchange.

    Attributes:
        shards: range of rows of each rank.
        dtype: float32 or bfloat16.
    """

    shards: Shards
    width: int
    ranks: Ranks
    dtype: torch.dtype

    def read(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Return local rows int64 [k]: [k, width], written into ``out`` if it is given."""
        raise TypeError(f"{type(self).__name__} does not define read()")

    def fetch(self, route: Route) -> RowFetch:
        """Start to fetch the rows of ``route``: float32 [len(route.ids), width]; collective."""
        if self.ranks.size == 1:
            return RowFetch(self.read(route.serve))
        serve = route.serve.split(route.serve_counts)

        def take(rank: int, rows: Tensor) -> None:
            self.read(serve[rank], rows)

        rows = torch.empty(len(route.ids), self.width, dtype=self.dtype, device=self.ranks.device)
        exchange = self.ranks.exchange(take, route.serve_counts, route.ask, rows)
        self.ranks.traffic.rows += len(route.ids) - route.ask[self.ranks.rank]
        parts = rows.split(route.ask)
        take(self.ranks.rank, parts[self.ranks.rank])
        return RowFetch(rows, parts, exchange)

    def push(self, route: Route, gradients: Tensor) -> GradientPush:
        """Start to send gradients float32 [len(route.ids), width] to the owners of their rows; collective."""
        if self.ranks.size == 1:
            return GradientPush(route, gradients)
        parts = gradients.split(route.ask)
        exchange = self.ranks.exchange(
            lambda rank, rows: rows.copy_(parts[rank]), route.ask, route.serve_counts, gradients
        )
        return GradientPush(route, parts[self.ranks.rank], exchange)

    def collect(self, departing: GradientPush) -> tuple[Tensor, Tensor]:
        """Wait for gradients, and sum duplicates: local row numbers int64 [u] and gradients float32 [u, width].

        On a device, the last row number may be repeated; the gradients of repetitions are 0.
        """
        route = departing.route
        if departing.exchange is None:
            return route.updated, departing.own
        arrived = list(departing.exchange.wait())
        arrived[self.ranks.rank] = departing.own
        positions = route.position.split(route.serve_counts)
        summed = sum_rows(list(zip(positions, arrived, strict=True)), len(route.updated))
        departing.exchange.end()
        return route.updated, summed

    def gather(self, ids: Tensor) -> Tensor:
        """Gather rows float32 [k, width] of any ids int64 [k], with repetitions; no autograd; collective."""
        unique, position = torch.unique(ids, return_inverse=True)
        (route,) = plan_routes([unique], self.shards, self.ranks)
        return self.fetch(route).wait()[position]


class ShardedTable(ExchangedRows):
    """Table of ``shards.rows`` rows of ``width`` floats, of which this rank holds ``local`` and its optimizer state.

    Attributes:
        local: float32 or bfloat16 [rows of this rank, width].
        optimizer: optimizer of the local rows; None for a read-only table.
        storage: storage of both.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        optimizer: type[RowOptimizer] | None,
        ranks: Ranks,
        dtype: torch.dtype = torch.float32,
        storage: RowStorage | None = None,
        *,
        frozen: int = 0,
    ) -> None:
        """Allocate rows of zeros in ``storage``, by default in the memory of the ranks' device; updates of the first
        ``frozen`` rows are ignored."""
        self.shards = Shards(rows, ranks.size)
        self.width = width
        self.ranks = ranks
        self.storage = storage or DeviceMemory(ranks.device)
        self.dtype = dtype
        self.local = self.storage.zeros(self.shards.count(ranks.rank), width, dtype)
        self.optimizer = optimizer(len(self.local), width, ranks.device, self.storage) if optimizer else None
        low, high = self.shards.range(ranks.rank)
        self._frozen = min(max(frozen, low), high) - low

    def read(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        return gather_rows(self.local, rows, out)

    def rows(self, low: int, high: int) -> Tensor:
        """Return rows ``low … high - 1`` of this rank: a view [high - low, width]."""
        first = self.shards.range(self.ranks.rank)[0]
        return self.local[low - first : high - first]

    def take(self, ids: Tensor) -> Tensor:
        """Return the rows of ids int64 [k] of this rank: [k, width]."""
        return self.local[ids.to(self.local.device) - self.shards.range(self.ranks.rank)[0]]

    def prefetch(self, route: Route) -> None:
        """Announce that the rows of ``route`` will be fetched and updated, so that storage on disk reads them ahead."""
        self.storage.prefetch(route.updated)

    def update(self, ids: Tensor, gradients: Tensor, learning_rate: float) -> None:
        """Update unique local rows with the optimizer; ``gradients`` [u, width] are overwritten.

        On a device, sorted rows may be repeated: the gradient of the first occurrence counts, and the row is written as
        often, each time alike.
        """
        if self.optimizer is None:
            raise TypeError("this table was created without an optimizer, so it can be read but not trained")
        if not on_cpu(self.local, ids, gradients):
            first = torch.searchsorted(ids, ids)
            self._update_on_device(self.optimizer, ids, gradients.index_select(0, first), learning_rate)
            return
        if self._frozen:
            trained = ids >= self._frozen
            ids, gradients = ids[trained], gradients[trained]
        self.optimizer.step(ids, gradients, learning_rate)
        if self.local.dtype == torch.float32:
            add_rows(self.local, ids, gradients)
        else:
            self.local[ids] = round_stochastically(self.local[ids].float().add_(gradients))
        self.storage.write_back()

    def _update_on_device(self, optimizer: RowOptimizer, ids: Tensor, gradients: Tensor, learning_rate: float) -> None:
        """Update rows without a choice among them, whose number the host would wait for: frozen ones are put back."""
        tensors = [self.local, *optimizer.state.values()] if self._frozen else []
        before = [tensor.index_select(0, ids) for tensor in tensors]
        optimizer.step(ids, gradients, learning_rate)
        changed = self.local.index_select(0, ids).float().add_(gradients)
        self.local[ids] = changed if self.local.dtype == torch.float32 else round_stochastically(changed)
        for tensor, rows in zip(tensors, before, strict=True):
            tensor[ids] = torch.where((ids < self._frozen)[:, None], rows, tensor.index_select(0, ids))

    def update_all(self, gradients: Tensor, learning_rate: float) -> None:
        """Update all local rows with the optimizer; ``gradients`` [rows of this rank, width] are overwritten."""
        trained = gradients[self._frozen :]
        rows = _CACHED_ROWS if on_cpu(gradients) else _ROWS_ON_DEVICE
        for low in range(0, len(trained), rows):
            part, first = trained[low : low + rows], self._frozen + low
            self.update(torch.arange(first, first + len(part), device=gradients.device), part, learning_rate)


def round_stochastically(values: Tensor) -> Tensor:
    """Round float32 to bfloat16 stochastically, so that the expectation is exact.

    Rounding to nearest would lose every update smaller than 1/256 of its value, and training would stall.
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device)
    bits = (values.view(torch.int32) + noise).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)
