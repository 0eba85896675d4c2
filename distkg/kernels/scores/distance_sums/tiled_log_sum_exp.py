"""log Σ exp of squared distances under an activation, on CPU: products and what follows from them in one compiled pass.

Inner products of a tile of queries and candidates, their weights and the sums over candidates are computed in the
core's second cache. Threads share the queries of the first pass and the candidates of the second.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.gather_scatter import copy_row, squared_norms
from distkg.kernels.jit import kernel, part_of_kernel
from distkg.kernels.scores.activations import Activation
from distkg.kernels.scores.distance_sums.exp_distance_weights import KINDS, activated, weigh_row
from distkg.kernels.scores.log_sum_exp import LogSumExp, nothing_summed
from distkg.kernels.threads import for_each_part
from distkg.kernels.vectors.tiles import multiply, padded, turn

Array = np.ndarray
QUERIES, CANDIDATES = 128, 256
"""Most queries and candidates of a tile."""

_zero, _one, _two = np.float32(0), np.float32(1), np.float32(2)
_SAFE = 60.0  # h up to which nothing under- or overflows


class TiledLogSumExp(LogSumExp):
    """log Σ exp of scores −h(scale · d²), with weights of tiles that are kept between the passes or computed again.

    Unless h is bounded by ``_SAFE``, exponents are relative to the smallest h of a query so far, and the sums are
    rescaled whenever a smaller one appears.
    """

    def __init__(
        self, activation: Activation, vector: Tensor, scale: Tensor, candidates: Tensor, *, keep: bool
    ) -> None:
        """vector float32 [B, D], scale float32 [B], candidates float32 [N, D]; all contiguous."""
        self._vector, self._scale, self._candidates, self._keep = vector, scale, candidates, keep
        self._bounded = activation.largest <= _SAFE
        queries = -(-len(vector) // QUERIES)
        self._rows = -(-len(vector) // max(queries, 1))  # of a tile, so that tiles are of equal size
        self._tiles = -(-len(candidates) // CANDIDATES), queries
        limits = np.float32(activation.limit), np.float32(activation.steepness)
        self._settings = KINDS[type(activation)], *limits, self._bounded, keep
        self._norms = squared_norms(vector), squared_norms(candidates)[None]

    def first_pass(self) -> Tensor:
        count, tiles = len(self._vector), self._tiles
        self._sums, self._pull = self._scale.new_zeros(count, 3), torch.zeros_like(self._vector)
        self._shift = torch.full_like(self._scale, 0.0 if self._bounded else torch.inf)
        self._shifts = self._scale.new_empty(tiles[0], count)
        height, width = _tile_shape(self._rows, min(CANDIDATES, len(self._candidates)))
        kept = tiles if self._keep else (0, 0)
        self._weights = _take_spare(self._scale, kept[0] * kept[1] * height * width).view(*kept, height, width)
        results = self._shift, self._shifts, self._sums, self._pull, self._weights
        arrays = [part.numpy() for part in (*self._inputs(), *results)]

        def sum_queries(low: int, high: int) -> None:
            sum_tiles(*self._settings, self._rows, low, high, *arrays)

        for_each_part(tiles[1], sum_queries)
        if not len(self._candidates):
            return nothing_summed(self._scale)
        return self._sums[:, 0].log() - self._shift

    def second_pass(self, log_sum: Tensor, weight: Tensor, grad_query: Tensor, grad_candidates: Tensor) -> None:
        if not (len(self._candidates) and len(self._vector)):
            return
        dim = self._vector.shape[1]
        share = weight * torch.exp(-self._shift - log_sum)
        _, weights, weighted = self._sums.unbind(1)
        push = (2 * share * self._scale)[:, None]
        grad_query[:, :dim] += push * (self._pull - weights[:, None] * self._vector)
        if grad_query.shape[1] > dim:
            grad_query[:, dim] -= share * weighted
        # The weights of a tile are relative to the shift that was known then.
        pushes = 2 * weight * self._scale * torch.exp(-self._shifts - log_sum)
        arrays = [part.numpy() for part in (*self._inputs(), pushes, self._shifts, self._weights, grad_candidates)]

        def push_candidates(low: int, high: int) -> None:
            push_tiles(*self._settings, self._rows, low, high, *arrays)

        for_each_part(self._tiles[0], push_candidates)
        _SPARE[:] = [self._weights]  # not read again

    def _inputs(self) -> tuple[Tensor, ...]:
        return self._vector, self._norms[0], self._scale, self._candidates, self._norms[1]


_SPARE: list[Tensor] = []  # memory of the last weights: to be given new pages costs a fifth of both passes


def _take_spare(like: Tensor, numbers: int) -> Tensor:
    """Return memory for as many float32, that of an earlier pass if it is large enough."""
    spare = _SPARE.pop().flatten() if _SPARE else like.new_empty(0)
    return spare[:numbers] if len(spare) >= numbers else like.new_empty(numbers)


@kernel
def _tile_shape(rows: int, columns: int) -> tuple[int, int]:
    return padded(rows, columns).shape


@part_of_kernel
def _take(target, source, low, high):  # type: ignore[no-untyped-def]
    """Copy rows low … high - 1 to the first rows of a padded matrix, and a row of zeros after; return how many."""
    for i in range(low, high):
        copy_row(target, i - low, source, i)
    target[high - low : high - low + 1] = _zero
    return high - low


@part_of_kernel
def _lower_shift(kind, row, own_norm, norms, scale, limit, steepness, shift, sums, pull):  # type: ignore[no-untyped-def]
    """Return the smallest h of a query so far, now with the candidates of a tile; rescale what was summed."""
    nearest = norms[0] - _two * row[0]
    for k in range(1, norms.shape[0]):
        gap = norms[k] - _two * row[k]
        nearest = gap if gap < nearest else nearest
    nearest += own_norm
    nearest = _zero if nearest < _zero else nearest
    lowest = activated(kind, scale * nearest, limit, steepness)
    if lowest >= shift:
        return shift
    proportion = np.float32(np.exp(lowest - shift))
    for j in range(sums.shape[0]):
        sums[j] *= proportion
    for j in range(pull.shape[0]):
        pull[j] *= proportion
    return lowest  # or NaN


@kernel
def sum_tiles(
    kind: int,
    limit: np.float32,
    steepness: np.float32,
    bounded: bool,
    keep: bool,
    tile_rows: int,
    low: int,
    high: int,
    vector: Array,
    own_norm: Array,
    scale: Array,
    candidates: Array,
    norm: Array,
    shift: Array,
    shifts: Array,
    sums: Array,
    pull: Array,
    weights: Array,
) -> None:
    """Sum over all candidates for the queries of the tiles low … high - 1.

    Args:
        vector: float32 [B, D].
        own_norm: float32 [B], |q|².
        scale: float32 [B].
        candidates: float32 [N, D].
        norm: float32 [1, N], |c|².
        shift: float32 [B], smallest h so far, lowered here unless ``bounded``.
        shifts: float32 [tiles of candidates, B], to which the weights of a tile are relative; to write.
        sums: float32 [B, 3]; Σ exp(shift − h), Σ w and Σ w d² are added.
        pull: float32 [B, D]; Σ w c is added.
        weights: float32 [tiles of candidates, tiles of queries, ≥ queries, ≥ candidates], to write if ``keep``.
    """
    width = vector.shape[1]
    own, pulled = padded(tile_rows, width), padded(tile_rows, width)
    shared, turned = padded(CANDIDATES, width), padded(width, CANDIDATES)
    block, norms = padded(tile_rows, CANDIDATES), padded(1, CANDIDATES)
    for tile in range(low, high):
        first, last = tile * tile_rows, min((tile + 1) * tile_rows, vector.shape[0])
        rows = _take(own, vector, first, last)
        pulled[:] = _zero
        for at in range(shifts.shape[0]):
            left, right = at * CANDIDATES, min((at + 1) * CANDIDATES, candidates.shape[0])
            count = _take(shared, candidates, left, right)
            turn(turned, shared, count, width)
            norms[0, :count] = norm[0, left:right]
            tile_weights = weights[at, tile] if keep else block
            multiply(tile_weights, own, turned, rows, count, width, False)
            for i in range(rows):
                query = first + i
                if not bounded:
                    shift[query] = _lower_shift(
                        kind,
                        tile_weights[i],
                        own_norm[query],
                        norms[0, :count],
                        scale[query],
                        limit,
                        steepness,
                        shift[query],
                        sums[query],
                        pulled[i],
                    )
                shifts[at, query] = shift[query]
                settings = scale[query], shift[query], limit, steepness
                total = weigh_row(kind, tile_weights, i, count, own_norm[query], norms, *settings)
                for j in range(3):
                    sums[query, j] += total[j]
            multiply(pulled, tile_weights, shared, rows, width, count, True)
        for i in range(rows):
            copy_row(pull, first + i, pulled, i)


@kernel
def push_tiles(
    kind: int,
    limit: np.float32,
    steepness: np.float32,
    bounded: bool,
    keep: bool,
    tile_rows: int,
    low: int,
    high: int,
    vector: Array,
    own_norm: Array,
    scale: Array,
    candidates: Array,
    norm: Array,
    pushes: Array,
    shifts: Array,
    weights: Array,
    grad: Array,
) -> None:
    """Add Σ push · w · (q − c) over all queries to the rows of the tiles low … high - 1 of ``grad``.

    Args:
        pushes: float32 [tiles of candidates, B], factors on the weights of a tile.
        grad: float32 [N, D].
        others: as of ``sum_tiles``.
    """
    width, count_queries = vector.shape[1], vector.shape[0]
    own, pushed = padded(tile_rows, width), padded(tile_rows, width)
    shared, turned = padded(CANDIDATES, width), padded(width, CANDIDATES)
    block, norms = padded(tile_rows, CANDIDATES), padded(1, CANDIDATES)
    summed, weight_sums = padded(CANDIDATES, width), np.empty(CANDIDATES, np.float32)
    for at in range(low, high):
        left, right = at * CANDIDATES, min((at + 1) * CANDIDATES, candidates.shape[0])
        count = right - left
        if not keep:
            _take(shared, candidates, left, right)
            turn(turned, shared, count, width)
            norms[0, :count] = norm[0, left:right]
        weight_sums[:] = _zero
        for first in range(0, count_queries, tile_rows):
            rows = min(first + tile_rows, count_queries) - first
            tile_weights = weights[at, first // tile_rows] if keep else block
            if not keep:
                _take(own, vector, first, first + rows)
                multiply(tile_weights, own, turned, rows, count, width, False)
                for i in range(rows):
                    query = first + i
                    settings = scale[query], shifts[at, query], limit, steepness
                    weigh_row(kind, tile_weights, i, count, own_norm[query], norms, *settings)
            for i in range(rows):
                push, query, result, row = pushes[at, first + i], vector[first + i], pushed[i], tile_weights[i]
                for j in range(width):
                    result[j] = push * query[j]
                for k in range(count):
                    weight_sums[k] += push * row[k]
            pushed[rows : rows + 1] = _zero
            tile_weights[rows : rows + 1] = _zero  # terms are added in pairs
            multiply(summed, tile_weights.T, pushed, count, width, rows, first > 0)
        for k in range(count):
            weight, result, gradient, candidate = weight_sums[k], grad[left + k], summed[k], candidates[left + k]
            for j in range(width):
                result[j] += gradient[j] - weight * candidate[j]
