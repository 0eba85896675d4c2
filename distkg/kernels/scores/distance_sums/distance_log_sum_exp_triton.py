"""log Σ exp(−h(scale · d²)) on GPU (Triton): scores are in registers only, forward and backward.

In the first pass a program has some queries and a part of the candidates; the parts are combined afterwards. In the
second pass a program has some candidates and all queries, so every gradient is written by one program, and the result
does not depend on the order of programs. Vectors of any width are read a part at a time, so that a tile's memory does
not grow with the width; their weighted sums stay in memory, and each is read and written by one program.
``SoftmaxLogSumExp`` is the plain reference.

Needs Triton, which comes with torch's CUDA builds. ``TRITON_INTERPRET=1`` runs the same kernels on CPU, slowly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from distkg.compilation import keep_gpu_kernels
from distkg.kernels.scores.activations import Activation, Artanh, Double, Halin, Hanon, XExp
from distkg.kernels.scores.log_sum_exp import LogSumExp, nothing_summed

keep_gpu_kernels()

_KINDS: dict[type[Activation], int] = {Hanon: 0, Halin: 1, Double: 2, XExp: 3, Artanh: 4}
_PROGRAMS = 512  # enough to fill a large GPU
_QUERIES, _ROWS, _WIDTH = 32, 64, 32  # extents of a tile of queries, of rows, and of the part of a vector at a time


class TritonLogSumExp(LogSumExp):
    """log Σ exp of scores −h(scale · d²) on GPU, with the arithmetic of ``DistanceLogSumExp``."""

    def __init__(self, activation: Activation, vector: Tensor, scale: Tensor, candidates: Tensor) -> None:
        """vector float32 [B, D], scale float32 [B], candidates float32 [N, D]; all contiguous, on one device."""
        self._vector, self._scale, self._candidates = vector, scale, candidates
        self._queries_at_once, self._rows_at_once = _QUERIES, _ROWS
        self._settings = {
            "dim": vector.shape[1],
            "limit": activation.limit,
            "steepness": activation.steepness,
            "KIND": _KINDS[type(activation)],
            "WIDTH": _WIDTH,
            "QUERIES": _QUERIES,
            "ROWS": _ROWS,
        }

    def first_pass(self) -> Tensor:
        queries, rows, dim = len(self._vector), len(self._candidates), self._vector.shape[1]
        if not rows:
            return nothing_summed(self._scale)
        tiles = triton.cdiv(queries, self._queries_at_once)
        parts = max(1, min(_PROGRAMS // max(tiles, 1), triton.cdiv(rows, self._rows_at_once)))
        shift, total, weights, weighted = (self._scale.new_empty(parts, queries) for _ in range(4))
        pull = self._scale.new_zeros(parts, queries, dim)
        if queries:
            _first[(tiles, parts)](
                self._vector, self._scale, self._candidates, shift, total, weights, weighted, pull,
                queries, rows, triton.cdiv(triton.cdiv(rows, parts), self._rows_at_once), **self._settings,
            )  # fmt: skip
        self._shift = shift.amin(0)
        share = torch.exp(self._shift - shift)
        self._weights, self._weighted = (share * weights).sum(0), (share * weighted).sum(0)
        self._pull = (share[:, :, None] * pull).sum(0)
        return (share * total).sum(0).log() - self._shift

    def second_pass(self, log_sum: Tensor, weight: Tensor, grad_query: Tensor, grad_candidates: Tensor) -> None:
        queries, rows, dim = len(self._vector), len(self._candidates), self._vector.shape[1]
        if not rows or not queries:
            return
        share = weight * torch.exp(-self._shift - log_sum)
        push = (2 * share * self._scale)[:, None]
        grad_query[:, :dim] += push * (self._pull - self._weights[:, None] * self._vector)
        if grad_query.shape[1] > dim:
            grad_query[:, dim] -= share * self._weighted
        _second[(triton.cdiv(rows, self._rows_at_once),)](
            self._vector, self._scale, self._candidates, log_sum.contiguous(), (2 * weight * self._scale).contiguous(),
            grad_candidates, grad_candidates.stride(0), queries, rows, **self._settings,
        )  # fmt: skip


@triton.jit
def _value_and_slope(x, limit, steepness, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return h(x) and h′(x), as ``activations.py`` in torch. NaN stays NaN."""
    if KIND == 0:
        away = tl.exp(tl.minimum(steepness * (0.5 - x), 80.0, propagate_nan=tl.PropagateNan.ALL)) * limit
        share = 1 / (1 + away)
        value = limit * share
        slope = steepness * value * away * share
    elif KIND == 1:
        rising = tl.where(x < 1, 2 * x, steepness * (x - 1) + 2)
        slope = tl.where(rising >= limit, 0.0, tl.where(x < 1, 2.0, steepness))
        value = tl.where(rising >= limit, limit, rising)
    elif KIND == 2:
        value = 2 * x
        slope = tl.full(x.shape, 2.0, tl.float32)
    elif KIND == 3:
        low = tl.where(x > 10.0, 10.0, x)
        power = tl.exp(low)
        value = low * power + 242291.12374287 * (x - low)  # 11 e¹⁰
        slope = power * (1 + low)
    else:
        low = tl.where(x > 0.99, 0.99, x)
        value = tl.log((1 + low) / (1 - low)) + 100.50251256281408 * (x - low)  # 2 / (1 − 0.99²)
        slope = 2 / (1 - low * low)
    return value, slope


@triton.jit
def _places(row, low, dim, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Places of the columns from ``low`` on in rows [·] of a matrix [·, dim], and which of the columns there are."""
    column = low + tl.arange(0, WIDTH)
    return row.to(tl.int64)[:, None] * dim + column[None, :], column[None, :] < dim


@triton.jit
def _load(pointer, row, there, low, dim, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load the columns from ``low`` on of rows [·] of a matrix [·, dim], with zeros for what is not there."""
    place, inside = _places(row, low, dim, WIDTH)
    return tl.load(pointer + place, mask=there[:, None] & inside, other=0.0)


@triton.jit
def _distances(  # type: ignore[no-untyped-def]
    vector, query, asked, candidates, row, there, dim, WIDTH: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr
):
    """Compute the squared distances of queries [QUERIES] and rows [ROWS], a part of the width at a time."""
    inner = tl.zeros((QUERIES, ROWS), tl.float32)
    query_norm = tl.zeros((QUERIES,), tl.float32)
    row_norm = tl.zeros((ROWS,), tl.float32)
    for low in range(0, dim, WIDTH):
        q = _load(vector, query, asked, low, dim, WIDTH)
        c = _load(candidates, row, there, low, dim, WIDTH)
        inner += tl.dot(q, tl.trans(c), input_precision="ieee")  # TF32 would lose small distances
        query_norm += tl.sum(q * q, 1)
        row_norm += tl.sum(c * c, 1)
    distance = query_norm[:, None] + row_norm[None, :] - 2 * inner
    return tl.where(distance < 0, 0.0, distance)


@triton.jit
def _first(  # type: ignore[no-untyped-def]
    vector, scale, candidates, shift_out, total_out, weights_out, weighted_out, pull_out,
    queries, rows, tiles_per_part, dim, limit, steepness,
    KIND: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    asked = query < queries
    place = part * queries + query
    factor = tl.load(scale + query, mask=asked, other=1.0)
    shift = tl.full((QUERIES,), float("inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    weights = tl.zeros((QUERIES,), tl.float32)
    weighted = tl.zeros((QUERIES,), tl.float32)
    for tile in range(part * tiles_per_part, (part + 1) * tiles_per_part):
        row = tile * ROWS + tl.arange(0, ROWS)
        there = row < rows
        if tile * ROWS < rows:
            distance = _distances(vector, query, asked, candidates, row, there, dim, WIDTH, QUERIES, ROWS)
            value, slope = _value_and_slope(factor[:, None] * distance, limit, steepness, KIND)
            value = tl.where(there[None, :], value, float("inf"))
            lower = tl.minimum(shift, tl.min(value, 1))
            before = tl.exp(lower - shift)
            term = tl.exp(lower[:, None] - value)
            weight = tl.where(there[None, :], term * slope, 0.0)
            total = total * before + tl.sum(term, 1)
            weights = weights * before + tl.sum(weight, 1)
            weighted = weighted * before + tl.sum(weight * distance, 1)
            shift = lower
            # The sums of vectors are too wide for registers: they stay in memory, where only this program adds to them.
            for low in range(0, dim, WIDTH):
                c = _load(candidates, row, there, low, dim, WIDTH)
                pull = _load(pull_out, place, asked, low, dim, WIDTH) * before[:, None]
                pull += tl.dot(weight, c, input_precision="ieee")
                where, inside = _places(place, low, dim, WIDTH)
                tl.store(pull_out + where, pull, mask=asked[:, None] & inside)
            tl.debug_barrier()  # the next tile reads what other threads of the program may have written
    tl.store(shift_out + place, shift, mask=asked)
    tl.store(total_out + place, total, mask=asked)
    tl.store(weights_out + place, weights, mask=asked)
    tl.store(weighted_out + place, weighted, mask=asked)


@triton.jit
def _second(  # type: ignore[no-untyped-def]
    vector, scale, candidates, log_sum, push, grad, grad_stride, queries, rows, dim, limit, steepness,
    KIND: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    weights = tl.zeros((ROWS,), tl.float32)
    for start in range(0, queries, QUERIES):
        query = start + tl.arange(0, QUERIES)
        asked = query < queries
        factor = tl.load(scale + query, mask=asked, other=1.0)
        log_sums = tl.load(log_sum + query, mask=asked, other=0.0)
        pushed = tl.load(push + query, mask=asked, other=0.0)
        distance = _distances(vector, query, asked, candidates, row, there, dim, WIDTH, QUERIES, ROWS)
        value, slope = _value_and_slope(factor[:, None] * distance, limit, steepness, KIND)
        weight = pushed[:, None] * slope * tl.exp(-value - log_sums[:, None])
        weights += tl.sum(weight, 0)
        for low in range(0, dim, WIDTH):
            q = _load(vector, query, asked, low, dim, WIDTH)
            towards = tl.dot(tl.trans(weight), q, input_precision="ieee")
            _add(grad, row, there, low, dim, grad_stride, towards, WIDTH)
        tl.debug_barrier()  # the next queries are added to what other threads of the program may have written
    for low in range(0, dim, WIDTH):
        c = _load(candidates, row, there, low, dim, WIDTH)
        _add(grad, row, there, low, dim, grad_stride, -weights[:, None] * c, WIDTH)


@triton.jit
def _add(matrix, row, there, low, dim, stride, values, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add to the columns from ``low`` on of rows of a matrix, which no other program writes."""
    column = low + tl.arange(0, WIDTH)
    place = row.to(tl.int64)[:, None] * stride + column[None, :]
    inside = there[:, None] & (column[None, :] < dim)
    before = tl.load(matrix + place, mask=inside, other=0.0)
    tl.store(matrix + place, before + values, mask=inside)
