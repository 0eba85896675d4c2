"""Relational message passing on GPU (Triton): the passes of ``sums``, without a tensor of edges × batch × width.

A program sums a piece of one row, for one query and a part of the width. A second pass adds the partial sums of rows
with many edges, at most B × E / ``PIECE`` × d numbers. There are no atomic additions and every sum has a fixed order,
so results are deterministic: the same inputs give the same bits on the same kind of GPU.

A vector is read as two halves, which are the real and imaginary parts for ``rotate``: a tile is edges × 2 × numbers of
half a vector. States and relations may be float32, float16 or bfloat16; sums are float32.

Needs Triton, which comes with torch's CUDA builds. ``TRITON_INTERPRET=1`` runs the same kernels on CPU, slowly.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from distkg.compilation import keep_gpu_kernels
from distkg.kernels.message_passing.edges import Edges, Pieces, Rows
from distkg.kernels.message_passing.messages import Combination

keep_gpu_kernels()

_TILE = 512  # numbers of a tile: 16 per thread of a warp
_WIDEST = 64  # largest number of columns of a half per program
_MOST_EDGES = 32  # largest number of edges of a tile
_WARPS = 1


def tile_of(width: int, numbers: int = _TILE) -> tuple[int, dict[str, Any]]:
    """Return the number of blocks into which vectors of a width are cut, and the sizes of tiles."""
    half = (width + 1) // 2
    half_tile = min(_WIDEST, triton.next_power_of_2(half))
    edges = max(1, min(_MOST_EDGES, numbers // (2 * half_tile)))
    sizes = {"width": width, "half": half, "EDGES": edges, "HALF": half_tile, "num_warps": _WARPS}
    return -(-half // half_tile), sizes


def gather(rows: Rows, weight: Tensor, first: Tensor, second: Tensor, how: Combination, out: Tensor) -> None:
    """Triton form of ``Passes.gather``."""
    (batch, _, width), pieces = out.shape, rows.pieces
    if not out.numel():
        return
    blocks, tile = tile_of(width)
    partial = out.new_empty(batch, pieces.partial, width, dtype=torch.float32)
    with torch.cuda.device_of(out):
        _gather[(len(pieces), batch, blocks)](
            first, second, rows.first, rows.second, weight, pieces.starts, pieces.target, out, partial,
            *strides(first, second), len(rows), pieces.partial, HOW=how, **tile,
        )  # fmt: skip
        join(partial, pieces, out)


def join(partial: Tensor, pieces: Pieces, out: Tensor) -> None:
    """Add up partial sums [B, ·, d] into the hubs' rows of ``out`` [B, rows, d]."""
    batch, rows, width = out.shape
    if len(pieces.hubs):
        blocks, tile = tile_of(width)
        _join[(len(pieces.hubs), batch, blocks)](
            partial, pieces.hubs, pieces.hub_starts, out, rows, pieces.partial, **tile
        )


def to_weight(edges: Edges, states: Tensor, relations: Tensor, gradient: Tensor, how: Combination, out: Tensor) -> None:
    """Triton form of ``Passes.to_weight``."""
    if not len(edges):
        return
    _, tile = tile_of(states.shape[2])
    with torch.cuda.device_of(out):
        _products[(triton.cdiv(len(edges), tile["EDGES"]),)](
            states, relations, gradient, edges.dst, edges.src, edges.relation, out,
            *strides(states, relations), len(edges), len(states), HOW=how, **tile,
        )  # fmt: skip


def strides(first: Tensor, second: Tensor) -> tuple[int, int]:
    """Return the strides between the vectors of two queries; 0 if queries share the vectors."""
    return first.stride(0), second.stride(0) if len(second) > 1 else 0


@triton.jit
def columns(block, half, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """Half, 0 or 1, and column within the half: tiles [1, 2, 1] and [1, 1, HALF]."""
    return tl.arange(0, 2)[None, :, None], (block * HALF + tl.arange(0, HALF))[None, None, :]


@triton.jit
def read(matrix, row, part, column, there, width, half):  # type: ignore[no-untyped-def]
    """Load rows [EDGES] of a matrix [·, width] as float32, with zeros for missing edges or columns."""
    place = part * half + column
    inside = there[:, None, None] & (column < half) & (place < width)
    return tl.load(matrix + row.to(tl.int64)[:, None, None] * width + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def combined(x, other, second, row, part, column, there, width, half, HOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """Combine numbers x, and those of the other half, with rows of the second matrix; see ``messages``."""
    if HOW == "product":
        result = x * read(second, row, part, column, there, width, half)
    elif HOW == "sum":
        result = x + read(second, row, part, column, there, width, half)
    elif HOW == "first":
        result = x
    else:
        cosine = read(second, row, tl.zeros_like(part), column, there, width, half)
        sine = read(second, row, tl.zeros_like(part) + 1, column, there, width, half)
        sign = tl.where((part == 1) == (HOW == "turned"), 1.0, -1.0)
        result = x * cosine + sign * other * sine
    return result


@triton.jit
def message(first, v, second, k, part, column, there, width, half, HOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """Combine rows v of the first matrix with rows k of the second: [EDGES, 2, HALF]."""
    x = read(first, v, part, column, there, width, half)
    other = x
    if HOW == "turned" or HOW == "turned back":
        other = read(first, v, 1 - part, column, there, width, half)
    return combined(x, other, second, k, part, column, there, width, half, HOW)


@triton.jit
def write(matrix, row, part, column, width, half, values):  # type: ignore[no-untyped-def]
    """Store numbers [2, HALF] to a row of a matrix [·, width]."""
    place = part * half + column
    inside = (column < half) & (place < width)
    tl.store(matrix + row.to(tl.int64) * width + place, values[None, :, :], mask=inside)


@triton.jit
def _gather(  # type: ignore[no-untyped-def]
    first, second, first_of, second_of, weight, starts, target, out, partial,
    first_stride, second_stride, rows, parts, width, half,
    HOW: tl.constexpr, EDGES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    piece, query = tl.program_id(0), tl.program_id(1).to(tl.int64)
    part, column = columns(tl.program_id(2), half, HALF)
    first += query * first_stride
    second += query * second_stride
    sums = tl.zeros((EDGES, 2, HALF), tl.float32)
    end = tl.load(starts + piece + 1)
    for low in range(tl.load(starts + piece), end, EDGES):
        edge = low + tl.arange(0, EDGES)
        share = tl.load(weight + edge, mask=edge < end, other=0.0).to(tl.float32)
        there = share != 0
        v = tl.load(first_of + edge, mask=there, other=0)
        k = tl.load(second_of + edge, mask=there, other=0)
        sums += share[:, None, None] * message(first, v, second, k, part, column, there, width, half, HOW)
    row, total = tl.load(target + piece), tl.sum(sums, 0)
    if row >= 0:
        write(out, query * rows + row, part, column, width, half, total)
    else:
        write(partial, query * parts - 1 - row, part, column, width, half, total)


@triton.jit
def _join(  # type: ignore[no-untyped-def]
    partial, hubs, hub_starts, out, rows, parts, width, half, EDGES: tl.constexpr, HALF: tl.constexpr
):
    hub, query = tl.program_id(0), tl.program_id(1).to(tl.int64)
    part, column = columns(tl.program_id(2), half, HALF)
    sums = tl.zeros((EDGES, 2, HALF), tl.float32)
    end = tl.load(hub_starts + hub + 1)
    for low in range(tl.load(hub_starts + hub), end, EDGES):
        place = low + tl.arange(0, EDGES)
        sums += read(partial, query * parts + place, part, column, place < end, width, half)
    write(out, query * rows + tl.load(hubs + hub), part, column, width, half, tl.sum(sums, 0))


@triton.jit
def _products(  # type: ignore[no-untyped-def]
    states, relations, gradient, dst, src, kind, out,
    states_stride, relations_stride, edges, batch, width, half,
    HOW: tl.constexpr, EDGES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0) * EDGES + tl.arange(0, EDGES)
    there = edge < edges
    u = tl.load(dst + edge, mask=there, other=0)
    v = tl.load(src + edge, mask=there, other=0)
    k = tl.load(kind + edge, mask=there, other=0)
    sums = tl.zeros((EDGES, 2, HALF), tl.float32)
    for block in range(tl.cdiv(half, HALF)):
        part, column = columns(block, half, HALF)
        for query in range(batch):
            x = states + tl.cast(query, tl.int64) * states_stride
            w = relations + tl.cast(query, tl.int64) * relations_stride
            g = gradient + tl.cast(query, tl.int64) * states_stride
            messages = message(x, v, w, k, part, column, there, width, half, HOW)
            sums += messages * read(g, u, part, column, there, width, half)
    tl.store(out + edge, tl.sum(tl.sum(sums, 2), 1), mask=there)
