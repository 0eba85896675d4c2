"""What all tests share."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

# Before torch is imported anywhere: idle OpenMP threads must not take the cores from other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Ray's workers are as nice as 15, which beside tests in another process leaves them no time.
os.environ.setdefault("RAY_worker_niceness", "0")

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


class SharedRay:
    """One Ray in this process for the tests that ask for ``shared_ray``; to start and end one takes seconds."""

    WORKERS = 4  # as many CPUs as Ray counts, for two workers and two actors and more; it pins nobody to them

    def __init__(self) -> None:
        self._open: ExitStack | None = None

    def begin(self) -> None:
        if self._open is not None:
            return
        from distkg.cluster.session.ray_session import ray_session
        from distkg.config import RunConfig

        config = RunConfig.model_validate({"train": {"workers": self.WORKERS}})
        # Workers import the project, and actors their faults, from here.
        path = [str(REPOSITORY), str(REPOSITORY / "tests" / "faults"), os.environ.get("PYTHONPATH", "")]
        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.delenv("RAY_ADDRESS", raising=False)
            patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
            stack.enter_context(ray_session(config))
            self._open = stack.pop_all()

    def end(self) -> None:
        if self._open is not None:
            from distributed import end_kept_ranks

            stack, self._open = self._open, None
            end_kept_ranks()  # else they are taken for Ray's, which are killed if they do not end
            stack.close()


_shared_ray = SharedRay()


@pytest.fixture
def shared_ray() -> None:
    """Runs that are launched in this process join the Ray of all such tests; no other test sees it."""
    _shared_ray.begin()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have tests of the shared Ray follow each other."""
    items.sort(key=_shares_ray)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not _shares_ray(item):
        _shared_ray.end()


def pytest_sessionfinish() -> None:
    _shared_ray.end()


def _shares_ray(item: pytest.Item) -> bool:
    return "shared_ray" in getattr(item, "fixturenames", ())
