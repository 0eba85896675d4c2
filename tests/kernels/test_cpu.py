"""What a processor can do is found out by trying it, under whatever caps are in force; each answer is used."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fresh_process import run_in_fresh_process

from distkg.kernels import cpu


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    features = cpu.has_onednn, cpu.has_fast_bfloat16, cpu.multiplies_fastest_with_onednn
    for feature in features:
        feature.cache_clear()
    yield
    for feature in features:
        feature.cache_clear()


def refuse(*arguments: Any) -> torch.Tensor:
    raise RuntimeError("could not create a primitive descriptor for the inner product forward propagation primitive")


def test_a_torch_without_onednn_has_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not cpu.has_onednn()
    assert not cpu.has_fast_bfloat16()
    assert "no oneDNN, no fast bfloat16" in cpu.describe()


@pytest.mark.parametrize("call", ["linear", "linear_plus"])
def test_a_refused_call_is_no_onednn(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, call, refuse)
    assert not cpu.has_onednn()


def test_a_wrong_product_is_no_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "linear", lambda left, right: left @ right.T + 1)
    assert not cpu.has_onednn()


def processor(monkeypatch: pytest.MonkeyPatch, *, takes: bool, **capabilities: bool) -> None:
    """Pretend a processor of the x86 family whose oneDNN takes bfloat16 or not."""
    multiplies = cpu._multiplies
    monkeypatch.setattr(cpu, "_multiplies", lambda dtype: takes if dtype == torch.bfloat16 else multiplies(dtype))
    monkeypatch.setattr(cpu, "has_onednn", lambda: True)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)


@pytest.mark.parametrize(
    ("capabilities", "cap", "fastest"),
    [
        ({"avx2": True, "avx512_f": True}, None, True),
        ({"avx2": True, "avx512_f": True}, "AVX512_CORE", True),
        ({"avx2": True, "avx512_f": True}, "AVX2", False),
        ({"avx2": True}, None, False),
    ],
)
def test_onednn_is_the_fastest_where_there_is_avx512(
    capabilities: dict[str, bool], cap: str | None, fastest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(monkeypatch, takes=False, **capabilities)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    if cap is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert cpu.multiplies_fastest_with_onednn() is fastest


def test_onednn_is_the_fastest_where_there_is_no_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, takes=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert cpu.multiplies_fastest_with_onednn()
    monkeypatch.setattr(cpu, "has_onednn", lambda: False)
    cpu.multiplies_fastest_with_onednn.cache_clear()
    assert not cpu.multiplies_fastest_with_onednn()


@pytest.mark.parametrize(
    ("takes", "capabilities", "fast"),
    [
        (True, {"avx512_bf16": True}, True),
        (True, {"amx_bf16": True}, True),
        (True, {"avx_ne_convert": True}, True),
        (True, {"avx512_f": True}, False),  # Skylake, Cascade Lake: emulated, four times as slow as float32
        (False, {"avx512_bf16": True}, False),  # capped from outside
        (False, {"avx2": True}, False),
    ],
)
def test_bfloat16_is_fast_where_onednn_takes_it_and_the_processor_has_instructions(
    takes: bool, capabilities: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(monkeypatch, takes=takes, **capabilities)
    assert cpu.has_fast_bfloat16() is fast


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_cap_may_leave_the_instructions_unused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, takes=True, avx512_bf16=True)
    monkeypatch.setenv(variable, "avx512_core")
    assert not cpu.has_fast_bfloat16()


@pytest.mark.parametrize("has", [True, False])
def test_arm_is_asked_by_torch(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, takes=True)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has, raising=False)
    assert cpu.has_fast_bfloat16() is has


@pytest.mark.parametrize("isa", ["AVX2", "SSE41"])
def test_below_avx512_nothing_multiplies_in_bfloat16_and_everything_still_works(isa: str) -> None:
    run_in_fresh_process(
        """
        import torch
        from distkg.kernels import cpu
        from distkg.kernels.products import half_where_fast, product, products_in

        assert not cpu.has_fast_bfloat16()
        assert "no fast bfloat16" in cpu.describe()
        ones = torch.ones(64, 64)
        with products_in(torch.bfloat16):
            assert (product(ones, ones) == 64).all()
        assert (product(ones.bfloat16(), ones.bfloat16()) == 64).all()
        with half_where_fast("cpu"):
            assert torch.nn.Linear(64, 64)(ones).dtype == torch.float32
        """,
        ONEDNN_MAX_CPU_ISA=isa,
    )
