"""Messages between relations that meet in an entity, without an edge for every pair of relations.

Relation i of query b sums over the entities v of which it is a relation, and over the other relations j of v, the
messages f[b, v] x[b, j]. The sum factorises: with S[v], the sum of x over the relations of v, relation i gathers
f[v] (S[v] - x[i]) from v. An entity with k relations costs 2k rows of memory traffic and not k² messages, so hubs do
not matter. A relation may also be its own partner; nothing is then subtracted.

On CPU one compiled pass goes over the entities and holds S of one of them; one thread processes a query, so results are
deterministic. On GPU the same sums are two passes of ``sums_triton``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu, part_of_kernel
from distkg.kernels.message_passing.edges import Rows, offsets_of, sorted_by
from distkg.kernels.message_passing.large_tensors import empty
from distkg.kernels.message_passing.sums import passes_for
from distkg.kernels.threads import for_each
from distkg.kernels.vectors.simd import LANES, load_rest, load_whole, multiply_add, spread, store_rest, store_whole


@dataclass(frozen=True, eq=False)
class Incidence:
    """Pairs (entity, relation), sorted by entity.

    Attributes:
        relations: number of relations.
        offsets: int64 [entities + 1]; the pairs of entity v are ``offsets[v] … offsets[v + 1] - 1``.
        relation: int32 [P], the relation of each pair.
    """

    relations: int
    offsets: Tensor
    relation: Tensor
    _elsewhere: dict[torch.device, Incidence] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.relation)

    @property
    def entities(self) -> int:
        return len(self.offsets) - 1

    @property
    def device(self) -> torch.device:
        return self.relation.device

    def to(self, device: torch.device) -> Incidence:
        """Return the pairs on a device; the copy is cached."""
        if device == self.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = Incidence(self.relations, self.offsets.to(device), self.relation.to(device))
        return self._elsewhere[device]

    @cached_property
    def entity(self) -> Tensor:
        """Entity of each pair: int32 [P]."""
        rows = torch.arange(self.entities, device=self.device, dtype=torch.int32)
        return torch.repeat_interleave(rows, self.offsets.diff(), output_size=len(self))

    @cached_property
    def by_entity(self) -> Rows:
        """Pairs grouped by entity; both other columns are the relation."""
        return Rows(self.offsets, self.relation, self.relation, None)

    @cached_property
    def by_relation(self) -> Rows:
        """Pairs grouped by relation; both other columns are the entity."""
        order = sorted_by(self.relation)
        entity = self.entity[order]
        return Rows(offsets_of(self.relation[order], self.relations), entity, entity, order.int())


def propagate_meetings(
    states: Tensor, factors: Tensor, incidence: Incidence, weight: Tensor | None = None, *, with_itself: bool
) -> Tensor:
    """Sum the messages that each relation gathers from the relations that it meets: float32 [B, relations, d].

    Differentiable in states and factors.

    Args:
        states: float32 [B, relations, d].
        factors: float32 [B, entities, d], or [1, entities, d] if shared by all queries.
        weight: float32 [P] of the pairs; the weight of a message is the product of those of its two pairs. None for 1
            everywhere.
        with_itself: whether a relation meets itself in each of its entities.
    """
    incidence = incidence.to(states.device)
    weight = torch.ones(len(incidence), device=states.device) if weight is None else weight.to(states.device)
    if states.dtype == torch.float32 and on_cpu(states, factors, weight):
        sums: Tensor = _Meetings.apply(states, factors, weight, incidence, with_itself)
        return sums
    totals = _summed(states, weight, incidence, by_entity=True)
    gathered = _summed(factors * totals, weight, incidence, by_entity=False)
    if with_itself:
        return gathered
    return gathered - states * _summed(factors.expand(len(states), -1, -1), weight.square(), incidence, by_entity=False)


def _summed(values: Tensor, weight: Tensor, incidence: Incidence, *, by_entity: bool) -> Tensor:
    """Return the weighted sums of values over the pairs of each entity, or of each relation."""
    sums: Tensor = _Sums.apply(values, weight, incidence, by_entity)
    return sums


class _Sums(torch.autograd.Function):
    """Product with the incidence matrix [entities, relations], or with its transpose."""

    @staticmethod
    def forward(ctx, values, weight, incidence, by_entity):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight)
        ctx.incidence, ctx.by_entity = incidence, by_entity
        rows = incidence.by_entity if by_entity else incidence.by_relation
        values, weight = values.contiguous(), rows.ordered(weight)
        passes = passes_for(values, weight)
        out = empty(values, len(values), len(rows), values.shape[2])
        if passes is None:
            row = torch.arange(len(rows), device=values.device)
            row = torch.repeat_interleave(row, rows.offsets.diff(), output_size=len(incidence))
            return out.zero_().index_add_(1, row, (values[:, rows.first.long()] * weight[:, None]).to(values.dtype))
        passes.gather(rows, weight, values, values, "first", out)
        return out

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (weight,) = ctx.saved_tensors
        return _summed(gradient, weight, ctx.incidence, by_entity=not ctx.by_entity), None, None, None


class _Meetings(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, factors, weight, incidence, with_itself):  # type: ignore[no-untyped-def]
        states, factors = states.contiguous(), factors.contiguous()
        ctx.save_for_backward(states, factors, weight)
        ctx.incidence, ctx.with_itself = incidence, with_itself
        out = torch.zeros_like(states)
        _for_each_query(_gather, incidence, weight, with_itself, states, factors, out)
        return out

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        states, factors, weight = ctx.saved_tensors
        to_states = torch.zeros_like(states)
        of_queries = empty(factors, len(states), *factors.shape[1:])
        arrays = states, factors, gradient.contiguous(), to_states, of_queries
        _for_each_query(_gather_back, ctx.incidence, weight, ctx.with_itself, *arrays)
        to_factors = of_queries if len(factors) == len(states) else of_queries.sum(0, keepdim=True)
        return to_states, to_factors, None, None, None


def _for_each_query(run, incidence, weight, with_itself, states, factors, *more):  # type: ignore[no-untyped-def]
    graph = incidence.offsets.numpy(), incidence.relation.numpy(), weight.detach().numpy()
    x, f, others = states.detach().numpy(), factors.detach().numpy(), [tensor.detach().numpy() for tensor in more]
    own, apart = int(len(f) > 1), np.float32(not with_itself)
    for_each(
        [(i,) for i in range(len(x))], lambda i: run(*graph, apart, x[i], f[i * own], *(other[i] for other in others))
    )


# The loops over entities are inside, because numba counts references to the arrays at every call.
@part_of_kernel
def _columns(load, store, offsets, relation, weight, apart, x, f, out, c, left):  # type: ignore[no-untyped-def]
    """Add the messages of ``left`` columns from c on."""
    for v in range(offsets.shape[0] - 1):
        total = spread(np.float32(0))
        for p in range(offsets[v], offsets[v + 1]):
            total = multiply_add(spread(weight[p]), load(x, relation[p], c, left), total)
        factor = load(f, v, c, left)
        for p in range(offsets[v], offsets[v + 1]):
            i, own = relation[p], spread(weight[p])
            others = total - spread(apart) * own * load(x, i, c, left)
            store(out, i, c, left, multiply_add(own * factor, others, load(out, i, c, left)))


@part_of_kernel
def _columns_back(load, store, offsets, relation, weight, apart, x, f, g, to_x, to_f, c, left):  # type: ignore[no-untyped-def]
    """Add the gradients of the messages of ``left`` columns from c on."""
    for v in range(offsets.shape[0] - 1):
        total = spread(np.float32(0))
        pulled, itself = total, total
        for p in range(offsets[v], offsets[v + 1]):
            own, gradient = spread(weight[p]), load(g, relation[p], c, left)
            state = own * load(x, relation[p], c, left)
            total = total + state
            pulled = multiply_add(own, gradient, pulled)
            itself = multiply_add(own * gradient, state, itself)
        store(to_f, v, c, left, pulled * total - spread(apart) * itself)
        factor = load(f, v, c, left)
        for p in range(offsets[v], offsets[v + 1]):
            i, own = relation[p], spread(weight[p])
            others = pulled - spread(apart) * own * load(g, i, c, left)
            store(to_x, i, c, left, multiply_add(own * factor, others, load(to_x, i, c, left)))


@kernel
def _gather(offsets, relation, weight, apart, x, f, out):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    whole = width - width % LANES
    for c in range(0, whole, LANES):
        _columns(load_whole, store_whole, offsets, relation, weight, apart, x, f, out, c, LANES)
    if whole < width:
        _columns(load_rest, store_rest, offsets, relation, weight, apart, x, f, out, whole, width - whole)


@kernel
def _gather_back(offsets, relation, weight, apart, x, f, g, to_x, to_f):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    whole = width - width % LANES
    for c in range(0, whole, LANES):
        _columns_back(load_whole, store_whole, offsets, relation, weight, apart, x, f, g, to_x, to_f, c, LANES)
    if whole < width:
        left = width - whole
        _columns_back(load_rest, store_rest, offsets, relation, weight, apart, x, f, g, to_x, to_f, whole, left)
