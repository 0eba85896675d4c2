"""Exponential and logarithm of vectors in kernels, with the polynomials of ``fast_math``.

A compiler that makes vectors of a loop by itself takes narrow ones on some processors, and divides where an estimate
and a step of Newton's method do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from distkg.kernels.jit import part_of_kernel
from distkg.kernels.vectors.fast_math import HIGHEST, LN_2, LN_2_POWERS, LOG2_E, LOG_POWERS, SQRT_HALF_BITS
from distkg.kernels.vectors.simd import (
    HAS_AVX,
    HAS_AVX512,
    LANES,
    VECTOR,
    ZEROS,
    call,
    constants,
    ints_of,
    magnitude,
    multiply_add,
    spread_as,
    where_above,
    where_at_most,
)

_MAGIC = 1.5 * 2**23  # x + this has the nearest integer to x in its last bits
_MANTISSA_BITS, _BIAS = 23, 127
# log(1 + t) / t on [0, 1], by least squares at Chebyshev points; relative error below 2.1·10⁻⁷
_LOG_COEFFICIENTS = tuple(
    np.float32(value)
    for value in (
        0.9999999403953552,
        -0.4999943673610687,
        0.3331793546676636,
        -0.2483394593000412,
        0.1907130926847458,
        -0.13590599596500397,
        0.07738073915243149,
        -0.028991956263780594,
        0.0051058256067335606,
    )
)
_ZERO, _ONE, _TWO, _LEAST_POWER = np.float32(0), np.float32(1), np.float32(2), np.float32(-100)


@intrinsic
def nearest(context: Any, value: Any) -> Any:
    """Round each lane to the nearest integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return call(builder, f"llvm.rint.{value.suffix}", value.llvm, arguments[0])

    return value(value), generate


@intrinsic
def power_of_two(context: Any, value: Any) -> Any:
    """Return 2ⁿ with n the nearest integer, in [-126, 127], of each lane, by setting the exponent bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        ints = ints_of(value.llvm)
        bits = builder.bitcast(builder.fadd(arguments[0], constants(value.llvm, _MAGIC)), ints)
        exponent = builder.shl(bits, constants(ints, _MANTISSA_BITS))
        return builder.bitcast(builder.add(exponent, constants(ints, _BIAS << _MANTISSA_BITS)), value.llvm)

    return value(value), generate


def _estimate_of_register(builder: Any, x: Any) -> Any:
    if HAS_AVX512:
        everything = ir.Constant(ir.IntType(16), -1)
        return call(builder, "llvm.x86.avx512.rcp14.ps.512", VECTOR, x, ZEROS, everything)
    if HAS_AVX:
        return call(builder, "llvm.x86.avx.rcp.ps.256", VECTOR, x)
    return builder.fdiv(constants(VECTOR, 1.0), x)


def _by_registers(builder: Any, value: Any, function: Any) -> Any:
    """Apply a function of LANES lanes to each part of a vector."""
    if value.type.count == LANES:
        return function(builder, value)
    places = [ir.Constant(ints_of(VECTOR), list(range(low, low + LANES))) for low in (0, LANES)]
    halves = [function(builder, builder.shuffle_vector(value, value, place)) for place in places]
    both = ir.Constant(ints_of(value.type), list(range(value.type.count)))
    return builder.shuffle_vector(*halves, both)


@intrinsic
def _estimate_of_inverse(context: Any, value: Any) -> Any:
    """Return 1/x to 11 bits at least, by the processor's instruction for it; exactly if it has none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _by_registers(builder, arguments[0], _estimate_of_register)

    return value(value), generate


@part_of_kernel
def inverse(x):  # type: ignore[no-untyped-def]
    """Return 1/x of normal numbers, with a relative error below 3·10⁻⁷."""
    estimate = _estimate_of_inverse(x)
    return estimate * (spread_as(x, _TWO) - x * estimate)


@part_of_kernel
def power(y):  # type: ignore[no-untyped-def]
    """Return 2^y for y <= 127, and 0 below 2⁻¹⁰⁰: products of smaller numbers take a processor a hundred times as
    long."""
    r = y - nearest(y)
    value = spread_as(y, LN_2_POWERS[5])
    value = multiply_add(value, r, spread_as(y, LN_2_POWERS[4]))
    value = multiply_add(value, r, spread_as(y, LN_2_POWERS[3]))
    value = multiply_add(value, r, spread_as(y, LN_2_POWERS[2]))
    value = multiply_add(value, r, spread_as(y, LN_2_POWERS[1]))
    value = multiply_add(value, r, spread_as(y, LN_2_POWERS[0]))
    return where_at_most(y, spread_as(y, _LEAST_POWER), spread_as(y, _ZERO), value * power_of_two(y))  # NaN stays


@part_of_kernel
def exp_of_negative(x):  # type: ignore[no-untyped-def]
    """Return eˣ for x <= 88, and 0 where it is below 2⁻¹⁰⁰; see ``fast_math.exp``."""
    return power(x * spread_as(x, LOG2_E))


@part_of_kernel
def exp(x):  # type: ignore[no-untyped-def]
    """Return eˣ, with x at most 88, and 0 where it is below 2⁻¹⁰⁰."""
    return exp_of_negative(where_above(x, spread_as(x, HIGHEST), spread_as(x, HIGHEST), x))  # NaN stays


@part_of_kernel
def log_of_one_plus(t):  # type: ignore[no-untyped-def]
    """Return log(1 + t) for t in [0, 1]."""
    value = spread_as(t, _LOG_COEFFICIENTS[8])
    value = multiply_add(value, t, spread_as(t, _LOG_COEFFICIENTS[7]))
    value = multiply_add(value, t, spread_as(t, _LOG_COEFFICIENTS[6]))
    value = multiply_add(value, t, spread_as(t, _LOG_COEFFICIENTS[5]))
    value = multiply_add(value, t, spread_as(t, _LOG_COEFFICIENTS[4]))
    value = multiply_add(value, t, spread_as(t, _LOG_COEFFICIENTS[3]))
    value = multiply_add(value, t, spread_as(t, _LOG_COEFFICIENTS[2]))
    value = multiply_add(value, t, spread_as(t, _LOG_COEFFICIENTS[1]))
    value = multiply_add(value, t, spread_as(t, _LOG_COEFFICIENTS[0]))
    return value * t


@part_of_kernel
def softplus(x):  # type: ignore[no-untyped-def]
    """Return log(1 + eˣ), and its slope σ(x); the relative error of either is below 10⁻⁶ for |x| < 20."""
    nothing = spread_as(x, _ZERO)
    t = exp_of_negative(nothing - magnitude(x))
    share = inverse(spread_as(x, _ONE) + t)
    slope = where_above(nothing, x, t * share, share)
    return log_of_one_plus(t) + where_above(nothing, x, nothing, x), slope


def _exponent_and_mantissa(builder: Any, value: Any) -> tuple[Any, Any]:
    """Return n, int32, and m of x = 2ⁿ m with √½ <= m < √2."""
    ints = ints_of(value.type)
    root, mantissa_bits = constants(ints, SQRT_HALF_BITS), constants(ints, (1 << _MANTISSA_BITS) - 1)
    bits = builder.sub(builder.bitcast(value, ints), root)
    mantissa = builder.bitcast(builder.add(builder.and_(bits, mantissa_bits), root), value.type)
    return builder.ashr(bits, constants(ints, _MANTISSA_BITS)), mantissa


@intrinsic
def _exponent(context: Any, value: Any) -> Any:
    """Return n of x = 2ⁿ m with √½ <= m < √2, for positive normal numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.sitofp(_exponent_and_mantissa(builder, arguments[0])[0], value.llvm)

    return value(value), generate


@intrinsic
def _mantissa(context: Any, value: Any) -> Any:
    """Return m of x = 2ⁿ m with √½ <= m < √2, for positive normal numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _exponent_and_mantissa(builder, arguments[0])[1]

    return value(value), generate


@part_of_kernel
def log(x):  # type: ignore[no-untyped-def]
    """Return the natural logarithm of positive normal numbers; see ``fast_math.log``."""
    m = _mantissa(x) - spread_as(x, _ONE)
    value = spread_as(x, LOG_POWERS[8])
    value = multiply_add(value, m, spread_as(x, LOG_POWERS[7]))
    value = multiply_add(value, m, spread_as(x, LOG_POWERS[6]))
    value = multiply_add(value, m, spread_as(x, LOG_POWERS[5]))
    value = multiply_add(value, m, spread_as(x, LOG_POWERS[4]))
    value = multiply_add(value, m, spread_as(x, LOG_POWERS[3]))
    value = multiply_add(value, m, spread_as(x, LOG_POWERS[2]))
    value = multiply_add(value, m, spread_as(x, LOG_POWERS[1]))
    value = multiply_add(value, m, spread_as(x, LOG_POWERS[0]))
    return value * m + _exponent(x) * spread_as(x, LN_2)
