"""Nodes with labels and an accelerator type: workers, actors and graphs are where the configuration says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.experimental

from distkg.cluster.collective import ask_workers
from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.launch import run_on_workers
from distkg.cluster.session.ray_session import ClusterError
from distkg.cluster.shared_graphs import share_graphs
from distkg.config import ClusterConfig, RunConfig
from distkg.data.generate import generate
from distkg.sharding.ranks import Ranks
from distkg.training.family import GraphChoice, Predictor
from distkg.training.run import train_on_rank
from tests.ray_nodes import add_node, start_head

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@dataclass(frozen=True)
class Nodes:
    """Ids of the nodes: the driver's without a label, one for workers, one for actors."""

    head: str
    work: str
    draw: str


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    slots = {"train_slot": 2}
    small: dict[str, Any] = {"object_store_memory": 100 * 2**20, "resources": slots}
    with pytest.MonkeyPatch.context() as patch:
        cluster = start_head(**small, num_cpus=2)
        patch.setenv("RAY_ADDRESS", cluster.address)
        try:
            work = add_node(cluster, **small, num_cpus=2, labels={"pool": "work"})
            accelerator = {"resources": {**slots, "accelerator_type:L4": 1}}
            draw = add_node(cluster, **{**small, **accelerator}, num_cpus=2, labels={"pool": "draw"})
            ray.init(address=cluster.address, logging_level="WARNING")
            yield Nodes(cluster.head_node.node_id, work.node_id, draw.node_id)
        finally:
            ray.shutdown()
            cluster.shutdown()


def with_pool(store: str, **cluster: Any) -> RunConfig:
    pool = {"actors": 1, "cpus_per_actor": 0.5}
    return RunConfig.model_validate(
        {
            "data": {"store": store},
            "model": {"name": "distmult", "dim": 16},
            "objective": {"name": "logistic"},
            "negatives": {"source": "near_miss", "options": {"neighbours": 8}, "count": 4, "pool": pool},
            "train": {"workers": 4, "epochs": 1, "batch_size": 200},
            "cluster": cluster,
        }
    )


def test_an_elastic_run_and_who_reads_it_use_the_nodes_with_its_labels(
    nodes: Nodes, small_store: str, tmp_path: Path
) -> None:
    """Of the six places for workers on the cluster two are on a node with the label."""
    choice = {"label_selector": {"pool": "work"}, "actor_label_selector": {"pool": "in(draw, other)"}}
    config = with_pool(small_store, **choice, actor_accelerator_type="L4", min_workers=1)

    def train(config: Any, run: Path, ranks: Any, **services: Any) -> dict[str, Any]:
        actors = ray._private.state.actors().values()
        drawing = [actor["Address"]["NodeID"] for actor in actors if actor["ActorClassName"] == "NegativeActor"]
        places = {"worker": ray.get_runtime_context().get_node_id(), "actors": drawing, "workers": ranks.size}
        (run / f"places-{ranks.rank}").write_text(json.dumps(places))
        return train_on_rank(config, run, ranks, **services)

    run = tmp_path / "run"
    result = run_on_workers(train, config, run)
    assert result["train"]["workers"] == 2
    expected = {"worker": nodes.work, "actors": [nodes.draw], "workers": 2}
    assert [json.loads((run / f"places-{rank}").read_text()) for rank in range(2)] == [expected] * 2

    def where(predictor: Predictor, ranks: Ranks) -> list[str]:
        (tmp_path / f"read-{ranks.rank}").write_text(ray.get_runtime_context().get_node_id())
        ranks.barrier()
        return [(tmp_path / f"read-{rank}").read_text() for rank in range(ranks.size)]

    assert ask_workers(run, GraphChoice(), 2, where) == [nodes.work] * 2
    with pytest.raises(ClusterError, match=r"nodes with cluster\.label_selector {pool: work} have 2. Lower --workers"):
        ask_workers(run, GraphChoice(), 3, where)


def test_kept_workers_and_graphs_are_on_nodes_with_the_labels(nodes: Nodes, small_store: str, tmp_path: Path) -> None:
    def place(config: Any, run: Path, ranks: Any, **services: Any) -> dict[str, Any]:
        return {"node": ray.get_runtime_context().get_node_id()}

    def kept_on(**cluster: Any) -> Any:
        config = RunConfig.model_validate({"data": {"store": small_store}, "cluster": cluster})
        kept = KeptWorkers(config)
        try:
            return run_on_workers(place, config, tmp_path / str(cluster), kept=kept)["node"]
        finally:
            kept.close()

    assert kept_on(label_selector={"pool": "!in(work, draw)"}) == nodes.head  # which has no such label
    assert kept_on(accelerator_type="L4") == nodes.draw

    stores = [str(tmp_path / name) for name in "abc"]
    for seed, store in enumerate(stores):
        generate(store, entities=800, relations=4, triples=9000, seed=seed)
    tree: dict[str, Any] = {
        "data": {"graphs": stores},
        "model": {"name": "ultra", "options": {"width": 8, "layers": 2, "hidden": 8}},
        "objective": {"name": "self_adversarial"},
    }
    for cluster, node in (({"label_selector": {"pool": "work"}}, nodes.work), ({"accelerator_type": "L4"}, nodes.draw)):
        graphs = share_graphs(RunConfig.model_validate({**tree, "cluster": ClusterConfig.model_validate(cluster)}))
        places = ray.experimental.get_object_locations(list(graphs.values()))
        assert [places[graphs[store]]["node_ids"] for store in stores] == [[node]] * 3


def test_labels_that_no_node_has_are_said_and_waited_for(
    nodes: Nodes, small_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(config: Any, run: Path, ranks: Any, **services: Any) -> dict[str, Any]:
        raise AssertionError("a worker was placed")

    config = with_pool(small_store, label_selector={"pool": "spare"}, wait_seconds=4)
    missing = (
        "waiting for nodes: no node has cluster.label_selector {pool: spare} (there is pool: draw, work), for 4 workers"
    )
    with pytest.raises(ClusterError) as caught:
        run_on_workers(never, config, tmp_path / "run")
    assert str(caught.value).startswith(f"gave up after 4 s (cluster.wait_seconds) of {missing}")
    assert missing in capsys.readouterr().out
