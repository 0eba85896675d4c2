"""The decisions of a launch on Ray; Ray itself is not started here."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions

from distkg.cluster.ray_train import launch
from distkg.cluster.ray_train.launch import scaling
from distkg.cluster.session.address import ClusterError
from distkg.cluster.watch.failures import FailureNotes
from distkg.config import ConfigError, RunConfig


def config(**cluster: object) -> RunConfig:
    return RunConfig.model_validate({"train": {"workers": 4}, "cluster": cluster})


def failures(run: Path) -> list[tuple[int, str, bool]]:
    lines = (run / "failures.jsonl").read_text().splitlines()
    return [(line["rank"], line["error"], line["restart"]) for line in map(json.loads, lines)]


def test_a_fixed_run_asks_for_exactly_its_workers() -> None:
    asked = scaling(config(cpus_per_worker=2))
    assert asked.num_workers == 4
    assert asked.resources_per_worker == {"CPU": 2}
    assert not asked.use_gpu


def test_an_elastic_run_asks_for_a_range_and_train_slots() -> None:
    asked = scaling(config(min_workers=2))
    assert asked.num_workers == (2, 4)
    assert asked.resources_per_worker == {"CPU": 1, "train_slot": 1}


def test_gpus_are_asked_for() -> None:
    asked = scaling(config(gpus_per_worker=1))
    assert asked.use_gpu
    assert asked.resources_per_worker == {"CPU": 1, "GPU": 1}


def test_a_dead_worker_is_noted_and_the_run_goes_on(tmp_path: Path) -> None:
    notes = FailureNotes(tmp_path, max_failures=1)
    died = ray.exceptions.ActorDiedError()
    notes.after_exception(None, {1: died})
    notes.after_exception(None, {0: RuntimeError("Connection closed by peer\nmore"), 1: died})
    text = "its process died (killed, out of memory, or its node was lost)"
    assert failures(tmp_path) == [
        (1, text, True),
        (0, "it lost the connection to another worker (Connection closed by peer)", False),
        (1, text, False),
    ]


def test_a_mistake_ends_the_run_at_once(tmp_path: Path) -> None:
    notes = FailureNotes(tmp_path, max_failures=3)
    mistake = ConfigError("model.dim must be even.")
    with pytest.raises(ConfigError) as caught:
        notes.after_exception(None, {0: RuntimeError("Connection closed by peer"), 1: mistake})
    assert caught.value is mistake
    assert failures(tmp_path) == [
        (0, "it lost the connection to another worker (Connection closed by peer)", False),
        (1, "ConfigError: model.dim must be even", False),
    ]


def test_a_run_that_found_no_room_for_its_workers_again_says_how_to_resume(tmp_path: Path) -> None:
    def gave_up() -> None:
        raise ClusterError("gave up after 30 s (cluster.wait_seconds) of waiting for nodes")

    session: Any = SimpleNamespace(run=lambda fit: fit())
    with pytest.raises(ClusterError, match=r"^gave up after 30 s .* of waiting for nodes\. Continue .* --resume; "):
        launch._fit_or_stop(gave_up, tmp_path, None, session, None)  # type: ignore[arg-type]
