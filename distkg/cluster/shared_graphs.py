"""Graphs of foundation models, once on each node: built by a task, kept in Ray's object store, mapped by its processes.

A task and not the driver builds a graph, because Ray repeats a task if the node with its result is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ray

from distkg.cluster.session.placement import worker_nodes
from distkg.cluster.session.remote_errors import get_or_explain
from distkg.cluster.session.worker_environment import worker_environment
from distkg.config import RunConfig, parse_config
from distkg.sharding.zero_copy import Packed, packed, unpacked
from distkg.training.family import family_of

SharedGraphs = Mapping[str, ray.ObjectRef]
"""Address of a store → reference of its packed graph."""

MADE_AT_ONCE = 4


def share_graphs(config: RunConfig) -> SharedGraphs:
    """Build the graphs of a run, a few at a time; empty if its family of models shares none.

    The graphs stay in the object store while the references are held.

    Raises:
        StoreError, ConfigError, SourceError: as ``made_graph``.
        RemoteTaskError: building a graph failed otherwise, or its process died at every attempt.
    """
    family = family_of(config)
    if not family.shares_graphs:
        return {}
    nodes = worker_nodes(config.cluster)
    # Without reserved CPUs, because workers hold all CPUs when a lost graph is built again.
    make = _make.options(
        num_cpus=0,
        label_selector=dict(nodes.labels) or None,
        accelerator_type=nodes.accelerator,
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
        is_done, graphs[address] = make.remote(config.model_dump(), address)
        under_way.append(is_done)
    get_or_explain(under_way, "making the graphs of the run")
    return graphs


def graphs_of_node(graphs: SharedGraphs) -> Callable[[str], Any] | None:
    """Return the function with which a process of any node gets a graph; None if there are none.

    The arrays are in the node's object store, where other processes read them: they must not be written to.
    """
    return partial(_mapped, graphs) if graphs else None


def _mapped(graphs: SharedGraphs, address: str) -> Any:
    return unpacked(ray.get(graphs[address]))


@ray.remote
def _make(config: dict[str, Any], address: str) -> tuple[bool, Packed]:
    """Return True, which the driver can read without the graph, and the packed graph."""
    run = parse_config(config, "the launched run")
    return True, packed(family_of(run).make_shared(run, address))
