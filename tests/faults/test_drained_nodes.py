"""A node is drained, as a spot node that its provider takes back: nothing beyond a checkpoint is lost."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.launch import run_on_workers
from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.training.run import train_on_rank
from tests.ray_nodes import add_node, start_head

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

EPOCHS = 40
GENEROUS = 300.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes on this machine, each with room for a worker and an actor; the first is the driver's."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    node = {"num_cpus": 2, "resources": {"train_slot": 1}, "object_store_memory": 100 * 2**20}
    cluster = start_head(**node)
    try:
        add_node(cluster, **node, labels={"market": "spot"})
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def store(tmp_path: Path) -> str:
    generate(str(tmp_path / "store"), entities=300, relations=5, triples=4000, seed=2)
    return str(tmp_path / "store")


def run_config(cluster: Cluster, store: str, workers: int, pool: dict[str, Any], **chosen: Any) -> RunConfig:
    """A run that saves a checkpoint only when it must."""
    tree: dict[str, Any] = {
        "data": {"store": store},
        "model": {"name": "distmult", "dim": 16},
        "objective": {"name": "logistic"},
        "negatives": {"source": "near_miss", "options": {"neighbours": 8}, "count": 4, "pool": pool},
        "train": {"workers": workers, "epochs": EPOCHS, "batch_size": 200},
        "evaluate": {"every": 1000},
        "checkpoint": {"every": 1000},
        "cluster": {"address": cluster.address, "max_failures": 0, **chosen},
    }
    return RunConfig.model_validate(tree)


def drain_the_other_node(cluster: Cluster) -> None:
    """Drain the node by the command of docs/operations.md."""
    (node,) = cluster.worker_nodes
    of_node = ["--address", cluster.address, "--node-id", node.node_id]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "maintenance"]
    when = ["--deadline-remaining-seconds", "120"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *of_node, *why, *when]
    subprocess.run(command, check=True, timeout=GENEROUS)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + GENEROUS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def in_groups() -> Any:
    """Training that records of every group of workers its size, and the steps with which it began and ended.

    The first group stays in its third epoch until it is told to leave: its epochs take less time than a drain command.
    """

    class WaitsForOrder:
        def __init__(self, observer: Any, stop: Any) -> None:
            self._observer, self._stop = observer, stop

        def report(self, report: Any) -> None:
            self._observer.report(report)
            while report.line["epoch"] == 2 and not self._stop.requested:
                time.sleep(0.01)

        def checkpoint(self, saved_at: float) -> None:
            self._observer.checkpoint(saved_at)

    def train(config: Any, run: Path, ranks: Any, *, services: Any, **others: Any) -> dict[str, Any]:
        if ranks.first and not (run / "begun").exists():
            services = dataclasses.replace(services, observer=WaitsForOrder(services.observer, services.stop))
        saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
        if ranks.first:
            with (run / "begun").open("a") as file:
                file.write(f"{ranks.size}\n")
        result = train_on_rank(config, run, ranks, services=services, **others)
        if ranks.first:
            record = {"size": ranks.size, "began": saved[-1:], "stopped": result.get("stopped")}
            with (run / "groups.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
        return result

    return train


def test_workers_leave_a_node_that_is_drained_with_a_checkpoint_and_lose_no_step(
    cluster: Cluster, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def take_the_node_back() -> None:
        wait_until(lambda: lines(run / "metrics.jsonl"))
        drain_the_other_node(cluster)
        wait_until(lambda: (run / "begun").read_text().count("\n") == 2)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    threading.Thread(target=take_the_node_back, daemon=True).start()
    config = run_config(cluster, store, 2, {}, min_workers=1)
    result = run_on_workers(in_groups(), config, run)
    first, second = lines(run / "groups.jsonl")
    step = first["stopped"]
    assert (first["size"], second["size"]) == (2, 1)
    assert second["began"] == [f"step-{step:09d}"]
    assert result["train"]["epochs"] == EPOCHS
    notice, smaller = result["notices"]
    assert smaller.endswith("with 1 worker, earlier with 2")
    assert " is taken away in 1" in notice
    assert notice.endswith(f"s: saved a checkpoint at step {step:,}, continuing on other nodes")
    assert notice in capsys.readouterr().out.splitlines()
    assert lines(run / "failures.jsonl") == []
    steps = [line["step"] for line in lines(run / "metrics.jsonl")]
    assert steps == sorted(set(steps))


def test_kept_workers_leave_a_drained_node_and_a_drained_actor_ends_nothing(
    cluster: Cluster, store: str, tmp_path: Path
) -> None:
    """The only worker and the only actor are on the node that is taken back; the worker finds another one."""
    run = tmp_path / "run"
    pool = {"actors": 1, "cpus_per_actor": 0.5}
    config = run_config(cluster, store, 1, pool, cpus_per_worker=1.5, actor_label_selector={"market": "spot"})
    other = config.model_copy(deep=True)
    other.cluster.label_selector = {"market": "spot"}

    def take_the_node_back() -> None:
        wait_until(lambda: lines(run / "metrics.jsonl"))
        kept._cluster = config.cluster  # the successor may be on any node
        drain_the_other_node(cluster)
        wait_until(lambda: (run / "begun").read_text().count("\n") == 2)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    ray.init(address=cluster.address, logging_level="WARNING")
    kept = KeptWorkers(other)
    threading.Thread(target=take_the_node_back, daemon=True).start()
    try:
        result = run_on_workers(in_groups(), other, run, kept=kept)
    finally:
        kept.close()
    first, second = lines(run / "groups.jsonl")
    assert second["began"] == [f"step-{first['stopped']:09d}"]
    assert result["train"]["epochs"] == EPOCHS
    assert " (worker 0) is taken away in 1" in result["notices"][0]
    assert lines(run / "failures.jsonl") == []
