"""Messages of Ray Train's controller: no traceback of a request that is repeated, no warning about Ray's own code."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

from distkg.cluster.watch.failures import FailureNotes

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
