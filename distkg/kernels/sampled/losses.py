"""Losses of a positive score and K negative scores, with their gradients, in one compiled pass.

``compute_losses`` reads positive float32 [B], negative float32 [B, K] and margin float32 [B]. It writes loss [B] and
the derivatives to_positive [B] and to_negative [B, K], all times ``factor``. Negatives with a score of at most
``excluded`` take no part. ``distkg.objectives.sampled`` has the same losses in plain torch, and their papers.
``loss_of_row`` is for kernels that have the scores of a query in the cache: they are a row of a padded matrix
(``vectors/tiles.py``), in which ``excluded`` follows the K scores up to a whole number of wide vectors.
"""

from __future__ import annotations

import numpy as np

from distkg.kernels.jit import kernel, part_of_kernel
from distkg.kernels.vectors.fast_math import exp as exp_of_one
from distkg.kernels.vectors.fast_math import log
from distkg.kernels.vectors.functions import exp_of_negative, softplus
from distkg.kernels.vectors.simd import (
    WIDE,
    largest,
    load_wide,
    spread_wide,
    store_wide,
    total,
    where_above,
    where_at_most,
)
from distkg.kernels.vectors.tiles import padded

Array = np.ndarray
MARGIN, LOGISTIC, SELF_ADVERSARIAL, SAMPLED_SOFTMAX = range(4)
"""Kinds of losses."""

_zero, _one = np.float32(0), np.float32(1)


@part_of_kernel
def _softplus(x):  # type: ignore[no-untyped-def]
    """Return log(1 + eˣ), and its slope σ(x), of one number."""
    size = -x if x < _zero else x
    t = exp_of_one(-size)
    share = _one / (_one + t)
    slope = t * share if x < _zero else share
    value = log(_one + t)
    return value + (_zero if x < _zero else x), slope


@part_of_kernel
def _included(scores, i, count, excluded):  # type: ignore[no-untyped-def]
    """Return the number of negatives that take part, at least 1."""
    included = spread_wide(_zero)
    for k in range(0, count, WIDE):
        out = where_at_most(load_wide(scores, i, k), spread_wide(excluded), spread_wide(_zero), spread_wide(_one))
        included = included + out
    return max(total(included), _one)


@part_of_kernel
def _highest(scores, i, count, least):  # type: ignore[no-untyped-def]
    highest = spread_wide(least)
    for k in range(0, count, WIDE):
        score = load_wide(scores, i, k)
        highest = where_above(score, highest, score, highest)
    return largest(highest)


@part_of_kernel
def _scale(slopes, i, count, factor):  # type: ignore[no-untyped-def]
    for k in range(0, count, WIDE):
        store_wide(slopes, i, k, load_wide(slopes, i, k) * spread_wide(factor))


@part_of_kernel
def _margin(positive, scores, i, count, margin, factor, excluded, slopes):  # type: ignore[no-untyped-def]
    """Mean of max(0, γ − s⁺ + s⁻)."""
    nothing, below = spread_wide(_zero), spread_wide(margin - positive)
    weight = factor / _included(scores, i, count, excluded)
    sums, slope = spread_wide(_zero), spread_wide(_zero)
    for k in range(0, count, WIDE):
        score = load_wide(scores, i, k)
        gap = below + score
        gap = where_above(nothing, gap, nothing, gap)  # NaN stays
        gap = where_at_most(score, spread_wide(excluded), nothing, gap)
        step = where_above(gap, nothing, spread_wide(weight), nothing)
        sums = sums + gap
        slope = slope + step
        store_wide(slopes, i, k, step)
    return total(sums) * weight, -total(slope)


@part_of_kernel
def _logistic(positive, scores, i, count, factor, excluded, slopes):  # type: ignore[no-untyped-def]
    """−log σ(s⁺) − mean log σ(−s⁻)."""
    weight = spread_wide(factor / _included(scores, i, count, excluded))
    sums = spread_wide(_zero)
    for k in range(0, count, WIDE):
        score = load_wide(scores, i, k)
        value, slope = softplus(score)
        share = where_at_most(score, spread_wide(excluded), spread_wide(_zero), weight)
        sums = sums + share * value
        store_wide(slopes, i, k, share * slope)
    value, slope = _softplus(-positive)
    return factor * value + total(sums), -factor * slope


@part_of_kernel
def _self_adversarial(positive, scores, i, count, margin, temperature, factor, excluded, slopes):  # type: ignore[no-untyped-def]
    """−log σ(γ + s⁺) − Σ p log σ(−γ − s⁻), p = softmax(temperature · s⁻) constant."""
    highest = spread_wide(_highest(scores, i, count, excluded))
    weights, sums = spread_wide(_zero), spread_wide(_zero)
    for k in range(0, count, WIDE):
        score = load_wide(scores, i, k)
        value, slope = softplus(spread_wide(margin) + score)
        weight = exp_of_negative(spread_wide(temperature) * (score - highest))
        weight = where_at_most(score, spread_wide(excluded), spread_wide(_zero), weight)
        weights = weights + weight
        sums = sums + weight * value
        store_wide(slopes, i, k, weight * slope)
    whole = total(weights)
    share = factor / (_one if whole == _zero else whole)
    _scale(slopes, i, count, share)
    value, slope = _softplus(-margin - positive)
    return factor * value + total(sums) * share, -factor * slope


@part_of_kernel
def _sampled_softmax(positive, scores, i, count, factor, excluded, slopes):  # type: ignore[no-untyped-def]
    """Cross entropy of the answer among itself and the negatives."""
    highest = max(_highest(scores, i, count, excluded), positive)
    sums = spread_wide(_zero)
    for k in range(0, count, WIDE):
        score = load_wide(scores, i, k)
        term = where_at_most(
            score, spread_wide(excluded), spread_wide(_zero), exp_of_negative(score - spread_wide(highest))
        )
        store_wide(slopes, i, k, term)
        sums = sums + term
    others, answer = total(sums), exp_of_one(positive - highest)
    share = factor / (others + answer)
    _scale(slopes, i, count, share)
    # The last term is 0, or NaN, which the logarithm would hide.
    return factor * (log(others + answer) + (highest - positive) + _zero * others), -others * share


@kernel
def loss_of_row(
    kind: int,
    positive: np.float32,
    scores: Array,
    i: int,
    count: int,
    margin: np.float32,
    temperature: np.float32,
    factor: np.float32,
    excluded: np.float32,
    slopes: Array,
) -> tuple[np.float32, np.float32]:
    """Return the loss of a query with ``count`` negatives, and its derivative by the positive score.

    Scores are row i of a matrix; the derivatives by them are written to row i of ``slopes``.
    """
    if kind == MARGIN:
        return _margin(positive, scores, i, count, margin, factor, excluded, slopes)
    if kind == LOGISTIC:
        return _logistic(positive, scores, i, count, factor, excluded, slopes)
    if kind == SELF_ADVERSARIAL:
        return _self_adversarial(positive, scores, i, count, margin, temperature, factor, excluded, slopes)
    return _sampled_softmax(positive, scores, i, count, factor, excluded, slopes)


@kernel
def compute_losses(
    kind: int,
    positive: Array,
    negative: Array,
    margin: Array,
    temperature: np.float32,
    factor: np.float32,
    excluded: np.float32,
    loss: Array,
    to_positive: Array,
    to_negative: Array,
) -> None:
    """Compute the losses of all rows, of one of the kinds of this module."""
    count = negative.shape[1]
    scores, slopes = padded(1, count), padded(1, count)
    scores[:] = excluded
    for i in range(negative.shape[0]):
        for k in range(count):
            scores[0, k] = negative[i, k]
        settings = margin[i], temperature, factor, excluded
        loss[i], to_positive[i] = loss_of_row(kind, positive[i], scores, 0, count, *settings, slopes)
        for k in range(count):
            to_negative[i, k] = slopes[0, k]
