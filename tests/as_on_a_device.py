"""The way of a device, on CPU tensors: without compiled kernels, as if the tensors were elsewhere."""

from __future__ import annotations

import sys

import pytest
import torch

from distkg.embedding import batches
from distkg.negatives import base, mixture
from distkg.randomness import CounterNumbers, Purpose, mixed_seed


def without_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all modules of distkg that have been imported do what they do for tensors on a device."""
    for name, module in list(sys.modules.items()):
        if name.startswith("distkg.") and hasattr(module, "on_cpu"):
            monkeypatch.setattr(module, "on_cpu", lambda *tensors: False)


def with_numbers_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let batches that the host makes be drawn by the random numbers of a device."""

    def numbers(purpose: Purpose, *parts: int) -> CounterNumbers:
        return CounterNumbers(mixed_seed(purpose, *parts), torch.device("cpu"))

    monkeypatch.setattr(batches, "stream", numbers)
    for module in (base, mixture):
        monkeypatch.setattr(module, "GeneratorNumbers", lambda drawn: drawn)
