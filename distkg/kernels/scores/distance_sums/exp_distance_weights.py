"""Compiled pass over a row of inner products that turns them into the gradient weights of log Σ exp(−h).

The inner product of the query and candidate j is replaced by

    w = exp(shift − h(x)) · h′(x),   x = scale · d²,   d² = |q|² + |c|² − 2 q·c.

``activations.py`` has h and h′ in torch.
"""

from __future__ import annotations

import numpy as np

from distkg.kernels.jit import kernel, part_of_kernel
from distkg.kernels.scores.activations import Activation, Artanh, Double, Halin, Hanon, XExp
from distkg.kernels.vectors.fast_math import LOG2_E
from distkg.kernels.vectors.functions import exp, inverse, log, power
from distkg.kernels.vectors.simd import (
    LANES,
    WIDE,
    keep_first,
    load_wide,
    multiply_add,
    spread,
    spread_as,
    store_wide,
    total,
    where_above,
    where_at_most,
)
from distkg.kernels.vectors.tiles import padded

HANON, HALIN, DOUBLE, X_EXP, ARTANH = range(5)
KINDS: dict[type[Activation], int] = {Hanon: HANON, Halin: HALIN, Double: DOUBLE, XExp: X_EXP, Artanh: ARTANH}

_zero, _half, _one, _two = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_LANES = np.float32(LANES)
_LEAST = np.float32(2.0**-100)  # where h is large, even the smallest shift may differ from it by rounding
_HIGHEST_POWER = np.float32(100)  # of two; an inverse of infinity would be none
Array = np.ndarray


# h and h′ of a vector x.


@part_of_kernel
def _hanon(x, limit, steepness):  # type: ignore[no-untyped-def]
    # γ exp(β (½ − x)) as one power of two
    rate = steepness * LOG2_E
    start = min(_half * rate + np.float32(np.log2(limit)), _HIGHEST_POWER)
    away = power(spread_as(x, start) - spread_as(x, rate) * x)
    share = inverse(spread_as(x, _one) + away)
    return spread_as(x, limit) * share, spread_as(x, limit * steepness) * away * (share * share)


@part_of_kernel
def _halin(x, limit, steepness):  # type: ignore[no-untyped-def]
    two, nothing = spread_as(x, _two), spread_as(x, _zero)
    beyond = spread_as(x, steepness) * (x - spread_as(x, _one)) + two
    value = where_above(spread_as(x, _one), x, two * x, beyond)
    slope = where_above(spread_as(x, _one), x, two, spread_as(x, steepness))
    slope = where_above(spread_as(x, limit), value, slope, nothing)
    return where_above(value, spread_as(x, limit), spread_as(x, limit), value), slope  # NaN stays


@part_of_kernel
def _double(x, limit, steepness):  # type: ignore[no-untyped-def]
    return spread_as(x, _two) * x, spread_as(x, _two)


_X_EXP_BEND = np.float32(XExp.BEND)
_X_EXP_SLOPE = np.float32(np.exp(XExp.BEND) * (1 + XExp.BEND))


@part_of_kernel
def _x_exp(x, limit, steepness):  # type: ignore[no-untyped-def]
    low = where_above(x, spread_as(x, _X_EXP_BEND), spread_as(x, _X_EXP_BEND), x)
    grown = exp(low)
    return low * grown + spread_as(x, _X_EXP_SLOPE) * (x - low), grown * (spread_as(x, _one) + low)


_ARTANH_BEND = np.float32(Artanh.BEND)
_ARTANH_SLOPE = np.float32(2 / (1 - Artanh.BEND**2))


@part_of_kernel
def _artanh(x, limit, steepness):  # type: ignore[no-untyped-def]
    low = where_above(x, spread_as(x, _ARTANH_BEND), spread_as(x, _ARTANH_BEND), x)
    one = spread_as(x, _one)
    above, below = one + low, inverse(one - low)
    return log(above * below) + spread_as(x, _ARTANH_SLOPE) * (x - low), spread_as(x, _two) * below * inverse(above)


@part_of_kernel
def _weigh(  # type: ignore[no-untyped-def]
    activation, block, i, count, own_norm, norms, scale, shift, limit, steepness
):
    nothing = spread_as(load_wide(norms, 0, 0), _zero)
    terms, weights, weighted = nothing, nothing, nothing
    for j in range(0, count, WIDE):
        both_norms = spread_as(nothing, own_norm) + load_wide(norms, 0, j)
        distance = both_norms - spread_as(nothing, _two) * load_wide(block, i, j)
        distance = where_above(nothing, distance, nothing, distance)  # NaN stays
        if j + WIDE > count:
            distance = keep_first(distance, count - j, nothing)
        value, slope = activation(spread_as(nothing, scale) * distance, limit, steepness)
        term = exp(spread_as(nothing, shift) - value)
        term = where_at_most(term, spread_as(nothing, _LEAST), spread_as(nothing, _LEAST), term)
        if j + WIDE > count:
            term = keep_first(term, count - j, nothing)
        weight = term * slope
        store_wide(block, i, j, weight)
        terms = terms + term
        weights = weights + weight
        weighted = multiply_add(weight, distance, weighted)
    return total(terms), total(weights), total(weighted)


@kernel
def weigh_row(
    kind: int,
    block: Array,
    i: int,
    count: int,
    own_norm: np.float32,
    norms: Array,
    scale: np.float32,
    shift: np.float32,
    limit: np.float32,
    steepness: np.float32,
) -> tuple[np.float32, np.float32, np.float32]:
    """Replace the inner products of a query and ``count`` candidates, and return Σ exp(shift − h), Σ w and Σ w d².

    Args:
        kind: activation, of this module.
        block: float32 [≥ i + 1, ≥ count], padded (``vectors/tiles.py``), overwritten in row i; with 0 after ``count``.
        own_norm: |q|².
        norms: float32 [1, ≥ count], |c|², padded.
        limit: γ.
        steepness: β.
    """
    if kind == HANON:
        return _weigh(_hanon, block, i, count, own_norm, norms, scale, shift, limit, steepness)
    if kind == HALIN:
        return _weigh(_halin, block, i, count, own_norm, norms, scale, shift, limit, steepness)
    if kind == DOUBLE:
        return _weigh(_double, block, i, count, own_norm, norms, scale, shift, limit, steepness)
    if kind == X_EXP:
        return _weigh(_x_exp, block, i, count, own_norm, norms, scale, shift, limit, steepness)
    return _weigh(_artanh, block, i, count, own_norm, norms, scale, shift, limit, steepness)


@kernel
def weigh_rows(
    kind: int,
    block: Array,
    query_norm: Array,
    norms: Array,
    scale: Array,
    shift: Array,
    limit: np.float32,
    steepness: np.float32,
    sums: Array,
) -> None:
    """Replace the inner products [B, n] of a block, and add the sums of each row to ``sums`` [B, 3]."""
    count = block.shape[1]
    row, own_norms = padded(1, count), padded(1, count)
    own_norms[0, :count] = norms
    for i in range(block.shape[0]):
        row[0, :count] = block[i]
        settings = scale[i], shift[i], limit, steepness
        terms, weights, weighted = weigh_row(kind, row, 0, count, query_norm[i], own_norms, *settings)
        block[i] = row[0, :count]
        sums[i, 0] += terms
        sums[i, 1] += weights
        sums[i, 2] += weighted


@kernel
def activated(kind: int, x: np.float32, limit: np.float32, steepness: np.float32) -> np.float32:
    """Return h(x)."""
    if kind == HANON:
        return total(_hanon(spread(x), limit, steepness)[0]) / _LANES
    if kind == HALIN:
        return total(_halin(spread(x), limit, steepness)[0]) / _LANES
    if kind == DOUBLE:
        return _two * x
    if kind == X_EXP:
        return total(_x_exp(spread(x), limit, steepness)[0]) / _LANES
    return total(_artanh(spread(x), limit, steepness)[0]) / _LANES
