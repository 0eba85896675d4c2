"""log Σ exp(−h(scale · d²)) on GPU (Triton): scores are in registers only, forward and backward.

In the first pass a program has some queries and a part of the candidates; the parts are combined afterwards. In the
second pass a program has some candidates and all queries, so every gradient is written by one program, and the result
does not depend on the order of programs. ``SoftmaxLogSumExp`` is the plain reference.

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
_SMALLEST_PRODUCT = 16  # smallest extent of a matrix for tensor cores


class TritonLogSumExp(LogSumExp):
    """log Σ exp of scores −h(scale · d²) on GPU, with the arithmetic of ``DistanceLogSumExp``."""

    def __init__(self, activation: Activation, vector: Tensor, scale: Tensor, candidates: Tensor) -> None:
        """vector float32 [B, D], scale float32 [B], candidates float32 [N, D]; all contiguous, on one device."""
        self._vector, self._scale, self._candidates = vector, scale, candidates
        dim = vector.shape[1]
        width = max(_SMALLEST_PRODUCT, triton.next_power_of_2(dim))
        self._queries_at_once, self._rows_at_once = (32, 64) if width <= 128 else (16, 32)
        self._settings = {
            "dim": dim,
            "limit": activation.limit,
            "steepness": activation.steepness,
            "KIND": _KINDS[type(activation)],
            "WIDTH": width,
            "QUERIES": self._queries_at_once,
            "ROWS": self._rows_at_once,
        }

    def first_pass(self) -> Tensor:
        queries, rows, dim = len(self._vector), len(self._candidates), self._vector.shape[1]
        if not rows:
            return nothing_summed(self._scale)
        tiles = triton.cdiv(queries, self._queries_at_once)
        parts = max(1, min(_PROGRAMS // max(tiles, 1), triton.cdiv(rows, self._rows_at_once)))
        shift, total, weights, weighted = (self._scale.new_empty(parts, queries) for _ in range(4))
        pull = self._scale.new_empty(parts, queries, dim)
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
def _load(pointer, first, count, dim, AT_ONCE: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load rows first … first + AT_ONCE of a matrix [count, dim], padded with zeros."""
    row, column = first + tl.arange(0, AT_ONCE), tl.arange(0, WIDTH)
    place = row.to(tl.int64)[:, None] * dim + column[None, :]
    return tl.load(pointer + place, mask=(row[:, None] < count) & (column[None, :] < dim), other=0.0)


@triton.jit
def _distances(q, c):  # type: ignore[no-untyped-def]
    """Compute the squared distances of every row of q and every row of c."""
    inner = tl.dot(q, tl.trans(c), input_precision="ieee")  # TF32 would lose small distances
    distance = tl.sum(q * q, 1)[:, None] + tl.sum(c * c, 1)[None, :] - 2 * inner
    return tl.where(distance < 0, 0.0, distance)


@triton.jit
def _first(  # type: ignore[no-untyped-def]
    vector, scale, candidates, shift_out, total_out, weights_out, weighted_out, pull_out,
    queries, rows, tiles_per_part, dim, limit, steepness,
    KIND: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first, part = tl.program_id(0) * QUERIES, tl.program_id(1)
    query, column = first + tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    q = _load(vector, first, queries, dim, QUERIES, WIDTH)
    factor = tl.load(scale + query, mask=query < queries, other=1.0)
    shift = tl.full((QUERIES,), float("inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    weights = tl.zeros((QUERIES,), tl.float32)
    weighted = tl.zeros((QUERIES,), tl.float32)
    pull = tl.zeros((QUERIES, WIDTH), tl.float32)
    for tile in range(part * tiles_per_part, (part + 1) * tiles_per_part):
        row = tile * ROWS + tl.arange(0, ROWS)
        if tile * ROWS < rows:
            c = _load(candidates, tile * ROWS, rows, dim, ROWS, WIDTH)
            distance = _distances(q, c)
            value, slope = _value_and_slope(factor[:, None] * distance, limit, steepness, KIND)
            value = tl.where(row[None, :] < rows, value, float("inf"))
            lower = tl.minimum(shift, tl.min(value, 1))
            before = tl.exp(lower - shift)
            term = tl.exp(lower[:, None] - value)
            weight = tl.where(row[None, :] < rows, term * slope, 0.0)
            total = total * before + tl.sum(term, 1)
            weights = weights * before + tl.sum(weight, 1)
            weighted = weighted * before + tl.sum(weight * distance, 1)
            pull = pull * before[:, None] + tl.dot(weight, c, input_precision="ieee")
            shift = lower
    place, live = part * queries + query, query < queries
    tl.store(shift_out + place, shift, mask=live)
    tl.store(total_out + place, total, mask=live)
    tl.store(weights_out + place, weights, mask=live)
    tl.store(weighted_out + place, weighted, mask=live)
    inside = live[:, None] & (column[None, :] < dim)
    tl.store(pull_out + place.to(tl.int64)[:, None] * dim + column[None, :], pull, mask=inside)


@triton.jit
def _second(  # type: ignore[no-untyped-def]
    vector, scale, candidates, log_sum, push, grad, grad_stride, queries, rows, dim, limit, steepness,
    KIND: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    row, column = first + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    c = _load(candidates, first, rows, dim, ROWS, WIDTH)
    towards = tl.zeros((ROWS, WIDTH), tl.float32)
    weights = tl.zeros((ROWS,), tl.float32)
    for start in range(0, queries, QUERIES):
        query = start + tl.arange(0, QUERIES)
        q = _load(vector, start, queries, dim, QUERIES, WIDTH)
        factor = tl.load(scale + query, mask=query < queries, other=1.0)
        log_sums = tl.load(log_sum + query, mask=query < queries, other=0.0)
        pushed = tl.load(push + query, mask=query < queries, other=0.0)
        value, slope = _value_and_slope(factor[:, None] * _distances(q, c), limit, steepness, KIND)
        weight = pushed[:, None] * slope * tl.exp(-value - log_sums[:, None])
        towards += tl.dot(tl.trans(weight), q, input_precision="ieee")
        weights += tl.sum(weight, 0)
    place = row.to(tl.int64)[:, None] * grad_stride + column[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < dim)
    before = tl.load(grad + place, mask=inside, other=0.0)
    tl.store(grad + place, before + towards - weights[:, None] * c, mask=inside)
