"""Typed edges of a graph on any device, sorted by destination, by source and by relation."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

PIECE = 128  # largest number of edges of a piece


@dataclass(frozen=True, eq=False)
class Edges:
    """Typed edges, sorted by destination; other orders are computed once.

    Attributes:
        nodes: number of nodes.
        num_relations: number of edge types, including inverses.
        dst, src: int32 [E], nodes u (which gathers) and v.
        relation: int32 [E].
        offsets: int64 [nodes + 1]; the edges of node u are ``offsets[u] … offsets[u + 1] - 1``.
    """

    nodes: int
    num_relations: int
    dst: Tensor
    src: Tensor
    relation: Tensor
    offsets: Tensor
    _elsewhere: dict[torch.device, Edges] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, dst: Tensor, relation: Tensor, src: Tensor, nodes: int, num_relations: int) -> Edges:
        """Sort edges, given in any order as integer [E] each, by (dst, relation, src)."""
        order = sorted_by(src, relation, dst)
        dst = dst[order].int()
        return cls(nodes, num_relations, dst, src[order].int(), relation[order].int(), offsets_of(dst, nodes))

    def __len__(self) -> int:
        return len(self.relation)

    @property
    def device(self) -> torch.device:
        return self.relation.device

    def to(self, device: torch.device) -> Edges:
        """Return the edges on a device; the copy is cached."""
        if device == self.device:
            return self
        if device not in self._elsewhere:
            sides = (side.to(device) for side in (self.dst, self.src, self.relation, self.offsets))
            self._elsewhere[device] = Edges(self.nodes, self.num_relations, *sides)
        return self._elsewhere[device]

    def degrees(self, weight: Tensor | None = None) -> Tensor:
        """Count the incoming edges of each node, without edges of ``weight`` 0: int64 [nodes]."""
        if weight is None:
            return self.offsets.diff()
        counted = torch.zeros(len(self) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(weight.to(self.device) != 0, 0, out=counted[1:])
        return counted[self.offsets].diff()

    def keys_of(self, dst: Tensor, relation: Tensor, src: Tensor) -> Tensor:
        """Return a sortable key int64 for each edge, given as int64 tensors; keys have the order of the edges."""
        return (dst * self.num_relations + relation) * self.nodes + src

    @cached_property
    def keys(self) -> Tensor:
        """Keys of all edges, ascending: int64 [E]."""
        return self.keys_of(self.dst.long(), self.relation.long(), self.src.long())

    @cached_property
    def by_dst(self) -> Rows:
        """Edges grouped by dst; ``first`` is src, ``second`` is relation."""
        return Rows(self.offsets, self.src, self.relation, None)

    @cached_property
    def by_src(self) -> Rows:
        """Edges grouped by src; ``first`` is dst, ``second`` is relation."""
        order = sorted_by(self.src)
        return Rows(offsets_of(self.src[order], self.nodes), self.dst[order], self.relation[order], order.int())

    @cached_property
    def by_relation(self) -> Rows:
        """Edges grouped by relation; ``first`` is dst, ``second`` is src."""
        order = sorted_by(self.src, self.relation)
        return Rows(offsets_of(self.relation[order], self.num_relations), self.dst[order], self.src[order], order.int())


@dataclass(frozen=True, eq=False)
class Rows:
    """Edges grouped by one of dst, src and relation; a group is a row.

    Attributes:
        offsets: int64 [rows + 1], start of the edges of each row.
        first, second: int32 [E], the other two columns.
        order: int32 [E], indices into ``Edges``; None if the order is the same.
    """

    offsets: Tensor
    first: Tensor
    second: Tensor
    order: Tensor | None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def ordered(self, values: Tensor) -> Tensor:
        """Permute values [E] from the order of ``Edges`` to that of these rows."""
        return values if self.order is None else values[self.order]

    @cached_property
    def pieces(self) -> Pieces:
        """Pieces of the rows, of at most ``PIECE`` edges each."""
        degrees, device = self.offsets.diff(), self.offsets.device
        counts = ((degrees + PIECE - 1) // PIECE).clamp_min(1)
        row = torch.repeat_interleave(torch.arange(len(self), device=device), counts)
        before = torch.cumsum(counts, 0) - counts
        within = torch.arange(len(row), device=device) - before[row]
        is_cut = counts > 1
        place = torch.cumsum(is_cut[row], 0) - 1
        hubs = is_cut.nonzero()[:, 0]
        return Pieces(
            starts=torch.cat([self.offsets[row] + PIECE * within, self.offsets[-1:]]),
            target=torch.where(is_cut[row], -1 - place, row).int(),
            hubs=hubs.int(),
            hub_starts=torch.cat([hubs.new_zeros(1), counts[hubs].cumsum(0)]).int(),
            partial=int(counts[hubs].sum()),
        )


@dataclass(frozen=True, eq=False)
class Pieces:
    """Rows cut into pieces of similar size, so that a hub does not occupy a single GPU program for long.

    Attributes:
        starts: int64 [p + 1], start of the edges of each piece; a row without edges is an empty piece.
        target: int32 [p], row of a piece that is a whole row, or -1 - i for the i-th partial sum.
        hubs: int32 [h], rows of several pieces.
        hub_starts: int32 [h + 1], start of the partial sums of each hub.
        partial: number of partial sums.
    """

    starts: Tensor
    target: Tensor
    hubs: Tensor
    hub_starts: Tensor
    partial: int

    def __len__(self) -> int:
        return len(self.target)


def sorted_by(*sides: Tensor) -> Tensor:
    """Return the stable order int64 [E] that sorts by the last column, then the one before it, and so on."""
    order = torch.argsort(sides[0], stable=True)
    for side in sides[1:]:
        order = order[torch.argsort(side[order], stable=True)]
    return order


def offsets_of(side: Tensor, rows: int) -> Tensor:
    """Return the start of each row in a sorted column: int64 [rows + 1]."""
    return torch.searchsorted(side, torch.arange(rows + 1, dtype=side.dtype, device=side.device))
