"""What all tests share."""

import os
from collections.abc import Callable
from pathlib import Path

# Before torch is imported anywhere: idle OpenMP threads must not take the cores from other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from hypothesis import settings

# A machine under load makes single examples slow, which says nothing about the code. CI draws the same examples each
# time, so that a commit that it takes stays green; everywhere else they are drawn anew.
settings.register_profile("distkg", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("distkg")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Gives the folder of a benchmark graph by name, such as ``UMLS``; skips the test where it is not there."""
    shared = Path(os.environ.get("DISTKG_SHARED", REPOSITORY.parent / "shared"))

    def folder(name: str) -> Path:
        path = shared / "data" / name
        if not path.is_dir():
            pytest.skip(f"graph {name} is not in {shared / 'data'}; name the folder above it in DISTKG_SHARED")
        return path

    return folder


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a store with 150 entities, 6 relations and about 1,500 triples."""
    from distkg.data.generate import generate

    store = tmp_path_factory.mktemp("graphs") / "small"
    generate(str(store), entities=150, relations=6, triples=1500, seed=3)
    return str(store)
