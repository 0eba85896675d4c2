"""Number of workers of an elastic run, by the nodes that may hold some.

Ray Train's controller imports this module: it imports no torch.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from distkg.cluster.session.placement import NodeChoice, usable_nodes


class ElasticPolicy(ElasticScalingPolicy):
    """Ray Train's elastic policy, which counts no place on nodes without the labels of the run, nor on nodes that are
    being drained: it would wait forever for workers that cannot be placed there."""

    def _get_reserved_resources(self) -> dict[str, dict[str, float]] | None:
        """Return the resources that the run may use, by node; None if they are not known now."""
        labels = self.scaling_config.label_selector
        nodes = NodeChoice(labels=labels) if isinstance(labels, dict) else NodeChoice()
        admitted = {node["NodeID"]: node["Resources"] for node in nodes.admitted(usable_nodes())}
        if not nodes.is_any:  # Ray reserves nodes for a run without regard to labels
            return admitted
        reserved: dict[str, Any] | None = super()._get_reserved_resources()
        return None if reserved is None else {node: reserved[node] for node in reserved if node in admitted}
