"""A node is lost: an elastic run goes on with the workers that are left, and graphs that lay there are made again."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.experimental
import torch
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distkg.cluster.launch import run_on_workers
from distkg.cluster.sampling.actor_link import ActorLink, ActorProcess
from distkg.cluster.shared_graphs import graphs_of_node, share_graphs
from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.foundation.graphs.training_graphs import LearnedGraph
from tests.ray_nodes import add_node, start_head

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NODE = {"num_cpus": 1, "resources": {"train_slot": 1}, "object_store_memory": 100 * 2**20}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes on this machine, with a CPU and a train slot each; the first is the driver's."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Without handlers of signals, which only the main thread may set: a listener adds a node in another.
    cluster = start_head(shutdown_at_exit=False, **NODE)
    try:
        add_node(cluster, **NODE)
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


@pytest.mark.timeout(200)
def test_a_run_that_is_not_elastic_waits_for_the_node_that_takes_the_place_of_a_lost_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    def train(config: Any, run: Path, ranks: Any, *, resume: bool, listener: Any, services: Any) -> dict[str, Any]:
        first = not (run / "metrics.jsonl").exists()
        ranks.barrier()
        if ranks.first:
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"size": ranks.size}) + "\n")
        deadline = time.monotonic() + 120
        while first and time.monotonic() < deadline:
            ranks.barrier()
            time.sleep(0.1)
        return {"size": ranks.size}

    sizes: list[int] = []

    def replace_a_node(record: dict[str, Any]) -> None:
        sizes.append(record["size"])
        if len(sizes) == 1:
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
            add_node(cluster, **NODE)

    config = RunConfig.model_validate({"train": {"workers": 2}, "cluster": {"address": cluster.address}})
    assert run_on_workers(train, config, tmp_path / "run", listener=replace_a_node) == {"size": 2}
    assert sizes == [2, 2]


@ray.remote(num_cpus=0)
class FarActor:
    def draw(self, values: int) -> tuple[ActorProcess, Any]:
        return ActorProcess("node", 1, 1), np.zeros(values)


def test_a_reply_of_an_actor_on_another_node_is_there_at_the_first_look(cluster: Cluster) -> None:
    """A reply beyond 100 kB lies in the object store of the actor's node until somebody fetches it."""
    ray.init(address=cluster.address, logging_level="WARNING")
    (other,) = cluster.worker_nodes
    there = NodeAffinitySchedulingStrategy(other.node_id, soft=False)
    link = ActorLink(FarActor.options(scheduling_strategy=there).remote(), 0, 1000.0, {})
    call = link.call("draw", 100_000)
    assert ray.wait([call.reply], timeout=120, fetch_local=False)[0]
    call.fetched.result(timeout=120)
    assert link.is_over(call, 0)
    assert link.outcome(call).shape == (100_000,)


def test_graphs_that_lay_on_a_lost_node_are_made_again(cluster: Cluster, tmp_path: Path) -> None:
    stores = [str(tmp_path / name) for name in "abcd"]
    for seed, store in enumerate(stores):
        generate(store, entities=800, relations=4, triples=9000, seed=seed)
    config = RunConfig.model_validate(
        {
            "data": {"graphs": stores},
            "model": {"name": "ultra", "options": {"width": 8, "layers": 2, "hidden": 8}},
            "objective": {"name": "self_adversarial"},
        }
    )
    ray.init(address=cluster.address, logging_level="WARNING")
    graphs = share_graphs(config)
    (other,) = cluster.worker_nodes
    places = ray.experimental.get_object_locations(list(graphs.values()))
    lost = [store for store in stores if places[graphs[store]]["node_ids"] == [other.node_id]]
    assert lost, "no graph was made on the other node"
    cluster.remove_node(other, allow_graceful=False)
    graph_of = graphs_of_node(graphs)
    assert graph_of is not None
    for store in lost:
        again, own = graph_of(store), LearnedGraph.open(store, config)
        assert torch.equal(again.facts.triples, own.facts.triples)
        assert torch.equal(again.facts.meetings.src, own.facts.meetings.src)
