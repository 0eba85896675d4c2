"""Cache prefetch of matrix rows in compiled loops with random access."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

AHEAD = 4
"""Rows by which a loop over rows of a few cache lines prefetches."""

_LINE = 64  # bytes of a cache line
_POINTER, _INT, _LONG = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
_PREFETCH = ir.FunctionType(ir.VoidType(), [_POINTER, _INT, _INT, _INT])
_READ, _KEEP, _DATA = (ir.Constant(_INT, value) for value in (0, 3, 1))


@intrinsic
def prefetch_row(context: Any, matrix: Any, row: Any) -> Any:
    """Prefetch a row of a C-contiguous matrix into the cache, without waiting."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride, _ = cgutils.unpack_tuple(builder, array.strides)
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        start = builder.gep(builder.bitcast(array.data, _POINTER), [builder.mul(place, stride)])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [_POINTER], _PREFETCH)
        bounds = ir.Constant(_LONG, 0), stride, ir.Constant(_LONG, _LINE)
        with cgutils.for_range_slice(builder, *bounds, intp=_LONG) as (offset, _):
            builder.call(prefetch, [builder.gep(start, [offset]), _READ, _KEEP, _DATA])
        return context.get_dummy_value()

    return types.void(matrix, row), generate
