"""Ray Train's trainer, with as few processes as a run needs.

Each actor of Ray Train imports it first, which takes three seconds of a core, while the workers of the run start on the
same cores.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.log import PlainRayHandler
from ray.runtime_context import RuntimeContext
from ray.train.constants import RAY_TRAIN_ENABLE_STATE_TRACKING
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from distkg.cluster.ray_train.policies import ElasticPolicy, FailurePolicy
from distkg.cluster.ray_train.unused_actor import UnusedActor
from distkg.cluster.session.private_ray import environment_with, on_private_ray, replaced, used_until

END_SECONDS = 5.0
DASHBOARD_SECONDS = 2.0


class Trainer(DataParallelTrainer):
    """Ray Train's trainer without the actors for Ray datasets, which no run has.

    An elastic run counts places on the nodes that its workers may use. On a private Ray, which is one machine and ends
    with the run, the controller is no actor but runs in this process, and there are no actors that tell an autoscaler
    what is needed, and that clean up behind a dead controller. Nor is there a cleaner where there is no dashboard.
    """

    def _create_default_callbacks(self) -> list[Any]:
        if on_private_ray() or not _dashboard_listens():
            return _without(super()._create_default_callbacks(), DatasetsCallback, PlacementGroupCleanerCallback)
        # The dashboard's page of Ray Train shows runs whose state is tracked.
        tracking = os.environ.get(RAY_TRAIN_ENABLE_STATE_TRACKING, "1")
        with environment_with({RAY_TRAIN_ENABLE_STATE_TRACKING: tracking}):
            return _without(super()._create_default_callbacks(), DatasetsCallback)

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        parts["failure_policy"] = FailurePolicy(self.run_config.failure_config)
        if not on_private_ray():
            if isinstance(parts["scaling_policy"], ElasticScalingPolicy):
                parts["scaling_policy"] = ElasticPolicy(self.scaling_config)
            return super()._initialize_and_run_controller(**parts)
        policy = parts["scaling_policy"]
        if isinstance(policy, FixedScalingPolicy):
            parts["scaling_policy"] = OneMachinePolicy(policy.scaling_config)
        with (
            replaced(worker_group, "SynchronizationActor", ray.remote(num_cpus=0)(UnusedActor)),
            replaced(RuntimeContext, "current_actor", None),  # workers get the controller for reports
            _logging_restored(),
        ):
            controller = Controller(**parts)
            _log_to_files_only()
            with used_until(controller.end):
                asyncio.run(controller.run())
            return controller.get_result()


def _dashboard_listens() -> bool:
    """Return whether the cluster has a dashboard.

    Ray Train's tracker and cleaner ask it whether a controller lives, and print an error every few seconds without it.
    """
    # None where the head has published no address; not the override that people see in messages.
    host, _, port = (ray._private.worker._global_node.webui_url or "").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), DASHBOARD_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _without(callbacks: list[Any], *kinds: type) -> list[Any]:
    return [callback for callback in callbacks if not isinstance(callback, kinds)]


class Controller(TrainController):
    """Ray Train's controller in the driver's process."""

    def __init__(self, **parts: Any) -> None:
        self._is_over, self._stopped = threading.Event(), False
        super().__init__(**parts)

    async def run(self) -> None:
        """Control the workers until they have finished, or until :meth:`end`."""
        try:
            while not self._stopped and not self.get_state().is_terminal():
                await self._run_control_loop_iteration()
            if not self._stopped:
                await super().run()  # what follows the last iteration
        finally:
            self._is_over.set()

    def end(self) -> None:
        """End the control from another thread, and leave the workers alone; wait for it at most a few seconds."""
        self._stopped = True
        self._is_over.wait(END_SECONDS)


class OneMachinePolicy(FixedScalingPolicy):
    """Fixed number of workers on a cluster that no autoscaler enlarges."""

    def after_controller_start(self, train_run_context: object) -> None:
        """Start nothing; the base class would start a client of the autoscaler."""

    def _maybe_send_resource_request(self) -> None:
        """Send nothing."""

    _cancel_resource_request = _maybe_send_resource_request


@contextmanager
def _logging_restored() -> Iterator[None]:
    """Restore the settings of Ray Train's logger, which a controller changes for its process."""
    logger = logging.getLogger("ray.train")
    before = logger.level, logger.propagate, list(logger.handlers)
    try:
        yield
    finally:
        logger.level, logger.propagate, logger.handlers[:] = before


def _log_to_files_only() -> None:
    """Keep the controller's messages in Ray's log files: the driver reports failures itself."""
    logger = logging.getLogger("ray.train")
    logger.handlers[:] = [handler for handler in logger.handlers if not isinstance(handler, PlainRayHandler)]
