"""Placement of workers and actors: nodes with labels and an accelerator type, and Ray's placement groups on them.

A node that is being drained is going away, so Ray places nothing on it, and it is not counted here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private import state as ray_state
from ray.util.placement_group import PlacementGroup, placement_group

from distkg.config import ClusterConfig
from distkg.config.node_labels import selects

ACCELERATOR = "accelerator_type:"
"""Beginning of the name of the resource that Ray gives to a node with an accelerator of some type."""

_OF_ACCELERATOR = 0.001  # as Ray Train and Ray's actors reserve of it

Node = dict[str, Any]
"""Row of ``ray.nodes()``."""


@dataclass(frozen=True)
class NodeChoice:
    """Condition on the nodes of workers or of actors.

    Attributes:
        of: beginning of the names of its keys in ``cluster``; empty for workers.
        labels: Ray's label selector; empty for any node.
        accelerator: Ray's accelerator type; None for any node.
    """

    of: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    accelerator: str | None = None

    @property
    def is_any(self) -> bool:
        """Return whether every node is admitted."""
        return not self.labels and self.accelerator is None

    @property
    def resources(self) -> dict[str, float]:
        """Resources that each worker or actor reserves for the condition on the accelerator."""
        return {} if self.accelerator is None else {f"{ACCELERATOR}{self.accelerator}": _OF_ACCELERATOR}

    def admitted(self, nodes: Sequence[Node]) -> list[Node]:
        """Return the nodes that meet the condition."""
        return [
            node
            for node in nodes
            if selects(self.labels, node["Labels"]) and all(name in node["Resources"] for name in self.resources)
        ]

    def describe_missing(self, nodes: Sequence[Node]) -> str | None:
        """Return a sentence about the labels or the accelerator type that no node has; None if a node has all."""
        if self.admitted(nodes):
            return None
        parts = [NodeChoice(self.of, {name: value}) for name, value in self.labels.items()]
        parts += [NodeChoice(self.of, accelerator=self.accelerator)] if self.accelerator else []
        missing = [part for part in parts if not part.admitted(nodes)]
        if missing:
            return f"no node has {', nor '.join(f'{part}{_values_on(nodes, part.labels)}' for part in missing)}"
        return f"no node has all of {', '.join(map(str, parts))}"

    def __str__(self) -> str:
        listed = ", ".join(f"{name}: {value}" for name, value in self.labels.items())
        parts = [f"cluster.{self.of}label_selector {{{listed}}}"] if listed else []
        parts += [f"cluster.{self.of}accelerator_type {self.accelerator}"] if self.accelerator else []
        return " and ".join(parts)


def _values_on(nodes: Sequence[Node], names: Iterable[str]) -> str:
    """Return the values of labels on nodes, in parentheses."""
    found = {name: sorted({node["Labels"][name] for node in nodes if name in node["Labels"]}) for name in names}
    return "".join(f" (there is {name}: {', '.join(values)})" for name, values in found.items() if values)


def worker_nodes(cluster: ClusterConfig) -> NodeChoice:
    """Return the condition on the nodes of workers."""
    return NodeChoice("", _as_ray_reads(cluster.label_selector), cluster.accelerator_type)


def actor_nodes(cluster: ClusterConfig) -> NodeChoice:
    """Return the condition on the nodes of actors that draw negatives."""
    return NodeChoice("actor_", _as_ray_reads(cluster.actor_label_selector), cluster.actor_accelerator_type)


def _as_ray_reads(selector: Mapping[str, str]) -> dict[str, str]:
    """Return a selector without the spaces of ``in(A, B)``, which Ray 2.60 takes for part of the value."""
    return {name: condition.replace(" ", "") for name, condition in selector.items()}


def reserve(
    bundles: Sequence[tuple[Mapping[str, float], NodeChoice]], strategy: str = "PACK", name: str = ""
) -> PlacementGroup:
    """Request a placement group with the resources of each bundle on nodes of its choice."""
    labels = [dict(nodes.labels) for _, nodes in bundles] if any(nodes.labels for _, nodes in bundles) else None
    return placement_group([dict(resources) for resources, _ in bundles], strategy, name, bundle_label_selector=labels)


def usable_nodes() -> list[Node]:
    """Return the nodes on which Ray places something: alive, and not being drained."""
    draining = ray_state.state.get_draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]


def total_resources(nodes: Sequence[Node]) -> dict[str, float]:
    """Return the sum of the resources of nodes, free or not."""
    return _sum(node["Resources"] for node in nodes)


def free_resources(nodes: Sequence[Node]) -> dict[str, float]:
    """Return the sum of the free resources of nodes."""
    free = ray_state.available_resources_per_node()
    return _sum(free.get(node["NodeID"], {}) for node in nodes)


def _sum(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for resources in parts:
        total.update(resources)
    return dict(total)
