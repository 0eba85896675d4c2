"""Failures of workers, as a run records them.

Does not import torch, because Ray Train's controller imports this module before it starts the workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ray
import ray.train

from distkg.cluster.watch import run_folder
from distkg.cluster.watch.draining_nodes import NodesLeavingError
from distkg.cluster.watch.ray_train_messages import PEER_LOST, shorten_controller_messages

# Errors that a restart would repeat. A lost peer raises RuntimeError, a full disk OSError.
MISTAKES = (ValueError, TypeError, LookupError, AttributeError, ImportError, AssertionError)


class FailureNotes(ray.train.UserCallback):
    """Callback that writes lost workers to failures.jsonl, and ends the run on an error that a restart would repeat.

    Workers that leave nodes after a checkpoint have not failed, and nothing is written of them.
    """

    def __init__(self, run: Path, max_failures: int) -> None:
        self._run = run
        self._restarts_left = max_failures

    def __setstate__(self, state: dict[str, object]) -> None:
        """Arrive in the process of Ray Train's controller, before it starts."""
        self.__dict__.update(state)
        shorten_controller_messages()

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        causes = {rank: cause_of(error) for rank, error in worker_exceptions.items()}
        mistake = next((cause for cause in causes.values() if isinstance(cause, MISTAKES)), None)
        if mistake is None and left_nodes(worker_exceptions):
            return
        restart = mistake is None and self._restarts_left > 0
        for rank, cause in sorted(causes.items()):
            error = run_folder.take_hung(self._run, rank) or in_short(cause)
            run_folder.append_failure(self._run, rank, error, restart=restart)
        self._restarts_left -= 1
        if mistake is not None:
            # Raising here makes Ray Train's controller end the run instead of restarting it.
            raise mistake


def left_nodes(worker_exceptions: Mapping[int, Exception]) -> bool:
    """Return whether workers have ended to start again on other nodes; their peers may have lost the connection."""
    return any(isinstance(cause_of(error), NodesLeavingError) for error in worker_exceptions.values())


def cause_of(error: BaseException) -> BaseException:
    """Return the error of a worker without the wrapping of Ray Train and of Ray's tasks."""
    for wrapping in ("_base_exc", "health_check_failure"):
        error = getattr(error, wrapping, error)
    if isinstance(error, ray.exceptions.RayTaskError) and error.cause is not None:
        return error.cause
    return error


def in_short(error: BaseException) -> str:
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process died (killed, out of memory, or its node was lost)"
    if isinstance(error, RuntimeError) and (lost := PEER_LOST.search(str(error))):
        return f"it lost the connection to another worker ({lost[0]})"
    return run_folder.in_one_line(error)
