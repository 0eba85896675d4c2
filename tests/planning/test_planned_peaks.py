"""Measured peaks of memory lie below the plan, and not far below it: everything that is registered, at two sizes.

A run takes what the plan counts beside the base process, and the process itself is measured apart. Graphs are large
enough that tensors are most of what is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from multiprocessing.pool import Pool
from pathlib import Path

import pytest

from distkg.config.families import FAMILIES
from distkg.config.sections import BUILT_IN
from distkg.embedding.scorers import SCORERS
from distkg.foundation.models import MODELS
from distkg.negatives import SOURCES
from distkg.objectives import REGULARIZERS
from distkg.sharding.optimizers import OPTIMIZERS
from tests.planning.measured_peaks import measuring_process, peaks_of
from tests.planning.peak_cases import CASES, HOSTED, POOLED, SIZES, Case, Size, make_store, own

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux's /proc"
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[Size, str]:
    folder = tmp_path_factory.mktemp("stores")
    return {size: make_store(folder, size) for size in SIZES}


@pytest.fixture(scope="module")
def process() -> Iterator[Pool]:
    with measuring_process() as pool:
        yield pool


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case.fast else pytest.mark.slow, id=name) for name, case in CASES.items()],
)
def test_work_takes_at_most_what_is_planned(process: Pool, stores: dict[Size, str], case: Case) -> None:
    peaks = peaks_of(process, case.work, case.tree, [stores[size] for size in case.stores], stores["tiny"])
    assert all(peak.taken <= peak.planned + case.spare for peak in peaks), peaks
    larger = peaks[-1]
    assert larger.planned <= case.most_times * larger.taken + case.spare, larger


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("scorer", own(SCORERS)),
        ("objective", BUILT_IN),
        ("regularizer", own(REGULARIZERS)),
        ("optimizer", own(OPTIMIZERS)),
        ("source", own(SOURCES)),
        ("pool", POOLED),
        ("actor", HOSTED),
        ("foundation", own(MODELS)),
        ("answers", FAMILIES),
    ],
)
def test_everything_that_is_registered_has_a_case(kind: str, names: Iterable[str]) -> None:
    missing = [name for name in names if f"{kind} {name}" not in CASES]
    assert missing == [], (
        f"write a case in tests/planning/peak_cases.py, or let its configuration name {kind} {missing}"
    )
