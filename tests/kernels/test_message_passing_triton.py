"""The GPU passes over edges: run by Triton's interpreter against the plain form, and compiled for a real GPU."""

from __future__ import annotations

import importlib.util

import pytest
from fresh_process import run_in_fresh_process

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")


@pytest.mark.parametrize(
    "checks",
    [
        "written_by_hand(); meetings_written_by_hand(); what_is_hidden_or_broken(); the_first_of_equal_ones()",
        "widths(32, 64, 128)",
        pytest.param("widths(256, 512, 1024, 2048)", marks=pytest.mark.slow),
        pytest.param("many_edges(); half_precision()", marks=pytest.mark.slow),
        pytest.param("random_graphs(examples=25)", marks=pytest.mark.slow),
    ],
)
def test_interpreted_passes(checks: str) -> None:
    run_in_fresh_process(f"from interpreted_messages import *; {checks}", TRITON_INTERPRET="1")


COMPILER = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from distkg.kernels.message_passing import moments_triton as moments, sums_triton as passes
from distkg.kernels.message_passing.messages import BACK, MESSAGE

FLOATS = ("first", "second", "weight", "out", "partial", "states", "relations", "gradient", "found",
          "to_total", "to_squares", "to_largest", "to_smallest")
INTS = ("first_of", "second_of", "target", "hubs", "hub_starts", "dst", "src", "kind", "order",
        "whose", "by")
KINDS = dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(INTS, "*i32") | {"starts": "*i64"}

def compiles(kernel, capability=90, **constants):
    constants = {"EDGES": 4, "HALF": 32} | constants
    kinds = KINDS | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1})
    assembly = compiled.asm["ptx"]
    assert "ld.global" in assembly and "st.global" in assembly and compiled.asm["cubin"]
    assert not re.search(r"\\s(atom|red)\\.", assembly)
    return compiled.metadata.shared

TURNED = [
    (passes._gather, {"HOW": "turned"}),
    (passes._join, {}),
    (passes._products, {"HOW": "turned"}),
    (moments._gather, {"HOW": "turned"}),
    (moments._join, {}),
    (moments._gather_back, {"HOW": "turned", "BACK": "turned back", "OF_RELATIONS": True}),
]
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_of_every_width_compile_for_a_gpu_that_is_not_here(capability: int) -> None:
    """Widths of 32 to 2048 have three sizes of tiles; none needs more shared memory than any program has."""
    run_in_fresh_process(
        COMPILER
        + f"""
sizes = [(width, numbers) for width in (32, 64, 128, 256, 512, 1024, 2048) for numbers in (passes._TILE, moments._TILE)]
tiles = {{(numbers, passes.tile_of(width, numbers)[1]["HALF"]): width for width, numbers in sizes}}
assert sorted(tiles) == [(256, 16), (256, 32), (256, 64), (512, 16), (512, 32), (512, 64)]
for (numbers, half), width in tiles.items():
    _, tile = passes.tile_of(width, numbers)
    for kernel, ways in TURNED:
        if kernel.module.endswith("moments_triton" if numbers == moments._TILE else "sums_triton"):
            sizes = {{"EDGES": tile["EDGES"], "HALF": half}}
            assert compiles(kernel, {capability}, **sizes, **ways) <= 48 << 10
"""
    )


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    """And add nothing atomically, so that results do not depend on the order of programs."""
    run_in_fresh_process(
        COMPILER
        + """
# Triton makes a constant of an argument that is 1.
ones = dict.fromkeys(("width", "half", "HALF", "rows", "parts", "batch", "edges", "nodes"), 1)
for kernel, ways in TURNED:
    compiles(kernel, **{name: one for name, one in ones.items() if name in kernel.arg_names}, **ways)
compiles(passes._join)
compiles(moments._join)
for how in {*MESSAGE.values(), *BACK.values()}:
    compiles(passes._gather, HOW=how)
for message in MESSAGE:
    compiles(passes._products, HOW=MESSAGE[message])
    compiles(moments._gather, HOW=MESSAGE[message])
    for given in ({}, {"to_total": None, "to_smallest": None}):
        ways = {"HOW": MESSAGE[message], "BACK": BACK[message], "OF_RELATIONS": bool(given)}
        compiles(moments._gather_back, **ways, **given)
"""
    )
