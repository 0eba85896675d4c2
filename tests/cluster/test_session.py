"""What a worker gets, and which cluster a run joins; Ray itself is not started here."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import ray

from distkg.cluster.session import ray_session as session
from distkg.cluster.session import shortage
from distkg.cluster.session.address import resolve_address
from distkg.cluster.session.ray_session import ClusterError, ray_session
from distkg.cluster.session.shortage import describe_shortage
from distkg.cluster.session.worker_environment import worker_environment
from distkg.config import ClusterConfig, RunConfig
from distkg.data.generate import generate
from distkg.planning.preflight import plan_run


@pytest.fixture(autouse=True)
def _no_cluster_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_without_a_cluster_ray_starts_here() -> None:
    assert resolve_address(ClusterConfig()) == "local"


def test_an_object_store_holds_graphs_and_published_vectors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session, "memory_limit", lambda: 40 << 30)
    assert session.object_store_bytes(RunConfig()) == 256 << 20
    generate(str(tmp_path / "store"), entities=300, relations=3, triples=2000, seed=0)
    chosen: dict[str, Any] = {
        "data": {"store": str(tmp_path / "store")},
        "model": {"name": "distmult", "dim": 64},
        "objective": {"name": "logistic"},
        "negatives": {"source": "near_miss", "pool": {"actors": 1}},
    }
    # 32 steps of 2,048 queries under way: twice their ids, a vector of each, and a reply with 128 negatives of 5 bytes.
    messages = 32 * 2048 * (48 + 4 * 64 + 128 * 5)
    # Two versions in half precision, and in full precision if draws are to be those of a run without actors.
    once = 2 * 300 * 64 * 2 + messages
    assert session.object_store_bytes(RunConfig.model_validate(chosen)) == (256 << 20) + once
    assert session.object_store_bytes(RunConfig.model_validate(chosen), 3) == (256 << 20) + 3 * once
    chosen["negatives"]["pool"]["sync"] = True
    assert session.object_store_bytes(RunConfig.model_validate(chosen)) == (256 << 20) + 2 * 300 * 64 * 4 + messages
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
    assert cluster.threads == threads
    assert worker_environment(cluster) == {
        "THP_MEM_ALLOC_ENABLE": "1",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "NUMBA_NUM_THREADS": str(threads),
    }


def test_resources_of_a_worker() -> None:
    assert session.worker_resources(ClusterConfig(cpus_per_worker=2)) == {"CPU": 2}
    assert session.worker_resources(ClusterConfig(gpus_per_worker=1)) == {"CPU": 1, "GPU": 1}
    assert session.worker_resources(ClusterConfig(min_workers=1)) == {"CPU": 1, "train_slot": 1}
    on_l4 = session.worker_resources(ClusterConfig(accelerator_type="L4"))
    assert on_l4 == {"CPU": 1, "accelerator_type:L4": 0.001}
    assert session.actor_resources(run_config(1, actors=1, actor_accelerator_type="L4")) == on_l4 | {"CPU": 0.5}


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


def with_nodes(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, Any]) -> None:
    rows = [{"NodeID": str(number), "Labels": {}, **node} for number, node in enumerate(nodes)]
    monkeypatch.setattr(shortage, "usable_nodes", lambda: rows)


def with_resources(monkeypatch: pytest.MonkeyPatch, **resources: float) -> None:
    with_nodes(monkeypatch, {"Resources": resources})


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


def on(zone: str, **resources: float) -> dict[str, Any]:
    return {"Labels": {"zone": zone}, "Resources": resources}


def test_resources_are_those_of_nodes_with_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    with_nodes(monkeypatch, on("a", CPU=8), on("b", CPU=1))
    assert describe_shortage(run_config(2, label_selector={"zone": "a"})) is None
    assert describe_shortage(run_config(2, actors=2, label_selector={"zone": "!b"})) is None
    assert describe_shortage(run_config(2, label_selector={"zone": "b"})) == (
        "waiting for nodes: 2 workers need 2 CPU (there are 1) on nodes with cluster.label_selector {zone: b}"
    )
    assert describe_shortage(run_config(8, actors=3, actor_label_selector={"zone": "b"})) == (
        "waiting for nodes: 3 negative actors need 1.5 CPU (there are 1) on nodes with "
        "cluster.actor_label_selector {zone: b}"
    )


def test_labels_and_accelerators_that_no_node_has_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_nodes(monkeypatch, on("a", CPU=8), on("b", CPU=8, **{"accelerator_type:L4": 1.0}))
    chosen: dict[str, Any] = {"label_selector": {"zone": "c", "disk": "ssd"}, "accelerator_type": "L4"}
    assert describe_shortage(run_config(2, **chosen)) == (
        "waiting for nodes: no node has cluster.label_selector {zone: c} (there is zone: a, b), "
        "nor cluster.label_selector {disk: ssd}, for 2 workers"
    )
    assert describe_shortage(run_config(2, accelerator_type="H100")) == (
        "waiting for nodes: no node has cluster.accelerator_type H100, for 2 workers"
    )
    assert describe_shortage(run_config(2, label_selector={"zone": "a"}, accelerator_type="L4")) == (
        "waiting for nodes: no node has all of cluster.label_selector {zone: a}, cluster.accelerator_type L4, "
        "for 2 workers"
    )
    assert describe_shortage(run_config(2, label_selector={"zone": "b"}, accelerator_type="L4")) is None


def test_labels_are_refused_for_a_ray_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "private_ray", lambda *_, **__: pytest.fail("Ray starts"))
    for key, actors in (("label_selector", 0), ("actor_label_selector", 1)):
        with (
            pytest.raises(ClusterError, match=rf"^cluster\.{key} chooses among the nodes of a cluster.*RAY_ADDRESS"),
            ray_session(run_config(1, actors=actors, **{key: {"zone": "a"}})),
        ):
            pass


@pytest.fixture
def hosting(tmp_path: Path) -> RunConfig:
    """A run with two actors, each of which is planned to take 3 GiB."""
    generate(str(tmp_path / "store"), entities=300, relations=3, triples=2000, seed=0)
    tree: dict[str, Any] = {
        "data": {"store": str(tmp_path / "store")},
        "model": {"name": "distmult", "dim": 64},
        "objective": {"name": "logistic"},
        "negatives": {"source": "near_miss", "pool": {"actors": 2, "cpus_per_actor": 0.5}},
        "train": {"workers": 2},
    }
    return RunConfig.model_validate(tree)


@pytest.fixture
def of_three_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_actor_bytes", lambda config: 3 << 30)


def test_an_actor_reserves_the_memory_of_the_plan(hosting: RunConfig) -> None:
    planned = plan_run(hosting)
    assert planned.actor_memory["base process"] == 700 << 20
    resources = session.actor_resources(hosting)
    assert resources == {"CPU": 0.5, "memory": planned.actor_bytes}
    assert session.run_resources(hosting, 2) == {"CPU": 3, "memory": 2 * planned.actor_bytes}
    hosting.objective.name = "one_vs_all"  # which draws no negatives
    assert session.actor_resources(hosting) == {"CPU": 0.5}


@pytest.mark.usefixtures("of_three_gib")
def test_a_private_ray_counts_all_memory_and_what_a_plan_needs_at_least(
    hosting: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that fits this machine may take more than the 70 % of free memory that Ray counts by default."""
    monkeypatch.setattr(session, "memory_limit", lambda: 8 << 30)
    assert session._local_options(hosting, 1, False)["_memory"] == 8 << 30
    assert session._local_options(hosting, 2, False)["_memory"] == 12 << 30  # workers with cluster.memory_per_worker_gb
    assert session._local_options(RunConfig(), 1, False)["_memory"] == 8 << 30


@pytest.mark.usefixtures("of_three_gib")
def test_memory_that_a_cluster_lacks_is_named(hosting: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with_resources(monkeypatch, CPU=8, memory=float(4 << 30))
    how = "Ray counts 70 % of what was free on a node at its start, unless that is started with --memory=BYTES."
    more = f"; {how} `distkg plan` says what an actor needs its memory for"
    text = describe_shortage(hosting)
    need = "waiting for nodes: 2 workers and 2 negative actors need 6.0 GiB of memory for actors (there are 4.0)"
    assert text == need + more

    nodes = [{"Resources": {"CPU": 4, "memory": float(size << 30)}} for size in (2, 2, 2, 4)]
    with_nodes(monkeypatch, *nodes)
    assert describe_shortage(hosting) is None
    with_nodes(monkeypatch, *nodes[:3])
    text = describe_shortage(hosting)
    need = "waiting for nodes: a negative actor needs 3.0 GiB of memory on its node (the largest node has 2.0)"
    assert text == need + more
