"""Moments of gathered messages on GPU (Triton), forward and backward; see ``moments``.

Works on pieces of rows and is deterministic, like ``sums_triton``. In the backward pass a program sums, for a piece of
one src or one kind, the gradients of its messages by the moments of each edge's dst.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from distkg.kernels.message_passing.messages import BACK, MESSAGE, Given
from distkg.kernels.message_passing.sums_triton import columns, combined, join, message, read, strides, tile_of, write

_TILE = 256  # numbers of a tile, fewer than for sums since more values are kept for each
_NOBODY: tl.constexpr = tl.constexpr(-1)
_LAST: tl.constexpr = tl.constexpr(2**31 - 1)  # above every edge


def gather(given: Given, found: Tensor, whose: Tensor) -> None:
    """Triton form of ``MomentPasses.gather``."""
    edges, weight, states, relations, how = given
    (_, batch, nodes, width), pieces = found.shape, edges.by_dst.pieces
    if not found.numel():
        return
    blocks, tile = tile_of(width, _TILE)
    partial = found.new_empty(4, batch, pieces.partial, width)
    by = whose.new_empty(2, batch, pieces.partial, width)
    with torch.cuda.device_of(found):
        _gather[(len(pieces), batch, blocks)](
            states, relations, edges.src, edges.relation, weight, pieces.starts, pieces.target, found, whose, partial,
            by,
            *strides(states, relations), nodes, pieces.partial, HOW=MESSAGE[how], **tile,
        )  # fmt: skip
        if len(pieces.hubs):
            _join[(len(pieces.hubs), batch, blocks)](
                partial, by, pieces.hubs, pieces.hub_starts, found, whose, nodes, pieces.partial, **tile
            )


def gather_back(
    given: Given, gradients: Sequence[Tensor | None], whose: Tensor, to_states: Tensor, to_relations: Tensor
) -> None:
    """Triton form of ``MomentPasses.gather_back``."""
    edges, weight, states, relations, how = given
    for rows, out, of_relations in ((edges.by_src, to_states, False), (edges.by_relation, to_relations, True)):
        (batch, _, width), pieces = out.shape, rows.pieces
        if not out.numel():
            continue
        blocks, tile = tile_of(width, _TILE)
        partial = out.new_empty(batch, pieces.partial, width, dtype=torch.float32)
        with torch.cuda.device_of(out):
            _gather_back[(len(pieces), batch, blocks)](
                states, relations, edges.dst, edges.src, edges.relation, rows.order, weight, pieces.starts,
                pieces.target, *gradients, whose, out, partial, *strides(states, relations), edges.nodes, len(rows),
                pieces.partial, HOW=MESSAGE[how], BACK=BACK[how], OF_RELATIONS=of_relations, **tile,
            )  # fmt: skip
            join(partial, pieces, out)


@triton.jit
def _higher(value, who, there, best, best_who):  # type: ignore[no-untyped-def]
    """Element-wise maximum of two tiles, and its edge; the earlier edge of equals."""
    higher = there & ((best_who == _NOBODY) | (value > best))
    return tl.where(higher, value, best), tl.where(higher, who, best_who)


@triton.jit
def _highest(value, who):  # type: ignore[no-untyped-def]
    """Maximum over the first dimension of a tile, and its edge, the earliest of equals; 0 if there is none."""
    known = tl.where(who == _NOBODY, float("-inf"), value)
    best = tl.max(known, 0)
    first = tl.min(tl.where((known == best[None, :, :]) & (who != _NOBODY), who, _LAST), 0)
    # At most one of the numbers belongs to that edge.
    return tl.sum(tl.where(who == first[None, :, :], value, 0.0), 0), tl.where(first == _LAST, _NOBODY, first)


@triton.jit
def _write_all(  # type: ignore[no-untyped-def]
    found, whose, row, count, part, column, width, half, total, squares, largest, most, lowest, least
):
    """Reduce tiles over their first dimension, and write the four moments to row ``row`` of each."""
    high, high_who = _highest(largest, most)
    low, low_who = _highest(lowest, least)
    all_of = tl.sum(total, 0)
    broken = all_of != all_of  # no comparison sees NaN
    write(found, row, part, column, width, half, all_of)
    write(found, row + count, part, column, width, half, tl.sum(squares, 0))
    write(found, row + 2 * count, part, column, width, half, tl.where(broken, all_of, high))
    write(found, row + 3 * count, part, column, width, half, tl.where(broken, all_of, -low))
    write(whose, row, part, column, width, half, high_who)
    write(whose, row + count, part, column, width, half, low_who)


@triton.jit
def _gather(  # type: ignore[no-untyped-def]
    states, relations, src, kind, weight, starts, target, found, whose, partial, by,
    states_stride, relations_stride, rows, parts, width, half,
    HOW: tl.constexpr, EDGES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    piece, query, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    part, column = columns(tl.program_id(2), half, HALF)
    states += query * states_stride
    relations += query * relations_stride
    total = tl.zeros((EDGES, 2, HALF), tl.float32)
    squares, largest, lowest = total, total, total
    most = tl.full((EDGES, 2, HALF), _NOBODY, tl.int32)
    least = most
    end = tl.load(starts + piece + 1)
    for low in range(tl.load(starts + piece), end, EDGES):
        edge = (low + tl.arange(0, EDGES)).to(tl.int32)
        share = tl.load(weight + edge, mask=edge < end, other=0.0).to(tl.float32)
        there = share != 0
        v = tl.load(src + edge, mask=there, other=0)
        k = tl.load(kind + edge, mask=there, other=0)
        messages = share[:, None, None] * message(states, v, relations, k, part, column, there, width, half, HOW)
        total += messages
        squares += messages * messages
        largest, most = _higher(messages, edge[:, None, None], there[:, None, None], largest, most)
        lowest, least = _higher(-messages, edge[:, None, None], there[:, None, None], lowest, least)
    row = tl.load(target + piece)
    if row >= 0:
        _write_all(
            found, whose, query * rows + row, batch * rows, part, column, width, half,
            total, squares, largest, most, lowest, least,
        )  # fmt: skip
    else:
        _write_all(
            partial, by, query * parts - 1 - row, batch * parts, part, column, width, half,
            total, squares, largest, most, lowest, least,
        )  # fmt: skip


@triton.jit
def _join(  # type: ignore[no-untyped-def]
    partial, by, hubs, hub_starts, found, whose, rows, parts, width, half, EDGES: tl.constexpr, HALF: tl.constexpr
):
    hub, query, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    part, column = columns(tl.program_id(2), half, HALF)
    total = tl.zeros((EDGES, 2, HALF), tl.float32)
    squares, largest, lowest = total, total, total
    most = tl.full((EDGES, 2, HALF), _NOBODY, tl.int32)
    least = most
    end, count = tl.load(hub_starts + hub + 1), batch * parts
    for low in range(tl.load(hub_starts + hub), end, EDGES):
        place = low + tl.arange(0, EDGES)
        there, row = place < end, query * parts + place
        total += read(partial, row, part, column, there, width, half)
        squares += read(partial, row + count, part, column, there, width, half)
        high = read(partial, row + 2 * count, part, column, there, width, half)
        deep = read(partial, row + 3 * count, part, column, there, width, half)
        high_who = _read_who(by, row, part, column, there, width, half)
        deep_who = _read_who(by, row + count, part, column, there, width, half)
        largest, most = _higher(high, high_who, high_who != _NOBODY, largest, most)
        lowest, least = _higher(-deep, deep_who, deep_who != _NOBODY, lowest, least)
    row = query * rows + tl.load(hubs + hub)
    _write_all(found, whose, row, batch * rows, part, column, width, half, total, squares, largest, most, lowest, least)


@triton.jit
def _read_who(whose, row, part, column, there, width, half):  # type: ignore[no-untyped-def]
    place = part * half + column
    inside = there[:, None, None] & (column < half) & (place < width)
    return tl.load(whose + row.to(tl.int64)[:, None, None] * width + place, mask=inside, other=-1)


@triton.jit
def _pull(  # type: ignore[no-untyped-def]
    states, v, relations, k, share, edge, to_total, to_squares, to_largest, to_smallest, whose, row, count,
    part, column, there, width, half, HOW: tl.constexpr,
):  # fmt: skip
    """Gradients of messages, given those of the moments of the gathering rows: [EDGES, 2, HALF]."""
    messages = share[:, None, None] * message(states, v, relations, k, part, column, there, width, half, HOW)
    pull = tl.zeros_like(messages)
    if to_total is not None:
        pull += read(to_total, row, part, column, there, width, half)
    if to_squares is not None:
        pull += 2 * messages * read(to_squares, row, part, column, there, width, half)
    if to_largest is not None:
        own = _read_who(whose, row, part, column, there, width, half) == edge[:, None, None]
        pull += tl.where(own, read(to_largest, row, part, column, there, width, half), 0.0)
    if to_smallest is not None:
        own = _read_who(whose, row + count, part, column, there, width, half) == edge[:, None, None]
        pull += tl.where(own, read(to_smallest, row, part, column, there, width, half), 0.0)
    return pull


@triton.jit
def _gather_back(  # type: ignore[no-untyped-def]
    states, relations, dst, src, kind, order, weight, starts, target,
    to_total, to_squares, to_largest, to_smallest, whose, out, partial,
    states_stride, relations_stride, nodes, rows, parts, width, half,
    HOW: tl.constexpr, BACK: tl.constexpr, OF_RELATIONS: tl.constexpr, EDGES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    piece, query, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    part, column = columns(tl.program_id(2), half, HALF)
    states += query * states_stride
    relations += query * relations_stride
    sums = tl.zeros((EDGES, 2, HALF), tl.float32)
    end = tl.load(starts + piece + 1)
    for low in range(tl.load(starts + piece), end, EDGES):
        place = low + tl.arange(0, EDGES)
        edge = tl.load(order + place, mask=place < end, other=0)
        share = tl.load(weight + edge, mask=place < end, other=0.0).to(tl.float32)
        there = share != 0
        row = query * nodes + tl.load(dst + edge, mask=there, other=0)
        v = tl.load(src + edge, mask=there, other=0)
        k = tl.load(kind + edge, mask=there, other=0)
        pull = _pull(
            states, v, relations, k, share, edge, to_total, to_squares, to_largest, to_smallest, whose, row,
            batch * nodes, part, column, there, width, half, HOW,
        )  # fmt: skip
        other = pull
        if BACK == "turned back":
            other = _pull(
                states, v, relations, k, share, edge, to_total, to_squares, to_largest, to_smallest, whose, row,
                batch * nodes, 1 - part, column, there, width, half, HOW,
            )  # fmt: skip
        if OF_RELATIONS:
            back = combined(pull, other, states, v, part, column, there, width, half, BACK)
        else:
            back = combined(pull, other, relations, k, part, column, there, width, half, BACK)
        sums += share[:, None, None] * back
    row, total = tl.load(target + piece), tl.sum(sums, 0)
    if row >= 0:
        write(out, query * rows + row, part, column, width, half, total)
    else:
        write(partial, query * parts - 1 - row, part, column, width, half, total)
