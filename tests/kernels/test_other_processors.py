"""Compiled loops lower to processors that are not here: no kernel assumes the one it was written on."""

from __future__ import annotations

import platform

import pytest
from fresh_process import run_in_fresh_process

TARGETS = {
    "Linux on arm64": ("aarch64-unknown-linux-gnu", "neoverse-n1", "fmla"),
    "macOS on arm64": ("arm64-apple-darwin", "apple-m1", "fmla"),
    "the least x86-64": ("x86_64-unknown-linux-gnu", "x86-64", "mulps"),
}

PROGRAM = """
    import re

    import llvmlite.binding as llvm
    import numpy as np

    from distkg.compilation import njit
    from distkg.kernels.scores import pairwise
    from distkg.kernels.vectors.fast_math import exp, log, sine_and_cosine
    from distkg.kernels.jit import _FAST, kernel, kernel_in_order
    from distkg.kernels.vectors.prefetch import prefetch_row
    from distkg.kernels.sampled.losses import LOGISTIC, loss_of_row
    from distkg.kernels.vectors.tiles import multiply

    @kernel
    def exponentials(rows, index, out):  # every intrinsic in one loop, beside the sums of a kernel
        for i in range(len(index)):
            prefetch_row(rows, index[i])
            for j in range(rows.shape[1]):
                out[i, j] = exp(rows[index[i], j]) + log(rows[index[i], j] + np.float32(1))

    @kernel_in_order
    def turns(rows, out):
        for i in range(rows.shape[0]):
            for j in range(rows.shape[1]):
                sine, cosine = sine_and_cosine(rows[i, j])
                out[i, j] = sine * cosine

    # numba's counts of references, which x86 has an operation for: the code generator put it there, not the kernel.
    COUNTS = r"%([^ ]+) = (?:tail )?call i8 @llvm.x86.atomic.sub.cc.i64\\(ptr (?:[a-z]+ )*(%[^,]+), i64 1, i32 4\\).*"
    AS_ANYWHERE = (
        r"%old.\\1 = atomicrmw sub ptr \\2, i64 1 monotonic\\n"
        r"%last.\\1 = icmp eq i64 %old.\\1, 1\\n%\\1 = zext i1 %last.\\1 to i8"
    )
    DECLARED = r"declare i8 @llvm.x86.atomic.sub.cc.i64.*"

    rows, index, out = np.ones((4, 32), np.float32), np.array([3, 1]), np.zeros((4, 32), np.float32)
    exponentials(rows, index, out[:2].copy())
    turns(rows, out)
    uncached = njit(fastmath=_FAST, error_model="numpy")  # a cache has no IR
    scores, slopes, losses, products = (
        uncached(function.py_func)
        for function in (pairwise.dot_block, pairwise.modulus_block_gradients, loss_of_row, multiply)
    )
    four = np.ones((4, 4), np.float32)
    scores(rows, rows, four)
    slopes(four, rows, rows, out, out)
    one, wide = np.float32(1), np.ones((16, 32), np.float32)
    losses(LOGISTIC, one, wide, 0, 32, one, one, one, -one, wide.copy())
    products(wide.copy(), wide, wide, 4, 32, 16, False)

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    for triple, cpu, instruction in {targets}:
        machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
        for function in (exponentials, turns, scores, slopes, losses, products):
            (text,) = function.inspect_llvm().values()
            text = re.sub('target triple = ".*"', f'target triple = "{{triple}}"', text)
            text = re.sub('target datalayout = ".*"', f'target datalayout = "{{machine.target_data}}"', text)
            text = re.sub(DECLARED, "", re.sub(COUNTS, AS_ANYWHERE, text))
            assert "asm sideeffect" not in text, "assembly written for one processor"
            assert not re.findall(r"llvm[.](?:x86|aarch64|arm)[.][a-z0-9.]+", text), "instructions of one processor"
            assembly = machine.emit_assembly(llvm.parse_assembly(text))
            assert len(assembly) > 1000
            assert function is not scores or instruction in assembly, f"sums use no vector registers on {{triple}}"
"""


def test_kernels_lower_to_processors_that_are_not_here() -> None:
    # Compiled for no processor in particular, so that nothing of the one at hand is in the code that is lowered again.
    program = PROGRAM.format(targets=list(TARGETS.values()))
    run_in_fresh_process(program, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")


WITH_ESTIMATES = """
    from numba import float32, void

    from distkg.compilation import njit
    from distkg.kernels.jit import _FAST
    from distkg.kernels.scores import pairwise
    from distkg.kernels.vectors.simd import LANES

    matrix = float32[:, ::1]
    slopes = njit(fastmath=_FAST, error_model="numpy")(pairwise.modulus_block_gradients.py_func)
    slopes.compile(void(matrix, matrix, matrix, matrix, matrix))  # not run: the processor may have no such instructions
    (assembly,) = slopes.inspect_asm().values()
    assert LANES == {lanes}
    assert "{estimate}" in assembly
    assert "{register}" in assembly
"""


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="instructions of x86")
@pytest.mark.parametrize(
    ("processor", "features", "expected"),
    [
        ("skylake-avx512", "+avx,+avx2,+fma,+avx512f", {"lanes": 16, "estimate": "vrsqrt14ps", "register": "%zmm"}),
        ("haswell", "+avx,+avx2,+fma", {"lanes": 8, "estimate": "vrsqrtps", "register": "%ymm"}),
    ],
)
def test_roots_are_estimated_by_instructions_of_the_processor(
    processor: str, features: str, expected: dict[str, object]
) -> None:
    program = WITH_ESTIMATES.format(**expected)
    run_in_fresh_process(program, NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES=features)
