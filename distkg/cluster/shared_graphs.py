"""Graphs of foundation models once on each node: made by a task, kept in Ray's object store, mapped by its processes.

A task and not the driver, for what a task has made is made again where its node is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ray

from distkg.cluster.session.ray_session import worker_environment
from distkg.cluster.session.remote_errors import get_or_explain
from distkg.config import RunConfig, parse_config
from distkg.sharding.zero_copy import Packed, packed, unpacked
from distkg.training.family import family_of

Graphs = Mapping[str, ray.ObjectRef]
"""Address of a store → the packed graph."""

MADE_AT_ONCE = 4


def share_graphs(config: RunConfig) -> Graphs:
    """Have the graphs of a run made, a few at a time; none where its family of models shares none.

    They stay as long as the references are held.

    Raises:
        StoreError, ConfigError, SourceError: as ``made_graph``.
        RemoteTaskError: making a graph failed otherwise, or its process died every time that Ray tried.
    """
    family = family_of(config)
    if not family.shares_graphs:
        return {}
    # Without a CPU of their own: workers hold all of them when a lost graph is made again.
    make = _make.options(
        num_cpus=0,
        num_returns=2,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": worker_environment(config.cluster)},
    )
    graphs: dict[str, ray.ObjectRef] = {}
    under_way: list[ray.ObjectRef] = []
    for address in dict.fromkeys(family.addresses(config)):
        if len(under_way) == MADE_AT_ONCE:
            done, under_way = ray.wait(under_way)
            get_or_explain(done, "making the graphs of the run")
        made, graphs[address] = make.remote(config.model_dump(), address)
        under_way.append(made)
    get_or_explain(under_way, "making the graphs of the run")
    return graphs


def graphs_of_node(graphs: Graphs) -> Callable[[str], Any] | None:
    """How a process of any node comes to the graphs; None where there are none.

    Their arrays lie in the node's object store, where others read them: nobody writes to them.
    """
    return partial(_mapped, graphs) if graphs else None


def _mapped(graphs: Graphs, address: str) -> Any:
    return unpacked(ray.get(graphs[address]))


@ray.remote
def _make(config: dict[str, Any], address: str) -> tuple[bool, Packed]:
    """That it is done, which the driver may read without the graph, and the graph."""
    run = parse_config(config, "the launched run")
    return True, packed(family_of(run).make_shared(run, address))
