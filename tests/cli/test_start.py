"""Commands that need no tensors start without torch, whose import takes seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("train", "--help"),
        ("presets",),
        ("config", "preset:complex_wn18rr", "--set", "model.dim=64"),
        ("config", "preset:ultra"),
        ("config", "--schema"),
    ],
    ids=" ".join,
)
def test_no_torch_is_imported(arguments: tuple[str, ...]) -> None:
    script = f"""
import sys
from distkg.cli import main
try:
    main({list(arguments)})
finally:
    print([name for name in ("torch", "numba", "ray", "pandas") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout
