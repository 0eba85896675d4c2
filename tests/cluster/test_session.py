"""What a worker gets, and which cluster a run joins; Ray itself is not started here."""

import os
import socket
from typing import Any

import pytest
import ray

from distkg.cluster.session import ray_session as session
from distkg.cluster.session.ray_session import ClusterError, describe_shortage, ray_session, resolve_address
from distkg.config import ClusterConfig, RunConfig


@pytest.fixture(autouse=True)
def _no_cluster_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_without_a_cluster_ray_starts_here() -> None:
    assert resolve_address(ClusterConfig()) == "local"


def test_graphs_of_foundation_models_need_a_larger_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "memory_limit", lambda: 40 << 30)
    assert session.object_store_bytes(RunConfig()) == 256 << 20
    ultra = RunConfig.model_validate({"model": {"name": "ultra"}})
    assert session.object_store_bytes(ultra) == 10 << 30


def test_a_job_joins_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert resolve_address(ClusterConfig()) == "auto"
    assert resolve_address(ClusterConfig(address="local")) == "local"


@pytest.mark.parametrize("address", ["ray://head:10001", "http://localhost:8265"])
def test_a_gateway_is_refused_with_the_way_to_submit(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match="ray job submit"):
        resolve_address(ClusterConfig(address=address))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match="ray job submit"):
        resolve_address(ClusterConfig())


def test_a_cluster_that_is_not_there_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    missing = f"no Ray cluster answers at 127.0.0.1:{port} .*ray start --head.*cluster.address=local"
    # Ray itself would go on trying for a minute: it is not asked.
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray looks for the cluster"))
    with pytest.raises(ClusterError, match=missing), ray_session(run_config(1, address=f"127.0.0.1:{port}")):
        pass
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ClusterError, match=missing), ray_session(run_config(1)):
        pass


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1, 1), (3.5, 3), (4, 4)])
def test_a_worker_has_as_many_threads_as_whole_cpus(cpus: float, threads: int) -> None:
    cluster = ClusterConfig(cpus_per_worker=cpus)
    assert session.worker_threads(cluster) == threads
    assert session.worker_environment(cluster) == {
        "THP_MEM_ALLOC_ENABLE": "1",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "NUMBA_NUM_THREADS": str(threads),
    }


def test_resources_of_a_worker() -> None:
    assert session.worker_resources(ClusterConfig(cpus_per_worker=2)) == {"CPU": 2}
    assert session.worker_resources(ClusterConfig(gpus_per_worker=1)) == {"CPU": 1, "GPU": 1}
    assert session.worker_resources(ClusterConfig(min_workers=1)) == {"CPU": 1, "train_slot": 1}


def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "x")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    session.set_driver_environment()
    assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def run_config(workers: int, *, actors: int = 0, **cluster: object) -> RunConfig:
    pool = {"actors": actors, "cpus_per_actor": 0.5}
    sections = {"cluster": cluster, "train": {"workers": workers}, "negatives": {"pool": pool}}
    return RunConfig.model_validate(sections)


def test_resources_of_a_run_are_those_of_its_workers_and_actors() -> None:
    assert session.run_resources(run_config(3, actors=2, cpus_per_worker=2), 3) == {"CPU": 7}


def with_resources(monkeypatch: pytest.MonkeyPatch, **resources: float) -> None:
    def total() -> dict[str, Any]:
        return resources

    monkeypatch.setattr(ray, "cluster_resources", total)


def test_a_large_enough_cluster_is_not_remarked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with_resources(monkeypatch, CPU=4)
    assert describe_shortage(run_config(4)) is None


def test_a_shortage_is_named_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with_resources(monkeypatch, CPU=8, GPU=1)
    text = describe_shortage(run_config(4, gpus_per_worker=1))
    assert text == "waiting for nodes: 4 workers need 4 GPU (there are 1)"


def test_an_elastic_run_needs_its_least_workers_and_slots_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with_resources(monkeypatch, CPU=2)
    text = describe_shortage(run_config(8, min_workers=2))
    assert text is not None
    assert text.startswith("waiting for nodes: 2 workers need 2 train_slot (there are 0)")
    assert "--resources='{\"train_slot\": N}'" in text


def test_actors_are_named_where_the_cluster_is_too_small_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with_resources(monkeypatch, CPU=4)
    text = describe_shortage(run_config(2, actors=1), runs=2)
    assert text == "waiting for nodes: 4 workers and 2 negative actors need 5 CPU (there are 4)"
