"""Compiled pass over a block that turns inner products into the gradient weights of log Σ exp(−h).

Each kernel replaces the inner product of query i and candidate j by

    w = exp(shift − h(x)) · h′(x),   x = scale · d²,   d² = |q|² + |c|² − 2 q·c,

and adds Σ_j exp(shift − h), Σ_j w and Σ_j w d² to the three columns of ``sums``.

Arguments: block float32 [B, n] of inner products, overwritten; query_norm, scale, shift float32 [B];
candidate_norm float32 [n]; limit γ and steepness β; sums float32 [B, 3]. ``activations.py`` has h and h′ in torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from distkg.kernels.fast_math import exp, log
from distkg.kernels.jit import kernel, part_of_kernel
from distkg.kernels.scores.activations import Activation, Artanh, Double, Halin, Hanon, XExp

_zero, _half, _one, _two = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
Array = np.ndarray


@part_of_kernel
def _hanon(x: np.float32, limit: np.float32, steepness: np.float32) -> tuple[np.float32, np.float32]:
    away = exp(steepness * (_half - x)) * limit
    share = _one / (_one + away)
    value = limit * share
    return value, steepness * value * away * share


@part_of_kernel
def _halin(x: np.float32, limit: np.float32, steepness: np.float32) -> tuple[np.float32, np.float32]:
    value = _two * x if x < _one else steepness * (x - _one) + _two
    slope = _two if x < _one else steepness
    return (limit, _zero) if value >= limit else (value, slope)


@part_of_kernel
def _double(x: np.float32, limit: np.float32, steepness: np.float32) -> tuple[np.float32, np.float32]:
    return _two * x, _two


_X_EXP_BEND = np.float32(XExp.BEND)
_X_EXP_SLOPE = np.float32(np.exp(XExp.BEND) * (1 + XExp.BEND))


@part_of_kernel
def _x_exp(x: np.float32, limit: np.float32, steepness: np.float32) -> tuple[np.float32, np.float32]:
    low = _X_EXP_BEND if x > _X_EXP_BEND else x
    power = exp(low)
    return low * power + _X_EXP_SLOPE * (x - low), power * (_one + low)


_ARTANH_BEND = np.float32(Artanh.BEND)
_ARTANH_SLOPE = np.float32(2 / (1 - Artanh.BEND**2))


@part_of_kernel
def _artanh(x: np.float32, limit: np.float32, steepness: np.float32) -> tuple[np.float32, np.float32]:
    low = _ARTANH_BEND if x > _ARTANH_BEND else x
    return log((_one + low) / (_one - low)) + _ARTANH_SLOPE * (x - low), _two / (_one - low * low)


@part_of_kernel
def _weigh(  # type: ignore[no-untyped-def]
    activation, block, query_norm, candidate_norm, scale, shift, limit, steepness, sums
):
    for i in range(block.shape[0]):
        row, own_norm, factor, most = block[i], query_norm[i], scale[i], shift[i]
        total, weights, weighted = _zero, _zero, _zero
        for j in range(row.shape[0]):
            distance = own_norm + candidate_norm[j] - _two * row[j]
            distance = _zero if distance < _zero else distance  # NaN stays
            value, slope = activation(factor * distance, limit, steepness)
            term = exp(most - value)
            weight = term * slope
            row[j] = weight
            total += term
            weights += weight
            weighted += weight * distance
        sums[i, 0] += total
        sums[i, 1] += weights
        sums[i, 2] += weighted


# One compiled entry per activation: a kernel that takes a function as an argument would not be cached on disk.


@kernel
def weigh_hanon(block, query_norm, candidate_norm, scale, shift, limit, steepness, sums):  # type: ignore[no-untyped-def]
    _weigh(_hanon, block, query_norm, candidate_norm, scale, shift, limit, steepness, sums)


@kernel
def weigh_halin(block, query_norm, candidate_norm, scale, shift, limit, steepness, sums):  # type: ignore[no-untyped-def]
    _weigh(_halin, block, query_norm, candidate_norm, scale, shift, limit, steepness, sums)


@kernel
def weigh_double(block, query_norm, candidate_norm, scale, shift, limit, steepness, sums):  # type: ignore[no-untyped-def]
    _weigh(_double, block, query_norm, candidate_norm, scale, shift, limit, steepness, sums)


@kernel
def weigh_x_exp(block, query_norm, candidate_norm, scale, shift, limit, steepness, sums):  # type: ignore[no-untyped-def]
    _weigh(_x_exp, block, query_norm, candidate_norm, scale, shift, limit, steepness, sums)


@kernel
def weigh_artanh(block, query_norm, candidate_norm, scale, shift, limit, steepness, sums):  # type: ignore[no-untyped-def]
    _weigh(_artanh, block, query_norm, candidate_norm, scale, shift, limit, steepness, sums)


WEIGHING: dict[type[Activation], Callable[..., None]] = {
    Hanon: weigh_hanon,
    Halin: weigh_halin,
    Double: weigh_double,
    XExp: weigh_x_exp,
    Artanh: weigh_artanh,
}
