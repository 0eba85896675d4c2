"""Messages of Ray Train's controller and workers, which a cluster sends to the driver's output.

Does not import torch, because the controller imports this module before it starts the workers.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable

from ray.util.annotations import RayDeprecationWarning

PEER_LOST = re.compile(r"Connection (?:reset|closed) by peer|worker \d+ is gone")
"""Errors of a worker whose peer is gone, in the words of gloo and of shared memory (`sharding.pipe_signals`)."""

INTERNAL = "ray.train.v2._internal"
REQUESTS = f"{INTERNAL}.execution.scaling_policy.autoscaling_coordinator_client"
CONTROLLER = f"{INTERNAL}.execution.controller.controller"
ERRORS = f"{INTERNAL}.util"


def shorten_controller_messages() -> None:
    """Leave out warnings about Ray's own code, and tracebacks of what the controller tries again.

    It repeats requests to the autoscaler that were not answered within 5 s, as on a busy cluster, and starts of workers
    on nodes that turn out to be lost.
    """
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
    _filter(REQUESTS, _without_traceback)
    _filter(CONTROLLER, _without_traceback_of_a_start)


def shorten_worker_messages() -> None:
    """Leave out tracebacks of workers whose peer is lost, which failures.jsonl records, and reports and notices, which
    the driver shows."""
    from ray.train.v2._internal.execution import context  # its logger has the name of its file

    _filter(ERRORS, lambda record: PEER_LOST.search(record.getMessage()) is None)
    _filter(context.logger.name, lambda record: record.levelno >= logging.WARNING)
    _filter("distkg.training.run_dir", lambda record: False)


def _filter(logger: str, keep: Callable[[logging.LogRecord], bool]) -> None:
    logging.getLogger(logger).filters[:] = [keep]


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = record.exc_text = None
    return True


def _without_traceback_of_a_start(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return _without_traceback(record) if type(error).__name__ == "WorkerGroupStartupTimeoutError" else True
