"""Typed edges of a graph, on any device, and the orders in which passes over them read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

PIECE = 128  # edges of a piece of a row, at most


@dataclass(frozen=True, eq=False)
class Edges:
    """Typed edges, sorted by the node that gathers; what is made of them is made once.

    Attributes:
        nodes: how many nodes.
        num_relations: relations of edges, inverses counted apart.
        dst, src: int32 [E], nodes u and v.
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
        """Edges in any order, integer [E] each; their order becomes that of (dst, relation, src)."""
        order = sorted_by(src, relation, dst)
        dst = dst[order].int()
        return cls(nodes, num_relations, dst, src[order].int(), relation[order].int(), offsets_of(dst, nodes))

    def __len__(self) -> int:
        return len(self.relation)

    @property
    def device(self) -> torch.device:
        return self.relation.device

    def to(self, device: torch.device) -> Edges:
        """The same edges there; a copy is made once for each device."""
        if device == self.device:
            return self
        if device not in self._elsewhere:
            sides = (side.to(device) for side in (self.dst, self.src, self.relation, self.offsets))
            self._elsewhere[device] = Edges(self.nodes, self.num_relations, *sides)
        return self._elsewhere[device]

    def degrees(self, weight: Tensor | None = None) -> Tensor:
        """Edges by which each node gathers, those of ``weight`` 0 left out: int64 [nodes]."""
        if weight is None:
            return self.offsets.diff()
        counted = torch.zeros(len(self) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(weight.to(self.device) != 0, 0, out=counted[1:])
        return counted[self.offsets].diff()

    def keys_of(self, dst: Tensor, relation: Tensor, src: Tensor) -> Tensor:
        """One number, int64, for each edge of int64 sides: in the order of edges."""
        return (dst * self.num_relations + relation) * self.nodes + src

    @cached_property
    def keys(self) -> Tensor:
        """Of all edges, ascending: int64 [E]."""
        return self.keys_of(self.dst.long(), self.relation.long(), self.src.long())

    @cached_property
    def by_dst(self) -> Rows:
        """First src, second relation."""
        return Rows(self.offsets, self.src, self.relation, None)

    @cached_property
    def by_src(self) -> Rows:
        """First dst, second relation."""
        order = sorted_by(self.src)
        return Rows(offsets_of(self.src[order], self.nodes), self.dst[order], self.relation[order], order.int())

    @cached_property
    def by_relation(self) -> Rows:
        """First dst, second src."""
        order = sorted_by(self.src, self.relation)
        return Rows(offsets_of(self.relation[order], self.num_relations), self.dst[order], self.src[order], order.int())


@dataclass(frozen=True, eq=False)
class Rows:
    """Edges in the order of one of their sides, so that all edges of a row stand together.

    Attributes:
        offsets: int64 [rows + 1], where the edges of each row begin.
        first, second: int32 [E], the other two sides.
        order: int32 [E], their places in ``Edges``; None where they stand as there.
    """

    offsets: Tensor
    first: Tensor
    second: Tensor
    order: Tensor | None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def ordered(self, values: Tensor) -> Tensor:
        """Values [E] of ``Edges`` in the order of these rows."""
        return values if self.order is None else values[self.order]

    @cached_property
    def pieces(self) -> Pieces:
        """Cut so that no piece has more than ``PIECE`` edges."""
        degrees, device = self.offsets.diff(), self.offsets.device
        counts = ((degrees + PIECE - 1) // PIECE).clamp_min(1)
        row = torch.repeat_interleave(torch.arange(len(self), device=device), counts)
        before = torch.cumsum(counts, 0) - counts
        within = torch.arange(len(row), device=device) - before[row]
        several = counts > 1
        place = torch.cumsum(several[row], 0) - 1
        hubs = several.nonzero()[:, 0]
        return Pieces(
            starts=torch.cat([self.offsets[row] + PIECE * within, self.offsets[-1:]]),
            target=torch.where(several[row], -1 - place, row).int(),
            hubs=hubs.int(),
            hub_starts=torch.cat([hubs.new_zeros(1), counts[hubs].cumsum(0)]).int(),
            partial=int(counts[hubs].sum()),
        )


@dataclass(frozen=True, eq=False)
class Pieces:
    """Edges of rows in pieces of about one size, so that a hub keeps no single program of a GPU busy.

    Attributes:
        starts: int64 [p + 1], where the edges of each piece begin; a row without edges is an empty piece.
        target: int32 [p], the row that a piece is all of, or -1 - i for the i-th partial sum.
        hubs: int32 [h], rows of several pieces.
        hub_starts: int32 [h + 1], where the partial sums of each hub begin.
        partial: how many partial sums.
    """

    starts: Tensor
    target: Tensor
    hubs: Tensor
    hub_starts: Tensor
    partial: int

    def __len__(self) -> int:
        return len(self.target)


def sorted_by(*sides: Tensor) -> Tensor:
    """The order, int64 [E], that sorts by the last side, then by the one before it, and so on; equal ones stay."""
    order = torch.argsort(sides[0], stable=True)
    for side in sides[1:]:
        order = order[torch.argsort(side[order], stable=True)]
    return order


def offsets_of(side: Tensor, rows: int) -> Tensor:
    """Where the edges of each row begin, of a side in ascending order: int64 [rows + 1]."""
    return torch.searchsorted(side, torch.arange(rows + 1, dtype=side.dtype, device=side.device))
