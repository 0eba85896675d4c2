"""Compiled pass over a row of inner products that turns them into the gradient weights of log Σ exp(−h).

The inner product of the query and candidate j is replaced by

    w = exp(shift − h(x)) · h′(x),   x = scale · d²,   d² = |q|² + |c|² − 2 q·c.

``activations.py`` has h and h′ in torch.
"""

from __future__ import annotations

import numpy as np

from distkg.kernels.jit import kernel, part_of_kernel
from distkg.kernels.scores.activations import Activation, Artanh, Double, Halin, Hanon, XExp
from distkg.kernels.simd import (
    LANES,
    keep_first,
    load_rest,
    load_whole,
    multiply_add,
    spread,
    store_rest,
    store_whole,
    total,
    where_above,
)
from distkg.kernels.vectors.functions import exp, inverse, log

HANON, HALIN, DOUBLE, X_EXP, ARTANH = range(5)
KINDS: dict[type[Activation], int] = {Hanon: HANON, Halin: HALIN, Double: DOUBLE, XExp: X_EXP, Artanh: ARTANH}

_zero, _half, _one, _two = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_LANES = np.float32(LANES)
_LARGEST = np.float32(1e30)  # beyond which an inverse would be of infinity
Array = np.ndarray


# h and h′ of a vector x.


@part_of_kernel
def _hanon(x, limit, steepness):  # type: ignore[no-untyped-def]
    away = exp(spread(steepness) * (spread(_half) - x)) * spread(limit)
    away = where_above(away, spread(_LARGEST), spread(_LARGEST), away)
    share = inverse(spread(_one) + away)
    value = spread(limit) * share
    return value, spread(steepness) * value * away * share


@part_of_kernel
def _halin(x, limit, steepness):  # type: ignore[no-untyped-def]
    two, nothing = spread(_two), spread(_zero)
    beyond = spread(steepness) * (x - spread(_one)) + two
    value = where_above(spread(_one), x, two * x, beyond)
    slope = where_above(spread(_one), x, two, spread(steepness))
    slope = where_above(spread(limit), value, slope, nothing)
    return where_above(value, spread(limit), spread(limit), value), slope  # NaN stays


@part_of_kernel
def _double(x, limit, steepness):  # type: ignore[no-untyped-def]
    return spread(_two) * x, spread(_two)


_X_EXP_BEND = np.float32(XExp.BEND)
_X_EXP_SLOPE = np.float32(np.exp(XExp.BEND) * (1 + XExp.BEND))


@part_of_kernel
def _x_exp(x, limit, steepness):  # type: ignore[no-untyped-def]
    low = where_above(x, spread(_X_EXP_BEND), spread(_X_EXP_BEND), x)
    power = exp(low)
    return low * power + spread(_X_EXP_SLOPE) * (x - low), power * (spread(_one) + low)


_ARTANH_BEND = np.float32(Artanh.BEND)
_ARTANH_SLOPE = np.float32(2 / (1 - Artanh.BEND**2))


@part_of_kernel
def _artanh(x, limit, steepness):  # type: ignore[no-untyped-def]
    low = where_above(x, spread(_ARTANH_BEND), spread(_ARTANH_BEND), x)
    one = spread(_one)
    above, below = one + low, inverse(one - low)
    return log(above * below) + spread(_ARTANH_SLOPE) * (x - low), spread(_two) * below * inverse(above)


@part_of_kernel
def _weigh_vector(  # type: ignore[no-untyped-def]
    activation, load, store, block, i, j, left, own_norm, norms, scale, shift, limit, steepness
):
    """Replace a vector of inner products; return that of exp(shift − h), w and d²."""
    nothing = spread(_zero)
    distance = spread(own_norm) + load(norms, 0, j, left) - spread(_two) * load(block, i, j, left)
    distance = where_above(nothing, distance, nothing, distance)  # NaN stays
    value, slope = activation(spread(scale) * distance, limit, steepness)
    term = exp(spread(shift) - value)
    weight = term * slope
    store(block, i, j, left, weight)
    return term, weight, distance


@part_of_kernel
def _weigh(  # type: ignore[no-untyped-def]
    activation, block, i, count, own_norm, norms, scale, shift, limit, steepness
):
    whole = count // LANES * LANES
    terms, weights, weighted = spread(_zero), spread(_zero), spread(_zero)
    for j in range(0, whole, LANES):
        term, weight, distance = _weigh_vector(
            activation, load_whole, store_whole, block, i, j, 0, own_norm, norms, scale, shift, limit, steepness
        )
        terms = terms + term
        weights = weights + weight
        weighted = multiply_add(weight, distance, weighted)
    left = count - whole
    if left:
        term, weight, distance = _weigh_vector(
            activation, load_rest, store_rest, block, i, whole, left, own_norm, norms, scale, shift, limit, steepness
        )
        terms = terms + keep_first(term, left, spread(_zero))
        weights = weights + keep_first(weight, left, spread(_zero))
        weighted = weighted + keep_first(weight * distance, left, spread(_zero))
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
        block: float32 [≥ i + 1, ≥ count], overwritten in row i.
        own_norm: |q|².
        norms: float32 [1, ≥ count], |c|².
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
    for i in range(block.shape[0]):
        terms, weights, weighted = weigh_row(
            kind, block, i, block.shape[1], query_norm[i], norms, scale[i], shift[i], limit, steepness
        )
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
