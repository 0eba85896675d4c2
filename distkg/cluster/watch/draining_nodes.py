"""Nodes that are about to be taken away (Ray drains them), and the workers that leave them in time.

Does not import torch, because Ray Train's controller and the watch of a run import it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import ray
from ray._private import state as ray_state

from distkg.cluster.watch.heartbeats import Worker


class NodesLeavingError(Exception):
    """Raised by workers of a run after a checkpoint, so that they start again on nodes that stay."""


def draining_nodes() -> dict[str, float | None]:
    """Return the nodes that Ray drains, each with the seconds until it is taken away; None if nobody has said when."""
    deadlines = ray_state.state.get_draining_nodes()
    return {node: ms / 1000 - time.time() if ms else None for node, ms in deadlines.items()}


def describe_leaving(workers: Mapping[int, Worker], draining: Mapping[str, float | None]) -> str:
    """Return the beginning of a sentence about the draining nodes that hold workers; empty if none does."""
    ranks: dict[str, list[int]] = {}
    for rank, worker in sorted(workers.items()):
        if worker.process.node in draining:
            ranks.setdefault(worker.process.node, []).append(rank)
    if not ranks:
        return ""
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    parts = [_describe(names.get(node, node), ranks[node], draining[node]) for node in ranks]
    return " and ".join(parts)


def _describe(name: str, ranks: list[int], seconds: float | None) -> str:
    workers = f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
    when = "" if seconds is None else f" in {max(0, seconds):.0f} s"
    return f"node {name} ({workers}) is taken away{when}"
