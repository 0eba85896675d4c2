"""Decisions of Ray Train's controller: the number of workers of an elastic run, and what a failure leads to.

The controller imports this module: it imports no torch.
"""

from __future__ import annotations

from typing import Any

from ray.train import TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from distkg.cluster.session.placement import NodeChoice, usable_nodes
from distkg.cluster.watch.failures import left_nodes


class ElasticPolicy(ElasticScalingPolicy):
    """Ray Train's elastic policy, which counts no place on nodes without the labels of the run, nor on nodes that are
    being drained: it would wait forever for workers that cannot be placed there."""

    def _get_reserved_resources(self) -> dict[str, dict[str, float]] | None:
        """Return the resources that the run may use, by node; None if they are not known now."""
        labels = self.scaling_config.label_selector
        nodes = NodeChoice(labels=labels) if isinstance(labels, dict) else NodeChoice()
        admitted = {node["NodeID"]: node["Resources"] for node in nodes.admitted(usable_nodes())}
        reserved: dict[str, Any] | None = super()._get_reserved_resources()
        if nodes.is_any and (reserved is None or reserved.keys() <= admitted.keys()):
            return reserved
        return admitted  # Ray reserves nodes without regard to labels, and such as are drained


class FailurePolicy(DefaultFailurePolicy):
    """Ray Train's failure policy, which does not count workers that end to start again on other nodes."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if isinstance(training_failed_error, WorkerGroupError) and left_nodes(training_failed_error.worker_failures):
            return FailureDecision.RETRY
        return super().make_decision(training_failed_error)
