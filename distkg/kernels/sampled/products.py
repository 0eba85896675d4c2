"""Comparison of queries with shared negatives for scores that follow from inner products: one compiled pass.

Scores, loss and both gradients of a block of queries and their negatives are computed in the core's second cache. No
matrix of all queries and negatives exists.
"""

from __future__ import annotations

import math

import numpy as np

from distkg.kernels.gather_scatter import add_row, copy_row
from distkg.kernels.jit import kernel, part_of_kernel
from distkg.kernels.sampled.losses import loss_of_row
from distkg.kernels.vectors.prefetch import AHEAD, prefetch_row
from distkg.kernels.vectors.simd import WIDE
from distkg.kernels.vectors.tiles import multiply, padded, turn

Array = np.ndarray
INNER, SQUARED, DISTANCE = range(3)
"""Scores: q·c, −|q − c|², or −|q − c|."""

BLOCK = 128
"""Queries of a block."""

_zero, _half, _two = np.float32(0), np.float32(0.5), np.float32(2)


@part_of_kernel
def _squared_norm(row):  # type: ignore[no-untyped-def]
    total = _zero
    for j in range(row.shape[0]):
        total += row[j] * row[j]
    return total


@part_of_kernel
def _score_of_pair(scoring, query, candidate, least):  # type: ignore[no-untyped-def]
    """Score one query with one candidate; distances by differences, which cancel less than norms."""
    score = _zero
    if scoring == INNER:
        for j in range(query.shape[0]):
            score += query[j] * candidate[j]
        return score
    for j in range(query.shape[0]):
        gap = query[j] - candidate[j]
        score += gap * gap
    if scoring == SQUARED:
        return -score
    return -math.sqrt(least if score < least else score)


@part_of_kernel
def _pull(scoring, slope, score, floor):  # type: ignore[no-untyped-def]
    """Return f such that the derivative by a query is f·c of an inner product, else f·(q − c)."""
    if scoring == INNER:
        return slope
    if scoring == SQUARED:
        return -_two * slope
    return _zero if score >= -floor else slope / score


@part_of_kernel
def _score(scoring, inner, count, own, norms, least):  # type: ignore[no-untyped-def]
    """Turn inner products [count] into scores; ``own`` and ``norms`` are squared norms."""
    if scoring == SQUARED:
        for k in range(count):
            inner[k] = _two * inner[k] - own - norms[k]
    elif scoring == DISTANCE:
        for k in range(count):
            square = own + norms[k] - _two * inner[k]
            square = least if square < least else square  # NaN stays
            inner[k] = -math.sqrt(square)


@part_of_kernel
def _slope(scoring, slopes, scores, count, to_norms, floor):  # type: ignore[no-untyped-def]
    """Turn derivatives by scores [count] into those by inner products; return that by |q|², add those by |c|²."""
    if scoring == INNER:
        return _zero
    total = _zero
    if scoring == SQUARED:
        for k in range(count):
            slope = slopes[k]
            slopes[k] = _two * slope
            to_norms[k] -= slope
            total += slope
        return -total
    for k in range(count):
        slope = _zero if scores[k] >= -floor else -slopes[k] / scores[k]
        slopes[k] = slope
        to_norms[k] -= _half * slope
        total += slope
    return -_half * total


@part_of_kernel
def _copy_rows(target, source, low, high):  # type: ignore[no-untyped-def]
    """Copy rows low … high - 1 of ``source`` to the first rows of a padded matrix; return how many."""
    for i in range(low, high):
        copy_row(target, i - low, source, i)
    return high - low


@part_of_kernel
def _fill(scores, i, count, excluded):  # type: ignore[no-untyped-def]
    """Fill the last vector of a row of scores."""
    for k in range(count, (count + WIDE - 1) // WIDE * WIDE):
        scores[i, k] = excluded


@kernel
def compare_with_products(
    scoring: int,
    loss: int,
    query: Array,
    candidates: Array,
    answer: Array,
    negatives: Array,
    mask: Array,
    sharing: int,
    margin: np.float32,
    temperature: np.float32,
    factor: np.float32,
    excluded: np.float32,
    floor: np.float32,
    low: int,
    high: int,
    losses: Array,
    pulls: Array,
    to_query: Array,
    to_negatives: Array,
) -> None:
    """Compare the queries of the groups low … high - 1 with their answers and the negatives that each group shares.

    Args:
        scoring: a score of this module.
        loss: a kind of loss of ``losses.py``; times ``factor``.
        query: float32 [b, D].
        candidates: float32 [u, D].
        answer: int64 [b], rows of ``candidates``.
        negatives: int64 [g, K], rows of ``candidates``.
        mask: bool [b, K], True for negatives without a part; or [0, 0].
        sharing: queries of a group.
        excluded: score of negatives without a part.
        floor: least distance.
        losses: float32 [b], to write, as all that follow.
        pulls: float32 [b], for ``sum_over_candidates``.
        to_query: float32 [b, D].
        to_negatives: float32 [g, K, D].
    """
    width, count = query.shape[1], negatives.shape[1]
    most = min(sharing, BLOCK)
    shared, of_shared, turned = padded(count, width), padded(count, width), padded(width, count)
    own, of_own = padded(most, width), padded(most, width)
    scores, slopes = padded(most, count), padded(most, count)
    norms, of_norms = np.zeros(count, np.float32), np.zeros(count, np.float32)
    least = floor * floor
    settings = margin, temperature, factor, excluded
    for group in range(low, high):
        drawn = negatives[group]
        for k in range(count):
            if k + AHEAD < count:
                prefetch_row(candidates, drawn[k + AHEAD])
            copy_row(shared, k, candidates, drawn[k])
        turn(turned, shared, count, width)
        if scoring != INNER:
            of_norms[:] = _zero
            for k in range(count):
                norms[k] = _squared_norm(shared[k, :width])
        end = min((group + 1) * sharing, query.shape[0])
        for first in range(group * sharing, end, BLOCK):
            rows = _copy_rows(own, query, first, min(first + BLOCK, end))
            slopes[rows : rows + 1] = _zero  # terms are added in pairs
            own[rows : rows + 1] = _zero
            multiply(scores, own, turned, rows, count, width, False)
            for i in range(rows):
                at = first + i
                if at + AHEAD < end:
                    prefetch_row(candidates, answer[at + AHEAD])
                mine, of_mine, right = own[i, :width], of_own[i, :width], candidates[answer[at]]
                row, to_row = scores[i, :count], slopes[i, :count]
                if scoring != INNER:
                    _score(scoring, row, count, _squared_norm(mine), norms, least)
                _fill(scores, i, count, excluded)
                if mask.shape[0]:
                    for k in range(count):
                        row[k] = excluded if mask[at, k] else row[k]
                positive = _score_of_pair(scoring, mine, right, least)
                losses[at], slope = loss_of_row(loss, positive, scores, i, count, *settings, slopes)
                pull = _pull(scoring, slope, positive, floor)
                pulls[at] = pull
                if scoring == INNER:
                    for j in range(width):
                        of_mine[j] = pull * right[j]
                else:
                    both = pull + _two * _slope(scoring, to_row, row, count, of_norms, floor)
                    for j in range(width):
                        of_mine[j] = both * mine[j] - pull * right[j]
            multiply(of_own, slopes, shared, rows, width, count, True)
            multiply(of_shared, slopes.T, own, count, width, rows, first > group * sharing)
            for i in range(rows):
                copy_row(to_query, first + i, of_own, i)
        for k in range(count):
            to_norm, gradient, drawn_row, result = _two * of_norms[k], of_shared[k], shared[k], to_negatives[group, k]
            for j in range(width):
                result[j] = gradient[j] + to_norm * drawn_row[j]


@kernel
def sum_over_candidates(
    scoring: int,
    query: Array,
    candidates: Array,
    answer: Array,
    pulls: Array,
    negatives: Array,
    to_negatives: Array,
    low: int,
    high: int,
    total: Array,
) -> None:
    """Write the gradients of the candidates low … high - 1: of answers, from ``pulls``, and of shared negatives.

    Args:
        negatives: int64 [g · K].
        to_negatives: float32 [g · K, D].
        total: float32 [u, D], to write.
    """
    written = np.zeros(high - low, np.bool_)
    for i in range(answer.shape[0]):
        row = answer[i]
        if row < low or row >= high:
            continue
        if i + AHEAD < answer.shape[0]:
            prefetch_row(total, answer[i + AHEAD])
        result, pull, own, other = total[row], pulls[i], query[i], candidates[row]
        if not written[row - low]:
            result[:] = _zero
            written[row - low] = True
        if scoring == INNER:
            for j in range(result.shape[0]):
                result[j] += pull * own[j]
        else:
            for j in range(result.shape[0]):
                result[j] += pull * (other[j] - own[j])
    for k in range(negatives.shape[0]):
        row = negatives[k]
        if row < low or row >= high:
            continue
        if written[row - low]:
            add_row(total, row, to_negatives, k)
        else:
            copy_row(total, row, to_negatives, k)
            written[row - low] = True
    for row in range(low, high):
        if not written[row - low]:
            total[row] = _zero
