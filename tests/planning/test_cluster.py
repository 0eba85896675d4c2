"""Plans for clusters and graphs that are not there: the files that describe them, and the time of the network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from distkg.config import CLUSTERS, ConfigError, RunConfig
from distkg.planning import preflight
from distkg.planning.cluster import Cluster, ClusterFileError, StatedGraph, read_cluster, read_counts
from distkg.planning.machine import Machine

WORKER = {"gflops": 100, "memory_gb_per_s": 10}


def make_cluster(**changes: object) -> Cluster:
    return Cluster.model_validate(
        {"nodes": 4, "workers_per_node": 8, "memory_gb": 64, "network_gbit": 80, "worker": WORKER} | changes
    )


def make_config(**changes: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"name": "distmult", "dim": 100},
            "objective": {"name": "logistic"},
            "negatives": {"count": 10, "shared": True, "chunk_size": 100},
            "optimizer": {"name": "rowwise_adagrad"},
            "train": {"batch_size": 3200, **changes},
        }
    )


def test_a_worker_has_its_part_of_a_node() -> None:
    cluster = make_cluster()
    assert cluster.workers == 32
    assert cluster.memory_of_worker == 8 << 30
    assert cluster.machine(None) == Machine(1e11, 1e10, nodes=4, network=1.25e9)  # 80 Gbit/s are 10 GB/s
    assert make_cluster(nodes=1).machine(None) == Machine(1e11, 1e10)
    measured = Machine(5e10, 5e9)
    assert make_cluster(worker=None).machine(measured) == Machine(5e10, 5e9, nodes=4, network=1.25e9)


def test_the_network_and_the_messages_are_part_of_the_time() -> None:
    counts = StatedGraph(1_000_000, 1000, {"train": 3200})
    planned = preflight.plan_run(make_config(workers=32), make_cluster(), counts)
    assert planned.seconds is not None
    # 6,400 queries, 200 of each worker, which fetches 200 rows and 2 × 10 negatives of 100 floats, and returns as many
    # gradients. Of 32 workers 31 are others, of 4 nodes 3.
    rows = 220 * 400
    exchange = 22 * 2 * rows * 31 / 32 / 1e10 + 2 * rows * 3 / 4 / 1.25e9 + 2 * 31 * 1e-4
    assert planned.seconds["exchange"] == pytest.approx(exchange)
    # 1,000 relations and their inverses: updated in five passes, summed in a ring with one stream for each node, with a
    # byte for each that tells whether a step uses it.
    relations = 2000 * 400
    summed = 2 * (relations + 2000) * 31 / 32
    assert planned.seconds["relations"] == pytest.approx(5 * relations / 1e10 + 22 * summed / 1e10 + summed / 1e10)
    assert planned.workers == 32
    assert planned.available == 8 << 30


def test_one_node_has_no_network() -> None:
    counts = StatedGraph(1_000_000, 1000, {"train": 3200})
    planned = preflight.plan_run(make_config(workers=8), make_cluster(nodes=1), counts)
    assert planned.seconds is not None
    rows = (800 + 8 * 10) * 400
    assert planned.seconds["exchange"] == pytest.approx(3 * 2 * rows * 7 / 8 / 1e10)


def test_what_does_not_fit_is_refused_with_the_workers_memory() -> None:
    counts = StatedGraph(1_000_000_000, 1000, {"train": 3200})
    with pytest.raises(ValueError, match=r"8\.00 GiB are available: checkpoint copy 11\.76 GiB, entity table"):
        preflight.plan_run(make_config(workers=32), make_cluster(), counts)


def test_presets_can_be_read_and_planned_for() -> None:
    names = [path.stem for path in CLUSTERS.glob("*.yaml")]
    assert "r5dn_4" in names
    for name in names:
        assert read_cluster(f"preset:{name}").workers >= 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: 4\n", r"workers_per_node: Field required[\s\S]*memory_gb: Field required"),
        ("nodes: 0\nworkers_per_node: 1\nmemory_gb: 1\nnetwork_gbit: 1\n", "nodes: Input should be greater than"),
        ("nodes: 4\nworkers: 2\n", "workers: is no key of a cluster; known: nodes, workers_per_node"),
        ("worker: {gflop: 2}\n", r"worker\.gflop: is no key of a cluster; known: gflops, memory_gb_per_s"),
        ("nodes: true\n", "nodes: "),
        ("nodes: .nan\n", "nodes: "),
        ("- 4\n", "must hold keys such as `nodes: 4`"),
        ("", "must hold keys"),
        ("nodes: [", "is not valid YAML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ClusterFileError, match=message):
        read_cluster(str(tmp_path / "cluster.yaml"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterFileError, match=r"is not a regular file\. A cluster is a YAML file"):
        read_cluster(str(tmp_path / "absent.yaml"))
    with pytest.raises(ClusterFileError, match=r"there is no cluster 'preset:r5dn'\. Known: "):
        read_cluster("preset:r5dn")


def test_counts_of_a_graph() -> None:
    assert dataclasses.astuple(read_counts("86_054_151, 14824,304727650")) == (86054151, 14824, {"train": 304727650})


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "1,2,0", "-1,2,3", "a,b,c", "1.5,2,3"])
def test_other_counts_are_refused(text: str) -> None:
    with pytest.raises(ClusterFileError, match="three whole numbers of at least 1"):
        read_counts(text)


def test_a_foundation_model_is_planned_on_its_own_graphs() -> None:
    config = RunConfig.model_validate({"model": {"name": "ultra", "options": {"width": 8, "layers": 2, "hidden": 8}}})
    with pytest.raises(ConfigError, match="--cluster and --graph are for embeddings"):
        preflight.plan_run(config, make_cluster())


def test_a_gpu_that_is_not_here_has_no_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.torch.cuda, "is_available", lambda: False)
    config = make_config(workers=32)
    config.cluster.gpus_per_worker = 1
    with pytest.raises(ClusterFileError, match="state those of a worker in the cluster's file"):
        preflight.plan_run(config, make_cluster(worker=None, gpu_memory_gb=80), StatedGraph(1000, 10, {"train": 3200}))
