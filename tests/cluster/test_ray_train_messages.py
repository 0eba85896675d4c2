"""Messages of Ray Train's controller: no traceback of a request that is repeated, no warning about Ray's own code."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train.v2._internal import util
from ray.train.v2._internal.execution import context

from distkg.cluster.ray_train.backend import NodeAddressBackend, process_group
from distkg.cluster.watch.failures import FailureNotes, in_short
from distkg.cluster.watch.ray_train_messages import shorten_worker_messages
from distkg.training.run_dir import RunFolder

ROOT = Path(__file__).resolve().parents[2]
CONTROLLER = """
import pickle, sys, warnings
notes = pickle.loads(bytes.fromhex(sys.argv[1]))
from ray.data import ExecutionOptions
from ray.data._internal.execution.interfaces import ExecutionResources
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client as client
ExecutionOptions(exclude_resources=ExecutionResources.zero())

class NoCoordinator:
    def __getattr__(self, name):
        raise TimeoutError("no answer")

requests = client.TrainAutoscalingCoordinatorClient("a-run")
requests.__dict__["_autoscaling_coordinator"] = NoCoordinator()
requests.send_resource_request(ScalingConfig(num_workers=2), 2)
print(notes._restarts_left)
"""


def test_a_process_that_receives_the_notes_of_a_run_is_brief(tmp_path: Path) -> None:
    """The real code of Ray warns and logs in it, as the controller does on a busy cluster."""
    notes = pickle.dumps(FailureNotes(tmp_path, 3)).hex()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "default", "-c", CONTROLLER, notes]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3\n"
    assert done.stderr.count("Failed to send resource request for a-run") == 1
    assert "Traceback" not in done.stderr
    assert "RayDeprecationWarning" not in done.stderr


GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [192.0.2.2]:742: Connection reset by peer."
)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What Ray Train's loggers of a worker say, once their messages are shortened."""
    for logger in (util.logger, context.logger, logging.getLogger("distkg.training.run_dir")):
        monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logging.getLogger("ray"), "propagate", True)
    caplog.set_level(logging.INFO)
    shorten_worker_messages()
    return caplog


PIPE = "worker 0 is gone: it closed its pipe to this worker"


@pytest.mark.parametrize(
    ("error", "lines"), [(RuntimeError(GLOO), 0), (RuntimeError(PIPE), 0), (RuntimeError("a defect"), 1)]
)
def test_only_a_lost_peer_has_no_traceback(logged: pytest.LogCaptureFixture, error: Exception, lines: int) -> None:
    try:
        raise error
    except RuntimeError as raised:
        util.construct_user_exception_with_traceback(raised)
    assert logged.text.count("Error in training function") == lines


def test_reports_and_notices_are_shown_by_the_driver_alone(logged: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    context.logger.info("Reporting training result 1")
    context.logger.warning("a warning")
    RunFolder(tmp_path).notice("a notice")
    assert [record.getMessage() for record in logged.records] == ["a warning"]
    assert RunFolder(tmp_path).read_notices() == ["a notice"]


def test_a_lost_peer_is_said_in_words() -> None:
    assert in_short(RuntimeError(GLOO)) == "it lost the connection to another worker (Connection reset by peer)"
    assert in_short(RuntimeError(PIPE)) == "it lost the connection to another worker (worker 0 is gone)"
    assert in_short(RuntimeError("a defect")) == "RuntimeError: a defect"


def test_the_process_group_of_a_lost_worker_is_left_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group:
        def execute_async(self, function: Any) -> list[Any]:
            return []

    def lost(objects: Any, timeout: float) -> None:
        raise ray.exceptions.ActorUnavailableError("it is gone", b"0" * 16)

    monkeypatch.setattr(ray, "get", lost)
    NodeAddressBackend().on_shutdown(Group(), process_group(gpus_per_worker=0))
