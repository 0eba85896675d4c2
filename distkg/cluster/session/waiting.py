"""Waiting until a cluster has resources for a run, with one message a minute."""

from __future__ import annotations

import time
from collections.abc import Callable

from ray.util.placement_group import remove_placement_group

from distkg.cluster.session.address import ClusterError
from distkg.cluster.session.placement import (
    ACCELERATOR,
    actor_nodes,
    free_resources,
    reserve,
    usable_nodes,
    worker_nodes,
)
from distkg.cluster.session.ray_session import (
    MEMORY,
    actor_resources,
    run_resources,
    worker_resources,
)
from distkg.cluster.session.shortage import describe_shortage
from distkg.config import RunConfig

AGAIN_SECONDS = 60.0
FIRST_SECONDS = 2.0


def wait_for_room(config: RunConfig, say: Callable[[str], None], *, nodes_may_come: bool) -> None:
    """Return when the cluster can place the workers and actors of a run.

    A placement group requests them, so that an autoscaler starts nodes. Missing resources are reported after two
    seconds and then every minute.

    Args:
        say: prints a sentence.
        nodes_may_come: False for a private Ray, which never grows.

    Raises:
        ClusterError: ``cluster.wait_seconds`` have passed, or a private Ray is too small.
    """
    shortage = describe_shortage(config)
    if shortage is not None and not nodes_may_come:
        raise ClusterError(f"this machine is too small: {shortage.removeprefix('waiting for nodes: ')}")
    workers, pool = config.cluster.min_workers or config.train.workers, config.negatives.pool
    of_actors = [(actor_resources(config), actor_nodes(config.cluster))] * pool.actors if pool.actors else []
    bundles = [(worker_resources(config.cluster), worker_nodes(config.cluster))] * workers + of_actors
    group = reserve([(resources, nodes) for resources, nodes in bundles if any(resources.values())])
    started, limit = time.monotonic(), config.cluster.wait_seconds
    try:
        patience = FIRST_SECONDS
        while not group.wait(min(patience, _left(started, limit))):
            sentence = describe_wait(config)
            if round(_left(started, limit), 1) <= 0:
                raise ClusterError(
                    f"gave up after {limit:g} s (cluster.wait_seconds) of {sentence}. Lower train.workers, or add nodes"
                )
            say(sentence)
            patience = AGAIN_SECONDS
    finally:
        remove_placement_group(group)


def describe_wait(config: RunConfig) -> str:
    """Return a sentence about the condition that a run waits for: nodes, or the end of other work."""
    shortage = describe_shortage(config)
    if shortage is not None:
        return shortage
    workers = config.cluster.min_workers or config.train.workers
    choices = [worker_nodes(config.cluster), *([actor_nodes(config.cluster)] if config.negatives.pool.actors else [])]
    free = free_resources([node for node in usable_nodes() if any(nodes.admitted([node]) for nodes in choices)])
    needed = {name: amount for name, amount in run_resources(config, workers).items() if ACCELERATOR not in name}
    listed = ", ".join(_with_free(name, amount, free.get(name, 0)) for name, amount in needed.items())
    where = " and ".join(str(nodes) for nodes in choices if not nodes.is_any)
    on = f" on nodes with {where}" if where else ""
    return f"waiting for other work on the cluster to end: {workers} workers need {listed}{on}"


def _with_free(name: str, needed: float, free: float) -> str:
    if name == MEMORY:
        return f"{needed / 2**30:.1f} GiB of memory for actors ({free / 2**30:.1f} free)"
    return f"{needed:g} {name} ({free:g} free)"


def _left(started: float, limit: float | None) -> float:
    return AGAIN_SECONDS if limit is None else max(0.0, started + limit - time.monotonic())
