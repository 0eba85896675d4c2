"""Waiting for room on a cluster: what is said when, and how it ends; Ray itself is not started here."""

from __future__ import annotations

from typing import Any

import pytest
from ray._private import state as ray_state

from distkg.cluster.session import placement, shortage, waiting
from distkg.cluster.session import ray_session as session
from distkg.cluster.session.ray_session import ClusterError
from distkg.cluster.session.waiting import describe_wait, wait_for_room
from distkg.config import RunConfig


class Group:
    """A placement group that is placed after so many seconds of waiting, by a clock of its own."""

    def __init__(self, placed_after: float) -> None:
        self.clock, self._placed_at = 0.0, placed_after
        self.bundles: list[dict[str, float]] = []
        self.labels: list[dict[str, str]] | None = None
        self.removed = False

    def wait(self, seconds: float) -> bool:
        self.clock = min(self.clock + seconds, max(self._placed_at, self.clock))
        return self.clock >= self._placed_at


def cluster(
    monkeypatch: pytest.MonkeyPatch, group: Group, *, total: float, free: float, labels: dict[str, str] | None = None
) -> None:
    """Cluster of one node."""

    def place(bundles: list[dict[str, float]], *_: Any, bundle_label_selector: Any) -> Group:
        group.bundles, group.labels = bundles, bundle_label_selector
        return group

    monkeypatch.setattr(placement, "placement_group", place)
    monkeypatch.setattr(waiting, "remove_placement_group", lambda removed: setattr(removed, "removed", True))
    monkeypatch.setattr(waiting.time, "monotonic", lambda: group.clock)
    nodes = [{"NodeID": "head", "Labels": labels or {}, "Resources": {"CPU": total}}]
    for module in (shortage, waiting):
        monkeypatch.setattr(module, "usable_nodes", lambda: nodes)
    monkeypatch.setattr(ray_state, "available_resources_per_node", lambda: {"head": {"CPU": free}})


def config(workers: int, **cluster_keys: Any) -> RunConfig:
    pool = {"actors": 1, "cpus_per_actor": 0.5}
    return RunConfig.model_validate(
        {"train": {"workers": workers}, "cluster": cluster_keys, "negatives": {"pool": pool}}
    )


TOO_SMALL = "waiting for nodes: 2 workers and 1 negative actors need 2.5 CPU (there are 1)"
BUSY = "waiting for other work on the cluster to end: 2 workers need 2.5 CPU (1 free)"


def test_a_cluster_with_room_is_not_remarked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    group, said = Group(placed_after=0), []  # type: ignore[var-annotated]
    cluster(monkeypatch, group, total=4, free=4)
    wait_for_room(config(2), said.append, nodes_may_come=True)
    assert (said, group.removed) == ([], True)
    assert group.bundles == [{"CPU": 1}, {"CPU": 1}, {"CPU": 0.5}]


def test_what_is_missing_is_said_at_once_and_then_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    group, said = Group(placed_after=150), []  # type: ignore[var-annotated]
    cluster(monkeypatch, group, total=1, free=1)
    wait_for_room(config(2), lambda text: said.append((group.clock, text)), nodes_may_come=True)
    assert said == [(2, TOO_SMALL), (62, TOO_SMALL), (122, TOO_SMALL)]
    assert group.removed


def test_it_gives_up_when_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    group, said = Group(placed_after=1e9), []  # type: ignore[var-annotated]
    cluster(monkeypatch, group, total=1, free=1)
    with pytest.raises(ClusterError) as caught:
        wait_for_room(config(2, wait_seconds=70), said.append, nodes_may_come=True)
    assert str(caught.value) == (
        f"gave up after 70 s (cluster.wait_seconds) of {TOO_SMALL}. Lower train.workers, or add nodes"
    )
    assert (said, group.clock, group.removed) == ([TOO_SMALL, TOO_SMALL], 70, True)


def test_a_busy_cluster_is_told_from_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, Group(0), total=8, free=1)
    assert describe_wait(config(2)) == BUSY


def test_a_ray_of_our_own_never_grows_so_that_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, Group(0), total=8, free=8)
    with pytest.raises(ClusterError, match=r"this machine is too small: .* need 2 GPU \(there are 0\)"):
        wait_for_room(config(2, gpus_per_worker=1), print, nodes_may_come=False)


def test_an_elastic_run_waits_for_its_least_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(placed_after=0)
    cluster(monkeypatch, group, total=8, free=8)
    monkeypatch.setattr(session, "TRAIN_SLOT", "CPU")
    wait_for_room(config(8, min_workers=1), print, nodes_may_come=True)
    assert len(group.bundles) == 2


def test_labels_that_no_node_has_are_named_until_the_run_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    group, said = Group(placed_after=1e9), []  # type: ignore[var-annotated]
    cluster(monkeypatch, group, total=4, free=4, labels={"zone": "a"})
    chosen = config(2, label_selector={"zone": "b"}, actor_label_selector={"zone": "a"}, wait_seconds=30)
    missing = "waiting for nodes: no node has cluster.label_selector {zone: b} (there is zone: a), for 2 workers"
    with pytest.raises(ClusterError) as caught:
        wait_for_room(chosen, said.append, nodes_may_come=True)
    assert said == [missing]
    assert str(caught.value).startswith(f"gave up after 30 s (cluster.wait_seconds) of {missing}. ")
    assert group.bundles == [{"CPU": 1}, {"CPU": 1}, {"CPU": 0.5}]
    assert group.labels == [{"zone": "b"}, {"zone": "b"}, {"zone": "a"}]


def test_a_busy_cluster_is_one_whose_nodes_with_the_labels_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, Group(0), total=8, free=1, labels={"zone": "a"})
    chosen = config(2, label_selector={"zone": "a"}, actor_label_selector={"zone": "!b"})
    where = "cluster.label_selector {zone: a} and cluster.actor_label_selector {zone: !b}"
    assert describe_wait(chosen) == f"{BUSY} on nodes with {where}"


def test_bounds_of_the_keys() -> None:
    assert (RunConfig().cluster.hung_after, RunConfig().cluster.wait_seconds) == (120.0, None)
    for key in ("hung_after", "wait_seconds"):
        for value in (0, -1):
            with pytest.raises(ValueError, match="greater than 0"):
                RunConfig.model_validate({"cluster": {key: value}})
