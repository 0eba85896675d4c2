"""Vectors of float32 in kernels: a numba type with explicit loads, stores and arithmetic.

A compiler vectorises a loop only if it can prove that the rows it writes are not those it reads. With ten rows in a
loop it gives up. With these vectors there is nothing to prove, and a tile of rows stays in registers. LLVM translates
them for any processor: a vector is one register of AVX2 or AVX-512, or several smaller ones.

In a kernel: ``store(out, i, j, load(left, i, j) * load(right, i, j))`` for j in range(0, width, LANES); ``load_rest``
and ``store_rest`` are for the rest of a row.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_item_pointer, get_or_insert_function
from numba.core.imputils import lower_builtin
from numba.core.registry import cpu_target
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from distkg.kernels.jit import part_of_kernel

_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")  # part of the key of numba's cache
HAS_AVX512, HAS_AVX = "+avx512f" in _FEATURES, "+avx" in _FEATURES

LANES = 16 if HAS_AVX512 else 8
"""Number of float32 in a vector."""

WIDE = 2 * LANES
"""Number of float32 in a wide vector: two registers, so that long chains of arithmetic on them overlap."""

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
VECTOR = ir.VectorType(_FLOAT, LANES)
_FAST = ("contract", "nsz", "arcp", "reassoc")


class Vector(types.Type):
    """Numba type of a vector.

    Attributes:
        llvm: its type in LLVM.
        suffix: its name in the names of LLVM's functions, which llvmlite cannot make for vectors.
    """

    def __init__(self, lanes: int) -> None:
        super().__init__(name=f"float32x{lanes}")
        self.llvm = ir.VectorType(_FLOAT, lanes)
        self.suffix = f"v{lanes}f32"


vector, wide_vector = Vector(LANES), Vector(WIDE)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.llvm)


def _arithmetic(symbol: Callable[..., Any], instruction: str) -> None:
    @infer_global(symbol)
    class Typed(ConcreteTemplate):
        cases: ClassVar = [signature(kind, kind, kind) for kind in (vector, wide_vector)]

    @lower_builtin(symbol, vector, vector)
    @lower_builtin(symbol, wide_vector, wide_vector)
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(*arguments, flags=_FAST)


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")


def _place(target: Any, context: Any, builder: Any, kind: Any, array: Any, row: Any, column: Any) -> Any:
    """Return the address of the vector at array[row, column], without a check.

    Raises:
        TypeError: the columns of a row may not follow each other in memory, as vectors assume.
    """
    if kind.layout != "C" or kind.dtype != types.float32:
        raise TypeError(f"vectors are loaded from contiguous arrays of float32, not from {kind}")
    made = context.make_array(kind)(context, builder, array)
    pointer = get_item_pointer(context, builder, kind, made, (row, column), wraparound=False)
    return builder.bitcast(pointer, target.as_pointer())


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call a function of LLVM by its whole name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(get_or_insert_function(builder.module, kind, name), arguments)


_FAR = 2.0**100
ZEROS = ir.Constant(VECTOR, [0.0] * LANES)
_ALIGNED = ir.Constant(_INT, 4)


def constants(kind: Any, value: Any) -> Any:
    """Return a vector of LLVM with a constant in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def ints_of(kind: Any) -> Any:
    """Return the type of vectors of int32 with as many lanes."""
    return ir.VectorType(_INT, kind.count)


def _first(builder: Any, count: Any, kind: Any) -> Any:
    """Return the mask of the first ``count`` lanes."""
    ints = ints_of(kind)
    lanes = ir.Constant(ints, list(range(kind.count)))
    return builder.icmp_signed("<", lanes, everywhere(builder, builder.trunc(count, _INT), ints))


def everywhere(builder: Any, value: Any, kind: Any) -> Any:
    """Return a vector of LLVM with a value in every lane."""
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), constants(ints_of(kind), 0))


@intrinsic
def load(context: Any, array: Any, row: Any, column: Any) -> Any:
    """Load array[row, column : column + LANES] of a float32 array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(_place(VECTOR, context, builder, array, *arguments))
        value.align = 4
        return value

    return vector(array, types.intp, types.intp), generate


@intrinsic
def store(context: Any, array: Any, row: Any, column: Any, value: Any) -> Any:
    """Store a vector to array[row, column : column + LANES]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        done = builder.store(arguments[3], _place(VECTOR, context, builder, array, *arguments[:3]))
        done.align = 4
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, vector), generate


@intrinsic
def load_wide(context: Any, array: Any, row: Any, column: Any) -> Any:
    """Load array[row, column : column + WIDE] of a float32 array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(_place(wide_vector.llvm, context, builder, array, *arguments))
        value.align = 4
        return value

    return wide_vector(array, types.intp, types.intp), generate


@intrinsic
def store_wide(context: Any, array: Any, row: Any, column: Any, value: Any) -> Any:
    """Store a wide vector to array[row, column : column + WIDE]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        done = builder.store(arguments[3], _place(wide_vector.llvm, context, builder, array, *arguments[:3]))
        done.align = 4
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, wide_vector), generate


@intrinsic
def load_rest(context: Any, array: Any, row: Any, column: Any, count: Any) -> Any:
    """Load array[row, column : column + count]; the other lanes are 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(VECTOR, context, builder, array, *arguments[:3])
        mask = _first(builder, arguments[3], VECTOR)
        return call(builder, f"llvm.masked.load.{vector.suffix}.p0", VECTOR, place, _ALIGNED, mask, ZEROS)

    return vector(array, types.intp, types.intp, types.intp), generate


@intrinsic
def store_rest(context: Any, array: Any, row: Any, column: Any, count: Any, value: Any) -> Any:
    """Store the first ``count`` lanes to array[row, column : column + count]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(VECTOR, context, builder, array, *arguments[:3])
        mask = _first(builder, arguments[3], VECTOR)
        call(builder, f"llvm.masked.store.{vector.suffix}.p0", ir.VoidType(), arguments[4], place, _ALIGNED, mask)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, types.intp, vector), generate


@intrinsic
def spread(context: Any, value: Any) -> Any:
    """Return a vector with a float32 in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return everywhere(builder, arguments[0], VECTOR)

    return vector(types.float32), generate


@intrinsic
def spread_wide(context: Any, value: Any) -> Any:
    """Return a wide vector with a float32 in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return everywhere(builder, arguments[0], wide_vector.llvm)

    return wide_vector(types.float32), generate


@intrinsic
def spread_as(context: Any, like: Any, value: Any) -> Any:
    """Return a vector like another one, with a float32 in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return everywhere(builder, arguments[1], like.llvm)

    return like(like, types.float32), generate


def _fold(builder: Any, value: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Join halves of a vector until one number is left."""
    lanes = value.type.count
    while lanes > 1:
        lanes //= 2
        places = (ir.Constant(ir.VectorType(_INT, lanes), list(range(start, start + lanes))) for start in (0, lanes))
        value = join(*(builder.shuffle_vector(value, value, place) for place in places))
    return builder.extract_element(value, ir.Constant(_INT, 0))


@intrinsic
def total(context: Any, values: Any) -> Any:
    """Return the sum of the lanes, float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fold(builder, arguments[0], builder.fadd)

    return types.float32(values), generate


@intrinsic
def largest(context: Any, values: Any) -> Any:
    """Return the largest lane, float32; of NaN, any."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def larger(left: Any, right: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", left, right), left, right)

        return _fold(builder, arguments[0], larger)

    return types.float32(values), generate


@part_of_kernel
def load_whole(array, row, column, left):  # type: ignore[no-untyped-def]
    """``load``, with the arguments of ``load_rest``."""
    return load(array, row, column)


@part_of_kernel
def store_whole(array, row, column, left, value):  # type: ignore[no-untyped-def]
    """``store``, with the arguments of ``store_rest``."""
    store(array, row, column, value)


@intrinsic
def magnitude(context: Any, value: Any) -> Any:
    """Return |x| of each lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return call(builder, f"llvm.fabs.{value.suffix}", value.llvm, *arguments)

    return value(value), generate


@intrinsic
def where_above(context: Any, value: Any, bound: Any, above: Any, other: Any) -> Any:
    """Return ``above`` in lanes where ``value`` > ``bound``, ``other`` in the rest, as where either is NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, bound, above, other = arguments
        return builder.select(builder.fcmp_ordered(">", value, bound), above, other)

    return value(value, value, value, value), generate


@intrinsic
def where_at_most(context: Any, value: Any, bound: Any, then: Any, other: Any) -> Any:
    """Return ``then`` in lanes where ``value`` <= ``bound``, ``other`` in the rest, as where either is NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, bound, then, other = arguments
        return builder.select(builder.fcmp_ordered("<=", value, bound), then, other)

    return value(value, value, value, value), generate


@intrinsic
def keep_first(context: Any, values: Any, count: Any, other: Any) -> Any:
    """Return the first ``count`` lanes of ``values``, and those of ``other`` in the rest."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, count, other = arguments
        return builder.select(_first(builder, count, values.type), values, other)

    return values(values, types.intp, values), generate


@intrinsic
def multiply_add(context: Any, left: Any, right: Any, added: Any) -> Any:
    """Return left · right + added, rounded once where the processor can."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return call(builder, f"llvm.fmuladd.{left.suffix}", left.llvm, *arguments)

    return left(left, left, left), generate


@intrinsic
def negative(context: Any, value: Any) -> Any:
    """Return -x of each lane."""
    return vector(vector), lambda context, builder, signature, arguments: builder.fneg(arguments[0])


@intrinsic
def sign_of(context: Any, value: Any) -> Any:
    """Return 1 where ``value`` > 0, -1 where it is < 0, 0 where it is 0, and NaN where it is NaN.

    Between ±10⁻³⁰ the result is between ±1.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.fmul(arguments[0], ir.Constant(VECTOR, [_FAR] * LANES))
        for bound, beyond in ((1.0, ">"), (-1.0, "<")):
            limit = ir.Constant(VECTOR, [bound] * LANES)
            value = builder.select(builder.fcmp_ordered(beyond, value, limit), limit, value)
        return value

    return vector(vector), generate


@intrinsic
def _estimate(context: Any, value: Any) -> Any:
    """Return 1/√x to 11 bits at least, by the processor's instruction for it; exactly if it has none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        if HAS_AVX512:
            everything = ir.Constant(ir.IntType(16), -1)
            return call(builder, "llvm.x86.avx512.rsqrt14.ps.512", VECTOR, x, ZEROS, everything)
        if HAS_AVX:
            return call(builder, "llvm.x86.avx.rsqrt.ps.256", VECTOR, x)
        root = call(builder, f"llvm.sqrt.{vector.suffix}", VECTOR, x)
        return builder.fdiv(ir.Constant(VECTOR, [1.0] * LANES), root)

    return vector(vector), generate


@part_of_kernel
def two_inverse_roots(x):  # type: ignore[no-untyped-def]
    """Return two factors whose product is 2/√x for normal numbers x > 0, with a relative error below 4·10⁻⁷.

    An estimate and a step of Newton's method, instead of a root and a division. As factors, because a kernel multiplies
    by more anyway.
    """
    estimate = _estimate(x)
    return estimate, spread(np.float32(3)) - x * estimate * estimate
