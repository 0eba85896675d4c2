"""What all tests share."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

# Before torch is imported anywhere: idle OpenMP threads must not take the cores from other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Ray's workers are as nice as 15, which beside tests in another process leaves them no time.
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from distkg.cluster.kept_workers import KeptWorkers
    from tests.faulty_s3 import FaultyS3

# A shell that starts tests in the background has them ignore SIGINT, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine under load makes single examples slow, which says nothing about the code. CI draws the same examples each
# time, so that a commit that it takes stays green; everywhere else they are drawn anew.
settings.register_profile("distkg", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("distkg")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DISTKG_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Gives the folder of a benchmark graph by name, such as ``UMLS``; skips the test where it is not there."""

    def folder(name: str) -> Path:
        path = SHARED / "data" / name
        if not path.is_dir():
            pytest.skip(f"graph {name} is not in {SHARED / 'data'}; name the folder above it in DISTKG_SHARED")
        return path

    return folder


@pytest.fixture(scope="session")
def shared_schemas() -> Callable[[str], Path]:
    """Gives the folder of the schemas of another system by name, such as ``kuberay``; skips where it is not there."""

    def folder(name: str) -> Path:
        path = SHARED / "schemas" / name
        if not path.is_dir():
            pytest.skip(f"schemas of {name} are not in {SHARED / 'schemas'}; name the folder above in DISTKG_SHARED")
        return path

    return folder


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a store with 150 entities, 6 relations and about 1,500 triples."""
    from distkg.data.generate import generate

    store = tmp_path_factory.mktemp("graphs") / "small"
    generate(str(store), entities=150, relations=6, triples=1500, seed=3)
    return str(store)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Host and port of an S3 server on loopback."""
    from tests.faulty_s3 import s3_server

    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for S3 in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-a-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-a-test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def bucket(s3_endpoint: str, s3_keys: None) -> Callable[[str], str]:
    """A fresh bucket; gives the address of a path in it. Credentials come from the environment."""
    from tests.faulty_s3 import address_in, create_bucket

    name = f"graphs-{uuid4().hex}"
    create_bucket(s3_endpoint, name)
    return lambda path: address_in(s3_endpoint, name, path)


@pytest.fixture
def faulty_bucket(s3_endpoint: str, s3_keys: None) -> Iterator[tuple[FaultyS3, Callable[[str], str]]]:
    """A fresh bucket behind a proxy that injects faults; the proxy, and the address of a path in the bucket."""
    from tests.faulty_s3 import FaultyS3, address_in, create_bucket

    name = f"graphs-{uuid4().hex}"
    create_bucket(s3_endpoint, name)
    proxy = FaultyS3(s3_endpoint)
    yield proxy, lambda path: address_in(proxy.endpoint, name, path)
    proxy.close()


class SharedRay:
    """One Ray in this process for the tests that ask for ``shared_ray``; to start and end one takes seconds."""

    WORKERS = 6  # as many CPUs as Ray counts, for two kept workers, and for four others or two and two actors

    def __init__(self) -> None:
        self._open: ExitStack | None = None
        self._kept: KeptWorkers | None = None
        self.metrics_port = 0

    def begin(self) -> None:
        if self._open is not None:
            return
        from distkg.cluster.session.ray_session import ray_session
        from distkg.config import RunConfig

        with socket.create_server(("127.0.0.1", 0)) as free:
            self.metrics_port = free.getsockname()[1]
        cluster = {"metrics_port": self.metrics_port}
        config = RunConfig.model_validate({"train": {"workers": self.WORKERS}, "cluster": cluster})
        # Workers import the project, and actors their faults, from here.
        path = [str(REPOSITORY), str(REPOSITORY / "tests" / "faults"), os.environ.get("PYTHONPATH", "")]
        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.delenv("RAY_ADDRESS", raising=False)
            patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
            patch.setenv("RAY_metrics_report_interval_ms", "1000")  # tests of metrics need not wait for ten seconds
            stack.enter_context(ray_session(config))
            self._open = stack.pop_all()

    def workers(self) -> KeptWorkers:
        from distkg.cluster.kept_workers import KeptWorkers
        from distkg.config import RunConfig

        if self._kept is None:
            self._kept = KeptWorkers(RunConfig.model_validate({"train": {"workers": 2}}))
        return self._kept

    def end(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None
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


@pytest.fixture
def metrics_page(shared_ray: None) -> str:
    """Address at which the shared Ray exports metrics."""
    return f"http://127.0.0.1:{_shared_ray.metrics_port}/metrics"


@pytest.fixture
def kept_workers(shared_ray: None) -> KeptWorkers:
    """Gives two workers of the shared Ray that stay from test to test, for runs whose launch is not under test."""
    return _shared_ray.workers()


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
