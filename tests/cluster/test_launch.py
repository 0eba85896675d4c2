"""The launcher's decisions; Ray itself is not started here."""

import json
from pathlib import Path

import pytest
import ray.exceptions
import ray.train

from distkg.cluster.launch import FailureNotes, check_scaling, describe_failure, scaling
from distkg.cluster.session import ClusterError
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


def test_more_least_workers_than_workers_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"min_workers=5 is more than train\.workers=4"):
        check_scaling(config(min_workers=5))
    check_scaling(config(min_workers=4))


def test_a_dead_worker_is_noted_and_the_run_goes_on(tmp_path: Path) -> None:
    notes = FailureNotes(tmp_path, max_failures=1)
    died = ray.exceptions.ActorDiedError()
    notes.after_exception(None, {1: died})
    notes.after_exception(None, {0: RuntimeError("Connection closed by peer\nmore"), 1: died})
    text = "its process died (killed, out of memory, or its node was lost)"
    assert failures(tmp_path) == [
        (1, text, True),
        (0, "RuntimeError: Connection closed by peer", False),
        (1, text, False),
    ]


def test_a_mistake_ends_the_run_at_once(tmp_path: Path) -> None:
    notes = FailureNotes(tmp_path, max_failures=3)
    mistake = ConfigError("model.dim must be even.")
    with pytest.raises(ConfigError) as caught:
        notes.after_exception(None, {0: RuntimeError("Connection closed by peer"), 1: mistake})
    assert caught.value is mistake
    assert failures(tmp_path) == [
        (0, "RuntimeError: Connection closed by peer", False),
        (1, "ConfigError: model.dim must be even", False),
    ]


def test_a_failure_in_words() -> None:
    record = {"time": 1.0, "rank": 3, "error": "OSError: disk full", "restart": False}
    assert describe_failure(record) == "worker 3 failed: OSError: disk full. The run ends here."
