"""Losses of a positive score and K negative scores, with their gradients, in one compiled pass.

Each kernel reads positive float32 [B], negative float32 [B, K] and margin float32 [B]. It writes loss [B], and the
derivatives to_positive [B] and to_negative [B, K], all times ``factor``. Negatives with a score of at most ``excluded``
take no part. ``distkg.objectives.sampled`` has the same losses in plain torch, and their papers.

A row of negatives stays in the core's first cache; loops without branches run in vectors.
"""

from __future__ import annotations

import numpy as np

from distkg.kernels.fast_math import exp, log
from distkg.kernels.jit import kernel, part_of_kernel

Array = np.ndarray
_zero, _one = np.float32(0), np.float32(1)


@part_of_kernel
def _softplus(x):  # type: ignore[no-untyped-def]
    """Return log(1 + eˣ), and its slope σ(x); the absolute error of the value is below 10⁻⁶ of it plus 10⁻⁷."""
    size = -x if x < _zero else x
    t = exp(-size)
    share = _one / (_one + t)
    slope = t * share if x < _zero else share
    value = log(_one + t)
    return value + (_zero if x < _zero else x), slope


@part_of_kernel
def _included(negative, excluded):  # type: ignore[no-untyped-def]
    """Return the number of negatives [K] that take part, at least 1."""
    count = 0
    for k in range(negative.shape[0]):
        count += 0 if negative[k] <= excluded else 1
    return np.float32(max(count, 1))


@kernel
def margin_loss(
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
    """Mean of max(0, γ − s⁺ + s⁻)."""
    for i in range(negative.shape[0]):
        row, slopes = negative[i], to_negative[i]
        below, weight = margin[i] - positive[i], factor / _included(row, excluded)
        total, slope = _zero, _zero
        for k in range(row.shape[0]):
            gap = below + row[k]
            gap = _zero if gap < _zero or row[k] <= excluded else gap  # NaN stays
            step = _zero if gap == _zero else weight
            total += gap
            slope += step
            slopes[k] = step
        loss[i], to_positive[i] = total * weight, -slope


@kernel
def logistic_loss(
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
    """−log σ(s⁺) − mean log σ(−s⁻)."""
    for i in range(negative.shape[0]):
        row, slopes = negative[i], to_negative[i]
        weight, total = factor / _included(row, excluded), _zero
        for k in range(row.shape[0]):
            value, slope = _softplus(row[k])
            share = _zero if row[k] <= excluded else weight
            total += share * value
            slopes[k] = share * slope
        value, slope = _softplus(-positive[i])
        loss[i], to_positive[i] = factor * value + total, -factor * slope


@kernel
def self_adversarial_loss(
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
    """−log σ(γ + s⁺) − Σ p log σ(−γ − s⁻), p = softmax(temperature · s⁻) constant."""
    for i in range(negative.shape[0]):
        row, slopes, own = negative[i], to_negative[i], margin[i]
        highest = excluded
        for k in range(row.shape[0]):
            highest = row[k] if row[k] > highest else highest
        weights, total = _zero, _zero
        for k in range(row.shape[0]):
            value, slope = _softplus(own + row[k])
            weight = exp(temperature * (row[k] - highest))
            weight = _zero if row[k] <= excluded else weight
            weights += weight
            total += weight * value
            slopes[k] = weight * slope
        share = factor / (_one if weights == _zero else weights)
        for k in range(row.shape[0]):
            slopes[k] *= share
        value, slope = _softplus(-own - positive[i])
        loss[i], to_positive[i] = factor * value + total * share, -factor * slope


@kernel
def sampled_softmax_loss(
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
    """Cross entropy of the answer among itself and the negatives."""
    for i in range(negative.shape[0]):
        row, slopes = negative[i], to_negative[i]
        highest = positive[i]
        for k in range(row.shape[0]):
            highest = row[k] if row[k] > highest else highest
        total = _zero
        for k in range(row.shape[0]):
            term = exp(row[k] - highest)
            term = _zero if row[k] <= excluded else term
            slopes[k] = term
            total += term
        answer = exp(positive[i] - highest)
        share = factor / (total + answer)
        for k in range(row.shape[0]):
            slopes[k] *= share
        # The last term is 0, or NaN, which the logarithm would hide.
        loss[i] = factor * (log(total + answer) + (highest - positive[i]) + _zero * total)
        to_positive[i] = -total * share
