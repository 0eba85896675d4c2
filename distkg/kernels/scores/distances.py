"""Distances of a query and a row in vectors of float32: the terms of a score, and their slopes.

A row or query has one to three parts of equal width: real and imaginary, or a point and the scales of a row's parts.
In kernels, parts are tuples of as many SIMD vectors.
"""

from __future__ import annotations

import numpy as np

from distkg.kernels.jit import part_of_kernel
from distkg.kernels.vectors.simd import magnitude, multiply_add, negative, sign_of, spread, two_inverse_roots

TINY = np.float32(1e-30)
"""Added to the square of a modulus |z|, so that its derivative is finite at z = 0."""

# Parts have ``width`` floats each, of which ``left`` remain from column j on. ``load`` and ``store`` are those of whole
# vectors in the loop over columns, and those of the rest behind it: a choice within the loop would cut it up.


@part_of_kernel
def load_one(load, array, i, j, left, width):  # type: ignore[no-untyped-def]
    return (load(array, i, j, left),)


@part_of_kernel
def load_two(load, array, i, j, left, width):  # type: ignore[no-untyped-def]
    return load(array, i, j, left), load(array, i, width + j, left)


@part_of_kernel
def load_three(load, array, i, j, left, width):  # type: ignore[no-untyped-def]
    return load(array, i, j, left), load(array, i, width + j, left), load(array, i, 2 * width + j, left)


@part_of_kernel
def store_one(store, array, i, j, left, width, parts):  # type: ignore[no-untyped-def]
    store(array, i, j, left, parts[0])


@part_of_kernel
def store_two(store, array, i, j, left, width, parts):  # type: ignore[no-untyped-def]
    store(array, i, j, left, parts[0])
    store(array, i, width + j, left, parts[1])


@part_of_kernel
def store_three(store, array, i, j, left, width, parts):  # type: ignore[no-untyped-def]
    store(array, i, j, left, parts[0])
    store(array, i, width + j, left, parts[1])
    store(array, i, 2 * width + j, left, parts[2])


@part_of_kernel
def add_one(factor, units, parts):  # type: ignore[no-untyped-def]
    return (multiply_add(factor, units[0], parts[0]),)


@part_of_kernel
def add_two(factor, units, parts):  # type: ignore[no-untyped-def]
    return multiply_add(factor, units[0], parts[0]), multiply_add(factor, units[1], parts[1])


@part_of_kernel
def add_three(factor, units, parts):  # type: ignore[no-untyped-def]
    first, second = multiply_add(factor, units[0], parts[0]), multiply_add(factor, units[1], parts[1])
    return first, second, multiply_add(factor, units[2], parts[2])


# Distances. A score is ``scale`` times the sum of its terms. The slopes of a term times g are a factor times units of
# the query and of the row.


@part_of_kernel
def dot_term(q, c):  # type: ignore[no-untyped-def]
    return q[0] * c[0]


@part_of_kernel
def dot_slopes(g, q, c):  # type: ignore[no-untyped-def]
    return g, c, q


@part_of_kernel
def squared_term(q, c):  # type: ignore[no-untyped-def]
    gap = q[0] - c[0]
    return gap * gap


@part_of_kernel
def squared_slopes(g, q, c):  # type: ignore[no-untyped-def]
    gap = q[0] - c[0]
    return g + g, (gap,), (negative(gap),)


@part_of_kernel
def l1_term(q, c):  # type: ignore[no-untyped-def]
    return magnitude(q[0] - c[0])


@part_of_kernel
def l1_slopes(g, q, c):  # type: ignore[no-untyped-def]
    sign = sign_of(q[0] - c[0])
    return g, (sign,), (negative(sign),)


@part_of_kernel
def scaled_l1_term(q, c):  # type: ignore[no-untyped-def]
    return magnitude(q[0] - q[1] * c[0])


@part_of_kernel
def scaled_l1_slopes(g, q, c):  # type: ignore[no-untyped-def]
    sign = sign_of(q[0] - q[1] * c[0])
    return g, (sign, negative(sign * c[0])), (negative(sign * q[1]),)


@part_of_kernel
def scaled_squared_term(q, c):  # type: ignore[no-untyped-def]
    gap = q[0] - q[1] * c[0]
    return gap * gap


@part_of_kernel
def scaled_squared_slopes(g, q, c):  # type: ignore[no-untyped-def]
    gap = q[0] - q[1] * c[0]
    return g + g, (gap, negative(gap * c[0])), (negative(gap * q[1]),)


@part_of_kernel
def affine_l1_term(q, c):  # type: ignore[no-untyped-def]
    return magnitude(q[0] + q[1] * c[0] + q[2] * c[1])


@part_of_kernel
def affine_l1_slopes(g, q, c):  # type: ignore[no-untyped-def]
    sign = sign_of(q[0] + q[1] * c[0] + q[2] * c[1])
    return g, (sign, sign * c[0], sign * c[1]), (sign * q[1], sign * q[2])


@part_of_kernel
def modulus_term(q, c):  # type: ignore[no-untyped-def]
    real, imaginary = q[0] - c[0], q[1] - c[1]
    square = spread(TINY) + real * real + imaginary * imaginary
    estimate, correction = two_inverse_roots(square)
    return square * estimate * correction


@part_of_kernel
def modulus_slopes(g, q, c):  # type: ignore[no-untyped-def]
    real, imaginary = q[0] - c[0], q[1] - c[1]
    estimate, correction = two_inverse_roots(spread(TINY) + real * real + imaginary * imaginary)
    slope = g * estimate * correction
    real, imaginary = slope * real, slope * imaginary
    return spread(np.float32(1)), (real, imaginary), (negative(real), negative(imaginary))
