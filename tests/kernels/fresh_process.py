"""Programs in processes of their own: whether Triton interprets or compiles is decided when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def run_in_fresh_process(program: str, **environment: str) -> None:
    """Fails with what the program wrote to stderr, where it fails."""
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
