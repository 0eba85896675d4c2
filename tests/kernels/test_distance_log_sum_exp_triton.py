"""The GPU kernels of log Σ exp: run by Triton's interpreter against the formula, and compiled for a real GPU."""

from __future__ import annotations

import importlib.util

import pytest
from fresh_process import run_in_fresh_process

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")


def test_interpreted_kernels_are_the_formula() -> None:
    """Sizes that fill their tiles, that do not, that take several parts and several tiles, and none at all."""
    run_in_fresh_process(
        """
        import torch
        from test_log_sum_exp import assert_all_close, both_passes, exact, problem
        from distkg.kernels.scores.activations import ACTIVATIONS
        from distkg.kernels.scores.distance_sums.distance_log_sum_exp_triton import TritonLogSumExp

        def passes(activation, query, candidates, weight):
            vector, scale = query[:, :-1].contiguous(), query[:, -1].contiguous()
            return both_passes(TritonLogSumExp(activation, vector, scale, candidates), query, candidates, weight)

        for name in ACTIVATIONS:
            activation = ACTIVATIONS[name](10.0, None)
            for queries, rows, dim in ((7, 43, 5), (70, 200, 16), (33, 65, 150)):
                query, candidates, weight = problem(queries, rows, dim, spread=0.4 * (5 / dim) ** 0.5)
                expected = exact(activation, query, candidates, weight)
                assert_all_close(passes(activation, query, candidates, weight), expected, 5e-5)
        hanon, double = ACTIVATIONS["hanon"](), ACTIVATIONS["double"]()
        far, candidates, weight = problem()
        far[:, 0] += 30  # every term alone would vanish
        expected = exact(double, far, candidates, weight)
        assert_all_close(passes(double, far, candidates, weight), expected, 1e-3)
        for queries, rows in ((0, 5), (5, 0)):
            passes(hanon, torch.ones(queries, 4), torch.zeros(rows, 3), torch.ones(queries))
        for dim in (32, 64, 128, 256, 512, 1024, 2048):
            query, candidates, weight = problem(5, 65, dim, spread=0.4 * (5 / dim) ** 0.5)
            expected = exact(hanon, query, candidates, weight)
            assert_all_close(passes(hanon, query, candidates, weight), expected, 5e-5)
        broken, candidates, weight = problem()
        broken[2, 0] = torch.nan
        assert passes(hanon, broken, candidates, weight)[0].isnan()[2]
        """,
        TRITON_INTERPRET="1",
    )


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_a_gpu_that_is_not_here(capability: int) -> None:
    run_in_fresh_process(
        f"""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from distkg.kernels.scores.distance_sums.distance_log_sum_exp_triton import _first, _second

        def types(names, pointers, floats):
            kind = lambda name: "*fp32" if name in pointers else "fp32" if name in floats else "i32"
            return {{name: kind(name) for name in names}}

        for kernel in (_first, _second):
            constants = {{"KIND": 0, "WIDTH": 32, "QUERIES": 32, "ROWS": 64}}
            integers = {{"queries", "rows", "tiles_per_part", "dim", "grad_stride", "limit", "steepness"}}
            names = [name for name in kernel.arg_names if name not in constants]
            signature = types(names, set(names) - integers, {{"limit", "steepness"}})
            for kind in range(5) if {capability} == 90 else (0, 3):
                constants["KIND"] = kind
                source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), dict(constants))
                compiled = triton.compile(source, target=GPUTarget("cuda", {capability}, 32))
                assert "fma" in compiled.asm["ptx"]
                assert compiled.asm["cubin"]
                # A tile is as large for any width. sm_80 has 163 KB for a program, sm_90 has 227 KB.
                assert compiled.metadata.shared <= 48 << 10
        """
    )
