"""Processor features on which kernels depend, each detected once per process.

A feature is detected by trying the call that needs it, so caps by environment variables (``ONEDNN_MAX_CPU_ISA``,
``ATEN_CPU_CAPABILITY``), builds of torch without oneDNN and other architectures need no list of processors. Loops
compiled by numba need no detection: LLVM compiles them for the processor at hand.
"""

from __future__ import annotations

import os
import platform
from functools import cache

import torch
from torch import Tensor

ARM = ("aarch64", "arm64")
_CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_CAPS_BELOW_AVX512 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")
# Values of ONEDNN_MAX_CPU_ISA under which oneDNN accepts bfloat16 but does not use the processor's instructions for it.
_CAPS_BELOW_BFLOAT16 = ("AVX512_CORE", "AVX512_CORE_VNNI")
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx_ne_convert")  # names in torch.cpu.get_capabilities


@cache
def has_onednn() -> bool:
    """Return True if oneDNN can multiply float32 matrices, with and without adding a third one."""
    return torch.backends.mkldnn.is_available() and _multiplies(torch.float32) and _adds()


@cache
def multiplies_fastest_with_onednn() -> bool:
    """Return True if oneDNN is faster than MKL, torch's other library, at products of float32 matrices.

    On processors of other makers than Intel, MKL leaves AVX-512 unused, which halves its speed. Without AVX-512 it is
    the faster one on these too (Zen 3; ``benchmarks/rooflines.py`` measures both).
    """
    if not has_onednn():
        return False
    if platform.machine().lower() in ARM or not torch.backends.mkl.is_available():
        return True
    capped = {os.environ.get(name, "").upper() for name in _CAPS} & set(_CAPS_BELOW_AVX512)
    return not capped and bool(torch.cpu.get_capabilities().get("avx512_f"))


@cache
def has_fast_bfloat16() -> bool:
    """Return True if oneDNN multiplies bfloat16 matrices with instructions of the processor.

    Without these, oneDNN either refuses (below AVX-512) or takes four times as long as for float32 (AVX-512 only).
    """
    return has_onednn() and _multiplies(torch.bfloat16) and _has_bfloat16_instructions()


def describe() -> str:
    """Format the features in one line, for the log of a test run.

    >>> describe().startswith("processor: ")
    True
    """
    onednn = "oneDNN" if has_onednn() else "no oneDNN"
    bfloat16 = "fast bfloat16" if has_fast_bfloat16() else "no fast bfloat16"
    return f"processor: {platform.machine()}, torch {torch.backends.cpu.get_cpu_capability()}, {onednn}, {bfloat16}"


def linear(left: Tensor, right: Tensor) -> Tensor:
    """Multiply with oneDNN, ``left @ right.T``: [m, k] × [n, k] -> [m, n].

    Check `has_onednn` or `has_fast_bfloat16` first.
    """
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return product


def linear_plus(left: Tensor, right: Tensor, added: Tensor) -> Tensor:
    """Compute ``added + left @ right.T`` of float32 with oneDNN; check `has_onednn` first."""
    total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(left, added, right, None, "add")
    return total


def _multiplies(dtype: torch.dtype) -> bool:
    ones = torch.ones(65, 64, dtype=dtype)
    try:
        return bool((linear(ones[:64], ones) == 64).all())
    except (AttributeError, RuntimeError):
        return False


def _adds() -> bool:
    ones = torch.ones(2, 2)
    try:
        return bool((linear_plus(ones, ones, ones) == 3).all())
    except (AttributeError, RuntimeError):
        return False


def _has_bfloat16_instructions() -> bool:
    if platform.machine().lower() in ARM:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # on other systems it checks the instructions
    caps = {os.environ.get(name, "").upper() for name in _CAPS}
    available = torch.cpu.get_capabilities()
    return caps.isdisjoint(_CAPS_BELOW_BFLOAT16) and any(available.get(name) for name in _BFLOAT16_INSTRUCTIONS)
