"""exp and log of float32 in forms that compiled loops can take sixteen numbers at a time, unlike the C library's.

Polynomials fitted by least squares at Chebyshev points. Relative error below 3·10⁻⁷; exp's grows with |x|, as float32
products of x round, to 6·10⁻⁶ at the ends of its range.
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
    """The whole number nearest to x, as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [_FLOAT]), arguments)

    return types.float32(types.float32), generate


@intrinsic
def _power_of_two(context: Any, n: Any) -> Any:
    """2ⁿ of a whole float32 n in [-126, 127], written into the exponent's bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        exponent = builder.add(builder.fptosi(arguments[0], _INT), ir.Constant(_INT, _BIAS))
        return builder.bitcast(builder.shl(exponent, ir.Constant(_INT, _MANTISSA_BITS)), _FLOAT)

    return types.float32(types.float32), generate


@intrinsic
def _bits(context: Any, x: Any) -> Any:
    """The bits of a float32 as int32."""
    return types.int32(types.float32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], _INT
    )


@intrinsic
def _from_bits(context: Any, bits: Any) -> Any:
    """The float32 of an int32's bits."""
    return types.float32(types.int32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], _FLOAT
    )


_one = np.float32(1)
_LOWEST, _HIGHEST = np.float32(-87), np.float32(88)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_LOG2_E, _LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)


@part_of_kernel
def exp(x: np.float32) -> np.float32:
    """eˣ; below -87 it is e⁻⁸⁷ and above 88 e⁸⁸. NaN stays NaN."""
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    y = x * _LOG2_E
    whole = _nearest(y)
    r = y - whole
    # 2^r for |r| <= 1/2
    value = np.float32(1.326697039e-3)
    value = value * r + np.float32(9.675459746e-3)
    value = value * r + np.float32(5.550742616e-2)
    value = value * r + np.float32(2.402212175e-1)
    value = value * r + np.float32(6.931469492e-1)
    value = value * r + _one
    return value * _power_of_two(whole)


@part_of_kernel
def log(x: np.float32) -> np.float32:
    """Natural logarithm of a positive normal number."""
    # x = 2^n (1 + m) with √½ <= 1 + m < √2
    bits = _bits(x) - _SQRT_HALF_BITS
    n = bits >> np.int32(_MANTISSA_BITS)
    m = _from_bits((bits & np.int32(0x007FFFFF)) + _SQRT_HALF_BITS) - _one
    # log(1 + m) / m
    value = np.float32(8.512213573e-2)
    value = value * m + np.float32(-1.425842616e-1)
    value = value * m + np.float32(1.498023654e-1)
    value = value * m + np.float32(-1.657972748e-1)
    value = value * m + np.float32(1.995582886e-1)
    value = value * m + np.float32(-2.500127177e-1)
    value = value * m + np.float32(3.333419428e-1)
    value = value * m + np.float32(-4.999999732e-1)
    value = value * m + _one
    return value * m + np.float32(n) * _LN_2
