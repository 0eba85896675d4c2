"""A private Ray whose own start gives up on an overloaded machine."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray._private.runtime_env import uv_runtime_env_hook
from ray._private.worker import _maybe_modify_runtime_env

from distkg.cluster.session import private_ray
from distkg.cluster.session.address import ClusterError
from distkg.cluster.session.private_ray import STARTS, PrivateRay
from distkg.termination import ending_on_signals

GAVE_UP = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


def start(monkeypatch: pytest.MonkeyPatch, failures: int, text: str = GAVE_UP) -> int:
    """Number of attempts of a start that fails so often."""
    attempts: list[Any] = []

    def init(**options: Any) -> None:
        attempts.append(options)
        if len(attempts) <= failures:
            raise Exception(text)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    private_ray._start(PrivateRay(), {"num_cpus": 2})
    assert all(options["num_cpus"] == 2 and options["address"] == "local" for options in attempts)
    return len(attempts)


def test_a_start_that_gave_up_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(monkeypatch, 0) == 1
    assert start(monkeypatch, STARTS - 1) == STARTS


def test_a_machine_that_stays_overloaded_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=r"in 3 attempts of half a minute: the machine is overloaded"):
        start(monkeypatch, STARTS)


def test_other_errors_are_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="no such option"):
        start(monkeypatch, 1, "no such option")


def test_under_uv_run_workers_are_started_in_the_drivers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's hook would upload the current folder, and start every worker by another `uv run`."""
    environments: list[dict[str, Any]] = []
    command = ["uv", "run", "--with", "something", "distkg", "train"]
    monkeypatch.setattr(uv_runtime_env_hook, "_get_uv_run_cmdline", lambda: command)
    monkeypatch.setattr(ray, "init", lambda **options: environments.append(_maybe_modify_runtime_env(None, False)))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    assert "py_executable" in _maybe_modify_runtime_env(None, False)
    with ending_on_signals() as signals, private_ray.private_ray(signals, num_cpus=1):
        pass
    assert environments == [None]
