"""Products of float32 matrices within a kernel, in tiles whose sums stay in registers.

A library's product is a call of its own, so what is computed from it is a pass over memory, and Python is in between.
With these, a kernel computes products, what follows from them and further products while all of it is in the core's
cache. In blocks of a few hundred rows and columns they are as fast as MKL and oneDNN with AVX-512 and with AVX2.

Matrices are padded, since tiles are whole: see ``padded``.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from distkg.kernels.jit import kernel, part_of_kernel
from distkg.kernels.vectors.simd import HAS_AVX, HAS_AVX512, LANES, VECTOR, ZEROS, call, everywhere, vector

_WIDE_REGISTERS = HAS_AVX or platform.machine().lower() in ("aarch64", "arm64")
ROWS, VECTORS = (12, 2) if HAS_AVX512 else (6, 2) if _WIDE_REGISTERS else (6, 1)
"""Rows and vectors of a tile: its sums, a row of vectors and a factor just fit the registers of the processor."""

FEW = ROWS // 3
"""Rows of the tiles for the rest of a matrix."""

STEP = 2
"""Terms that a loop over the depth adds at a time."""

_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_TOGETHER = 3  # rows of the left matrix that one address serves
_LINE = 16  # float32 in a cache line


def _tile(rows: int, vectors: int) -> Any:
    """Return an intrinsic that writes left[r : r + rows] @ right[:, c : c + vectors · LANES] to ``out``, or adds it."""

    @intrinsic
    def multiply(context: Any, out: Any, left: Any, right: Any, row: Any, column: Any, depth: Any, adds: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, left, right, row, column, depth, adds = arguments
            nothing = ir.Constant(_LONG, 0)
            target, step = _address(context, builder, signature.args[0], out, row, column)
            factor, (by_row, by_term) = _address(context, builder, signature.args[1], left, row, nothing)
            operand, (next_term, _) = _address(context, builder, signature.args[2], right, nothing, column)
            outputs = [_after(builder, target, builder.mul(step[0], _long(r))) for r in range(rows)]
            sums = _sums_so_far(builder, outputs, vectors, adds)
            factors = [_after(builder, factor, builder.mul(by_row, _long(r))) for r in range(0, rows, _TOGETHER)]
            offsets = [builder.mul(by_row, _long(r)) for r in range(_TOGETHER)]

            before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("terms", "summed"))
            builder.branch(loop)
            builder.position_at_end(loop)
            carried = [nothing, operand, *factors, *sums]
            phis = [builder.phi(value.type) for value in carried]
            for phi, value in zip(phis, carried, strict=True):
                phi.add_incoming(value, before)
            term, operand, *others = phis
            factors, sums = others[: len(factors)], others[len(factors) :]
            for _ in range(STEP):
                operands = [_load(builder, operand, v) for v in range(vectors)]
                for r in range(rows):
                    place = _after(builder, factors[r // _TOGETHER], offsets[r % _TOGETHER])
                    single = builder.load(builder.bitcast(place, _FLOAT.as_pointer()))
                    spread = everywhere(builder, single, VECTOR)
                    for v in range(vectors):
                        at = r * vectors + v
                        sums[at] = call(builder, f"llvm.fmuladd.{vector.suffix}", VECTOR, spread, operands[v], sums[at])
                operand = _after(builder, operand, next_term)
                factors = [_after(builder, place, by_term) for place in factors]
            term = builder.add(term, _long(STEP))
            for phi, value in zip(phis, [term, operand, *factors, *sums], strict=True):
                phi.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", term, depth), loop, after)
            builder.position_at_end(after)
            for at, value in enumerate(sums):
                place = _vector(builder, outputs[at // vectors], at % vectors)
                builder.store(value, place).align = 4
            return context.get_dummy_value()

        return types.none(out, left, right, types.intp, types.intp, types.intp, types.boolean), generate

    return multiply


def _sums_so_far(builder: Any, outputs: list[Any], vectors: int, adds: Any) -> list[Any]:
    """Return the vectors of the output if ``adds``, else zeros."""
    before, load, begin = builder.block, *(builder.append_basic_block(name) for name in ("adds", "begin"))
    builder.cbranch(builder.trunc(adds, ir.IntType(1)), load, begin)
    builder.position_at_end(load)
    loaded = [_load(builder, output, v) for output in outputs for v in range(vectors)]
    builder.branch(begin)
    builder.position_at_end(begin)
    sums = []
    for value in loaded:
        phi = builder.phi(VECTOR)
        phi.add_incoming(ZEROS, before)
        phi.add_incoming(value, load)
        sums.append(phi)
    return sums


def _address(context: Any, builder: Any, kind: Any, array: Any, row: Any, column: Any) -> tuple[Any, Any]:
    """Return the address of array[row, column] and the array's strides in bytes."""
    if kind.dtype != types.float32:
        raise TypeError(f"tiles are of float32, not of {kind}")
    made = context.make_array(kind)(context, builder, array)
    strides = [builder.extract_value(made.strides, axis) for axis in range(2)]
    start = builder.bitcast(made.data, _BYTES)
    return _after(builder, start, builder.add(builder.mul(row, strides[0]), builder.mul(column, strides[1]))), strides


def _long(value: int) -> Any:
    return ir.Constant(_LONG, value)


def _after(builder: Any, address: Any, offset: Any) -> Any:
    return builder.gep(address, [offset])


def _vector(builder: Any, address: Any, place: int) -> Any:
    return builder.bitcast(_after(builder, address, _long(4 * LANES * place)), VECTOR.as_pointer())


def _load(builder: Any, address: Any, place: int) -> Any:
    value = builder.load(_vector(builder, address, place))
    value.align = 4
    return value


_tiles = {(rows, vectors): _tile(rows, vectors) for rows in (ROWS, FEW) for vectors in (VECTORS, 1)}
_whole, _narrow = _tiles[ROWS, VECTORS], _tiles[ROWS, 1]
_few, _few_narrow = _tiles[FEW, VECTORS], _tiles[FEW, 1]


@kernel
def multiply(
    out: np.ndarray, left: np.ndarray, right: np.ndarray, rows: int, columns: int, depth: int, adds: bool
) -> None:
    """Compute ``out[:rows, :columns] = left[:rows, :depth] @ right[:depth, :columns]`` of padded matrices, or add it.

    Each element is summed in the order of the terms, wherever its tile lies. If ``depth`` is odd, one more term is
    added: it must be 0, and finite.

    Args:
        out: float32 [m, n], not transposed.
        left: float32 [m, k], transposed or not.
        right: float32 [k, n], not transposed.
    """
    if depth == 0:
        if not adds:
            out[:rows, :columns] = np.float32(0)
        return
    for column in range(0, columns, VECTORS * LANES):
        wide = columns - column > LANES
        whole = rows // ROWS * ROWS
        for row in range(0, whole, ROWS):
            if wide:
                _whole(out, left, right, row, column, depth, adds)
            else:
                _narrow(out, left, right, row, column, depth, adds)
        for row in range(whole, rows, FEW):
            if wide:
                _few(out, left, right, row, column, depth, adds)
            else:
                _few_narrow(out, left, right, row, column, depth, adds)


@intrinsic
def _turn_tile(context: Any, out: Any, matrix: Any, row: Any, column: Any) -> Any:
    """Write the transpose of matrix[row : row + LANES, column : column + LANES] to ``out``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, matrix, row, column = arguments
        source, (next_row, _) = _address(context, builder, signature.args[1], matrix, row, column)
        lines = [_load(builder, _after(builder, source, builder.mul(next_row, _long(i))), 0) for i in range(LANES)]
        half = LANES // 2
        pairs = [[at // 2 + start + LANES * (at % 2) for at in range(LANES)] for start in (0, half)]
        for _ in range(LANES.bit_length() - 1):  # each time the bits of (line, lane) turn by one
            lines = [
                builder.shuffle_vector(lines[i], lines[i + half], ir.Constant(ir.VectorType(_INT, LANES), mask))
                for i in range(half)
                for mask in pairs
            ]
        target, (next_line, _) = _address(context, builder, signature.args[0], out, column, row)
        for i, line in enumerate(lines):
            place = _vector(builder, _after(builder, target, builder.mul(next_line, _long(i))), 0)
            builder.store(line, place).align = 4
        return context.get_dummy_value()

    return types.none(out, matrix, types.intp, types.intp), generate


@kernel
def turn(out: np.ndarray, matrix: np.ndarray, rows: int, columns: int) -> None:
    """Write the transpose of matrix[:rows, :columns] to ``out``; both padded."""
    for row in range(0, rows, LANES):
        for column in range(0, columns, LANES):
            _turn_tile(out, matrix, row, column)


@part_of_kernel
def _multiple(number, of):  # type: ignore[no-untyped-def]
    return (number + of - 1) // of * of


@part_of_kernel
def padded(rows, columns):  # type: ignore[no-untyped-def]
    """Return zeros [≥ rows, ≥ columns], as large as tiles of the outer rows and columns read and write.

    A row is an odd number of cache lines, so that rows do not evict each other from the cache.
    """
    height = _multiple(_multiple(rows, FEW * STEP), LANES)
    return np.zeros((height, _multiple(columns, 2 * _LINE) + _LINE), np.float32)
