"""Labels and accelerator types as they reach Ray, wherever workers or actors start; Ray itself is not started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import state as ray_state
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from distkg.cluster import shared_graphs
from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.ray_train import policies
from distkg.cluster.ray_train.launch import scaling
from distkg.cluster.ray_train.policies import ElasticPolicy
from distkg.cluster.sampling.negative_pool import negative_actors
from distkg.cluster.session import placement
from distkg.cluster.session.placement import usable_nodes
from distkg.cluster.shared_graphs import share_graphs
from distkg.config import RunConfig

SPOT = {"ray.io/market-type": "spot"}


class RequestedError(Exception):
    """Raised in the place of what follows a request."""


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Bundles and label selectors of placement groups that are requested."""
    seen: list[Any] = []

    def request(bundles: Any, strategy: str, name: str, *, bundle_label_selector: Any) -> None:
        seen.append((bundles, strategy, bundle_label_selector))
        raise RequestedError

    monkeypatch.setattr(placement, "placement_group", request)
    return seen


def config(**cluster: Any) -> RunConfig:
    pool = {"actors": 2, "cpus_per_actor": 0.5, "placement": "spread"}
    return RunConfig.model_validate({"train": {"workers": 3}, "cluster": cluster, "negatives": {"pool": pool}})


def test_workers_of_ray_train_ask_for_labels_and_accelerator() -> None:
    asked = scaling(config(label_selector=SPOT, accelerator_type="L4", gpus_per_worker=1, min_workers=1))
    assert asked.label_selector == SPOT
    assert asked.resources_per_worker == {"CPU": 1, "GPU": 1, "accelerator_type:L4": 0.001, "train_slot": 1}
    assert scaling(config()).label_selector is None


def test_kept_workers_ask_for_labels_and_accelerator(requests: list[Any]) -> None:
    with pytest.raises(RequestedError):
        KeptWorkers(config(label_selector=SPOT, accelerator_type="L4"))._open()
    assert requests == [([{"CPU": 1, "accelerator_type:L4": 0.001}] * 3, "PACK", [SPOT] * 3)]


def test_actors_ask_for_labels_of_their_own(requests: list[Any]) -> None:
    chosen = config(label_selector=SPOT, actor_label_selector={"zone": "a"}, actor_accelerator_type="T4")
    with pytest.raises(RequestedError), negative_actors(chosen, "run", {}):
        pass
    assert requests == [([{"CPU": 0.5, "accelerator_type:T4": 0.001}] * 2, "SPREAD", [{"zone": "a"}] * 2)]


def test_the_spaces_of_a_list_do_not_reach_ray(requests: list[Any]) -> None:
    """Ray takes them, and then for part of the value: no node would be selected."""
    with pytest.raises(RequestedError):
        KeptWorkers(config(label_selector={"zone": "!in(a, b)"}))._open()
    assert requests[0][2] == [{"zone": "!in(a,b)"}] * 3


def test_without_labels_none_are_asked_for(requests: list[Any]) -> None:
    with pytest.raises(RequestedError):
        KeptWorkers(config())._open()
    assert requests == [([{"CPU": 1}] * 3, "PACK", None)]


def test_graphs_are_made_on_nodes_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def options(**chosen: Any) -> None:
        assert chosen["label_selector"] == SPOT
        assert chosen["accelerator_type"] == "L4"
        raise RequestedError

    monkeypatch.setattr(shared_graphs, "_make", SimpleNamespace(options=options))
    tree = {"model": {"name": "ultra"}, "cluster": {"label_selector": SPOT, "accelerator_type": "L4"}}
    with pytest.raises(RequestedError):
        share_graphs(RunConfig.model_validate(tree))


def node(name: str, slots: int, **labels: str) -> dict[str, Any]:
    resources = {"CPU": 8.0, "train_slot": float(slots)}
    return {"NodeID": name, "Alive": True, "Labels": labels, "Resources": resources}


def places(monkeypatch: pytest.MonkeyPatch, chosen: RunConfig, nodes: list[dict[str, Any]], *reserved: str) -> int:
    """Return the number of workers for which the policy sees room, where Ray has reserved some nodes for the run."""
    monkeypatch.setattr(policies, "usable_nodes", lambda: nodes)
    rows = {name: {"CPU": 8.0, "train_slot": 2.0} for name in reserved}
    monkeypatch.setattr(ElasticScalingPolicy, "_get_reserved_resources", lambda policy: rows)
    policy = ElasticPolicy(scaling(chosen))
    resources = policy._get_reserved_resources()
    assert resources is not None
    return policy._count_possible_workers(resources)


def test_an_elastic_run_counts_places_on_nodes_with_its_labels_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("a", 2, zone="a"), node("b", 1, zone="b"), node("none", 3)]
    assert places(monkeypatch, config(min_workers=1), nodes, "a") == 2
    assert places(monkeypatch, config(min_workers=1), nodes, "a", "drained") == 3
    labelled = config(min_workers=1, label_selector={"zone": "b"})
    assert places(monkeypatch, labelled, nodes, "a") == 1


def test_a_node_that_is_drained_or_dead_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [node("a", 1), node("b", 1), node("c", 1) | {"Alive": False}]
    monkeypatch.setattr(ray, "nodes", lambda: rows)
    monkeypatch.setattr(ray_state.state, "get_draining_nodes", lambda: {"b": 0})
    assert usable_nodes() == rows[:1]
