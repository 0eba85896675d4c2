"""Run tests of arithmetic, and short trainings, under lower instruction sets than this processor has.

``make test-isa`` runs this. The libraries below distkg are told to leave instructions unused, so any x86 processor
stands in for lesser ones: what fails here fails on a machine without them.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

ANY_ARITHMETIC = (
    ("tests/kernels", "--ignore=tests/kernels/test_jit.py", "--ignore=tests/kernels/test_other_processors.py"),
    (
        "tests/embedding/test_algebra.py",
        "tests/embedding/test_batch_norm.py",
        "tests/embedding/test_formulas.py",
        "tests/embedding/test_hyperbolic.py",
        "tests/embedding/test_initial.py",
        "tests/embedding/test_scorer_base.py",
        "tests/embedding/test_scorers.py",
        "tests/objectives",
        "tests/sharding/test_optimizers.py",
        "tests/sharding/test_shared_memory_collectives.py",
        "tests/sharding/test_table.py",
        "tests/embedding/test_golden_curves.py",
        "tests/training/test_precision.py",
    ),
)
PRODUCTS = (
    (
        "tests/kernels/test_activated.py",
        "tests/kernels/test_concatenated_projections.py",
        "tests/kernels/test_cpu.py",
        "tests/kernels/test_layer_update.py",
        "tests/kernels/test_log_sum_exp.py",
        "tests/kernels/test_products.py",
        "tests/kernels/test_similarity.py",
        "tests/embedding/test_hyperbolic.py",
        "tests/embedding/test_scorers.py",
        "tests/objectives",
        "tests/embedding/test_golden_curves.py",
        "tests/training/test_precision.py",
    ),
)


@dataclass(frozen=True)
class InstructionSet:
    """What the libraries may use.

    Attributes:
        name: for the log.
        environment: caps of oneDNN, of torch's own kernels and of numba.
        above: an instruction that only higher processors have, as torch names it: on the others the set is their own,
            and `make test` runs the same tests.
        tests: what its arithmetic may change, in parts that run side by side.
    """

    name: str
    environment: dict[str, str]
    above: str
    tests: tuple[tuple[str, ...], ...] = ANY_ARITHMETIC


# Without NUMBA_CPU_FEATURES, numba adds the features of the processor at hand to those of the one named.
INSTRUCTION_SETS = (
    InstructionSet(
        "AVX-512 without bfloat16 (Skylake) for products",
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
        above="avx512_bf16",
        tests=PRODUCTS,
    ),
    InstructionSet(
        "AVX2 (Haswell, Zen 3)",
        {
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "ATEN_CPU_CAPABILITY": "avx2",
            "NUMBA_CPU_NAME": "haswell",
            "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma",
        },
        above="avx512_f",
    ),
    InstructionSet(
        "SSE4.1 for products, SSE2 else (any x86-64)",
        {
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "ATEN_CPU_CAPABILITY": "default",
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_CPU_FEATURES": "",
        },
        above="avx2",
    ),
)
AT_ONCE = 2  # most of the tests use one core
OPTIONS = (
    *("-q", "--durations=30", "-m", "not slow and not cluster"),
    *("--ignore-glob=*_triton.py", "--ignore-glob=*_cuda.py"),  # of a GPU
)


def main() -> int:
    """Print what each set is, how its tests ended and how long they took; 1 where some failed."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        print(f"instruction sets: {platform.machine()} has no lower ones to stand in for; nothing to run")
        return 0
    lower = [chosen for chosen in INSTRUCTION_SETS if _is_lower(chosen)]
    parts = [(chosen, part) for chosen in lower for part in chosen.tests]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        passed = list(pool.map(lambda part: _passes(*part), parts))
    failed = {chosen.name for (chosen, _), passes in zip(parts, passed, strict=True) if not passes}
    print(f"instruction sets: {len(lower) - len(failed)} of {len(lower)} pass", *failed, sep="\n")
    return 1 if failed else 0


def _is_lower(chosen: InstructionSet) -> bool:
    if torch.cpu.get_capabilities().get(chosen.above):
        return True
    print(f"-- {chosen.name}: this processor, without {chosen.above}, is no higher: `make test` runs the same tests")
    return False


def _passes(chosen: InstructionSet, part: tuple[str, ...]) -> bool:
    caps = " ".join(f"{name}={value}" for name, value in chosen.environment.items())
    environment, started = os.environ | chosen.environment, time.monotonic()
    what = "from distkg.kernels.cpu import describe; print('-- ' + describe(), flush=True)"
    machine = _output([sys.executable, "-c", what], environment)
    tests = _output([sys.executable, "-m", "pytest", *OPTIONS, *part, *sys.argv[1:]], environment)
    seconds = time.monotonic() - started
    heading = f"-- {chosen.name}: {caps}: {part[0]} and so on: {seconds:.0f} s, exit code {tests.returncode}"
    print(heading, machine.stdout + tests.stdout, sep="\n", flush=True)
    return machine.returncode == tests.returncode == 0


def _output(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


if __name__ == "__main__":
    sys.exit(main())
