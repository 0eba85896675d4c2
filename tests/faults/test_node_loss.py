"""An elastic run that loses a node goes on with the workers that are left."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from distkg.cluster.launch import run_on_workers
from distkg.config import RunConfig

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes on this machine, with a CPU and a train slot each; the first is the driver's."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    node = {"num_cpus": 1, "resources": {"train_slot": 1}, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_run_on_two_nodes_goes_on_with_one(cluster: Cluster, tmp_path: Path) -> None:
    def train(config: Any, run: Path, ranks: Any, *, resume: bool, listener: Any, services: Any) -> dict[str, Any]:
        if ranks.first:
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"size": ranks.size}) + "\n")
        deadline = time.monotonic() + 120
        while ranks.size == 2 and time.monotonic() < deadline:
            ranks.barrier()
            time.sleep(0.1)
        return {"size": ranks.size}

    sizes: list[int] = []

    def lose_a_node(record: dict[str, Any]) -> None:
        sizes.append(record["size"])
        if record["size"] == 2:
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    config = RunConfig.model_validate(
        {"train": {"workers": 2}, "cluster": {"address": cluster.address, "min_workers": 1}}
    )
    result = run_on_workers(train, config, tmp_path / "run", listener=lose_a_node)
    assert result == {"size": 1}
    assert sizes == [2, 1]
    failures = [json.loads(line) for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert failures
    assert all(line["restart"] for line in failures)
