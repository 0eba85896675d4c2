"""Sentences about the nodes, labels and resources that a cluster lacks for a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distkg.cluster.session.placement import (
    Node,
    NodeChoice,
    actor_nodes,
    total_resources,
    usable_nodes,
    worker_nodes,
)
from distkg.cluster.session.ray_session import (
    MEMORY,
    TRAIN_SLOT,
    actor_resources,
    run_resources,
    worker_resources,
)
from distkg.config import RunConfig


def describe_shortage(config: RunConfig, runs: int = 1) -> str | None:
    """Return a sentence about the labels or resources that the cluster lacks now; None if it has enough.

    This is not an error, because an autoscaler may add nodes.
    """
    nodes, parts = usable_nodes(), _parts(config, runs)
    chosen = [part for part in parts if not part.nodes.is_any]
    for part in chosen:
        missing = part.nodes.describe_missing(nodes)
        if missing is not None:
            return f"waiting for nodes: {missing}, for {part.name}"
    workers = config.cluster.min_workers or config.train.workers
    needed = _times(runs, run_resources(config, workers))
    together = _Part(" and ".join(part.name for part in parts), needed, NodeChoice())
    for part in (*chosen, together):
        shortage = _describe_shortage_of(part, nodes)
        if shortage is not None:
            return shortage
    return _shortage_on_every_node(config, nodes) if MEMORY in together.needed else None


@dataclass(frozen=True)
class _Part:
    """Workers or actors of a run.

    Attributes:
        name: their number and kind.
        needed: Ray resources of all of them.
        nodes: nodes on which they may be placed.
    """

    name: str
    needed: dict[str, float]
    nodes: NodeChoice


def _parts(config: RunConfig, runs: int) -> list[_Part]:
    workers = runs * (config.cluster.min_workers or config.train.workers)
    actors = runs * config.negatives.pool.actors
    cluster, of_workers = config.cluster, _times(workers, worker_resources(config.cluster))
    parts = [_Part(f"{workers} workers", of_workers, worker_nodes(cluster))]
    if actors:
        of_actors = _times(actors, actor_resources(config))
        parts.append(_Part(f"{actors} negative actors", of_actors, actor_nodes(cluster)))
    return parts


def _times(number: int, resources: dict[str, float]) -> dict[str, float]:
    return {name: number * amount for name, amount in resources.items()}


def _describe_shortage_of(part: _Part, nodes: Sequence[Node]) -> str | None:
    total = total_resources(part.nodes.admitted(nodes))
    short = {name: amount for name, amount in part.needed.items() if total.get(name, 0) < amount}
    if not short:
        return None
    missing = [_describe_missing(name, amount, total.get(name, 0)) for name, amount in short.items()]
    where = "" if part.nodes.is_any else f" on nodes with {part.nodes}"
    hint = f"; start nodes with --resources='{{\"{TRAIN_SLOT}\": N}}'" if TRAIN_SLOT in short else ""
    hint += _MORE_MEMORY if MEMORY in short else ""
    return f"waiting for nodes: {part.name} need {', '.join(missing)}{where}{hint}"


_MORE_MEMORY = (
    "; Ray counts 70 % of what was free on a node at its start, unless that is started with --memory=BYTES. "
    "`distkg plan` says what an actor needs its memory for"
)


def _describe_missing(name: str, needed: float, there: float) -> str:
    if name == MEMORY:
        return f"{needed / 2**30:.1f} GiB of memory for actors (there are {there / 2**30:.1f})"
    return f"{needed:g} {name} (there are {there:g})"


def _shortage_on_every_node(config: RunConfig, nodes: Sequence[Node]) -> str | None:
    """Return a sentence if the memory of an actor is on no node, though it is on all together."""
    needed = actor_resources(config)[MEMORY]
    admitted = actor_nodes(config.cluster).admitted(nodes)
    largest = max((node["Resources"].get(MEMORY, 0) for node in admitted), default=0)
    if largest >= needed:
        return None
    return (
        f"waiting for nodes: a negative actor needs {needed / 2**30:.1f} GiB of memory on its node (the largest node "
        f"has {largest / 2**30:.1f}){_MORE_MEMORY}"
    )
