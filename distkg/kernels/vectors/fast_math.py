"""Vectorisable exp, log, sine and cosine of float32: compiled loops process sixteen numbers at a time, which they
cannot do with the functions of the C library.

Polynomials fitted by least squares at Chebyshev points. Relative error below 3·10⁻⁷; that of exp grows with |x|, since
products with x are rounded to float32, to 6·10⁻⁶ at the ends of its range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from distkg.kernels.jit import part_of_kernel

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_MANTISSA_BITS, _BIAS = 23, 127


@intrinsic
def _nearest(context: Any, x: Any) -> Any:
    """Round x to the nearest integer, as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [_FLOAT]), arguments)

    return types.float32(types.float32), generate


@intrinsic
def _power_of_two(context: Any, n: Any) -> Any:
    """Return 2ⁿ for an integral float32 n in [-126, 127], by setting the exponent bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        exponent = builder.add(builder.fptosi(arguments[0], _INT), ir.Constant(_INT, _BIAS))
        return builder.bitcast(builder.shl(exponent, ir.Constant(_INT, _MANTISSA_BITS)), _FLOAT)

    return types.float32(types.float32), generate


@intrinsic
def _bits(context: Any, x: Any) -> Any:
    """Return the bits of a float32 as int32."""
    return types.int32(types.float32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], _INT
    )


@intrinsic
def _from_bits(context: Any, bits: Any) -> Any:
    """Return the float32 with the bits of an int32."""
    return types.float32(types.int32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], _FLOAT
    )


@intrinsic
def _whole(context: Any, x: Any) -> Any:
    """Convert an integral float32 to int32."""
    return types.int32(types.float32), lambda context, builder, signature, arguments: builder.fptosi(arguments[0], _INT)


_one = np.float32(1)
LOWEST, HIGHEST = np.float32(-87), np.float32(88)
SQRT_HALF_BITS = np.int32(0x3F3504F3)
LOG2_E, LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
LN_2_POWERS = tuple(
    np.float32(value) for value in (1, 6.931469492e-1, 2.402212175e-1, 5.550742616e-2, 9.675459746e-3, 1.326697039e-3)
)
"""Coefficients of 2^r for |r| <= 1/2, nearly (log 2)ⁿ / n!."""

LOG_POWERS = tuple(
    np.float32(value)
    for value in (
        1, -4.999999732e-1, 3.333419428e-1, -2.500127177e-1, 1.995582886e-1, -1.657972748e-1, 1.498023654e-1,
        -1.425842616e-1, 8.512213573e-2,
    )
)  # fmt: skip
"""Coefficients of log(1 + m) / m for √½ <= 1 + m < √2."""


@part_of_kernel
def exp(x: np.float32) -> np.float32:
    """Return eˣ, with x clamped to [-87, 88]. NaN stays NaN."""
    x = LOWEST if x < LOWEST else x
    x = HIGHEST if x > HIGHEST else x
    y = x * LOG2_E
    whole = _nearest(y)
    r = y - whole
    value = LN_2_POWERS[5]
    value = value * r + LN_2_POWERS[4]
    value = value * r + LN_2_POWERS[3]
    value = value * r + LN_2_POWERS[2]
    value = value * r + LN_2_POWERS[1]
    value = value * r + LN_2_POWERS[0]
    return value * _power_of_two(whole)


@part_of_kernel
def log(x: np.float32) -> np.float32:
    """Return the natural logarithm of a positive normal number."""
    # x = 2^n (1 + m) with √½ <= 1 + m < √2
    bits = _bits(x) - SQRT_HALF_BITS
    n = bits >> np.int32(_MANTISSA_BITS)
    m = _from_bits((bits & np.int32(0x007FFFFF)) + SQRT_HALF_BITS) - _one
    value = LOG_POWERS[8]
    value = value * m + LOG_POWERS[7]
    value = value * m + LOG_POWERS[6]
    value = value * m + LOG_POWERS[5]
    value = value * m + LOG_POWERS[4]
    value = value * m + LOG_POWERS[3]
    value = value * m + LOG_POWERS[2]
    value = value * m + LOG_POWERS[1]
    value = value * m + LOG_POWERS[0]
    return value * m + np.float32(n) * LN_2


_half, _TWO_OVER_PI = np.float32(0.5), np.float32(0.6366197723675814)
# π/2 in three parts of few bits, so that integer multiples of the first two are exact.
_HALF_PI_1, _HALF_PI_2 = np.float32(1.5703125), np.float32(4.837512969970703e-4)
_HALF_PI_3 = np.float32(7.54978942e-8)


@part_of_kernel
def sine_and_cosine(x: np.float32) -> tuple[np.float32, np.float32]:
    """Return sin x and cos x, with error below 10⁻⁷ for |x| up to 1000; only for ``kernel_in_order``.

    For larger |x| the error grows like the rounding error of x.
    """
    quarter = _nearest(x * _TWO_OVER_PI)
    r = ((x - quarter * _HALF_PI_1) - quarter * _HALF_PI_2) - quarter * _HALF_PI_3
    square = r * r
    sine = np.float32(-1.958769808e-4)
    sine = sine * square + np.float32(8.332747469e-3)
    sine = sine * square + np.float32(-1.666666466e-1)
    sine = sine * square * r + r
    cosine = np.float32(2.542077551e-5)
    cosine = cosine * square + np.float32(-1.389504060e-3)
    cosine = cosine * square + np.float32(4.166676868e-2)
    cosine = cosine * square * square + (_one - _half * square)
    turn = _whole(quarter)
    odd = (turn & np.int32(1)) != 0
    first, second = (cosine, sine) if odd else (sine, cosine)
    first = -first if (turn & np.int32(2)) != 0 else first
    second = -second if ((turn + np.int32(1)) & np.int32(2)) != 0 else second
    return first, second
