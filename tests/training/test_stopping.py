"""A run that is asked to stop anywhere and resumed ends as one that was left alone, bit for bit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distkg.config import RunConfig, parse_config
from distkg.evaluation.ranking import rank_answers
from distkg.sharding.checkpoint.manifest import read_manifest
from distkg.sharding.ranks import Ranks
from distkg.training.run import Training, train_on_rank
from distkg.training.run_dir import RunFolder
from distkg.training.services import Services
from distkg.training.stopping import StopRequest
from tests.distributed import run_ranks
from tests.training.test_run import config, entity_rows

ROUNDS = 60


class StopAfter(StopRequest):
    """Asks for a stop when it has been looked at so many times, wherever the run is then."""

    def __init__(self, looks: int) -> None:
        self._looks, self._seen = looks, 0
        super().__init__()

    @property
    def requested(self) -> bool:
        self._seen += 1
        return self._seen > self._looks

    @requested.setter
    def requested(self, value: bool) -> None: ...


def stopped_until_the_end(ranks: Ranks, run: RunConfig, folder: str, looks: int) -> tuple[dict[str, Any], list[int]]:
    """The result, and the steps at which the run was stopped on its way."""
    stops: list[int] = []
    for round_ in range(ROUNDS):
        # Ranks hear at different times: only the first decides, but each leaves out work from then on.
        services = Services(stop=StopAfter(looks + round_ + ranks.rank))
        result = train_on_rank(run, Path(folder), ranks, resume=round_ > 0, services=services)
        if "stopped" not in result:
            return result, stops
        stops.append(result["stopped"])
    raise AssertionError(f"the run does not come to an end; it stopped at {stops}")


def undisturbed(ranks: Ranks, run: RunConfig, folder: str) -> dict[str, Any]:
    return train_on_rank(run, Path(folder), ranks)


@pytest.mark.parametrize(("size", "looks"), [(1, 1), (1, 4), (2, 3)])
def test_stopped_again_and_again_it_ends_as_an_undisturbed_run(
    small_store: str, tmp_path: Path, size: int, looks: int
) -> None:
    run = config(small_store, train={"epochs": 2, "patience": 2}, evaluate={"every": 1}, checkpoint={"every": 2})
    calm, broken = str(tmp_path / "calm"), str(tmp_path / "broken")
    if size == 1:
        expected = undisturbed(Ranks.single(), run, calm)
        result, stops = stopped_until_the_end(Ranks.single(), run, broken, looks)
    else:
        expected = run_ranks(size, undisturbed, run, calm)[0]
        result, stops = run_ranks(size, stopped_until_the_end, run, broken, looks)[0]
    assert len(stops) >= 2
    assert stops == sorted(stops)
    assert result["metrics"] == expected["metrics"]
    assert result["train"]["steps"] == expected["train"]["steps"]
    np.testing.assert_array_equal(entity_rows(tmp_path / "broken"), entity_rows(tmp_path / "calm"))
    assert valid_lines(tmp_path / "broken") == valid_lines(tmp_path / "calm")


def valid_lines(run: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["valid"]["mrr"]) for line in lines if "valid" in line]


def test_a_stop_in_the_middle_of_a_validation_cuts_it_short_and_leaves_it_to_the_resumed_run(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(small_store, train={"epochs": 2}, evaluate={"every": 1})
    stop, scored = StopRequest(), []

    def ranked(*given: Any, **more: Any) -> Any:
        stop.requested = True
        ranking = rank_answers(*given, **more)
        scored.append(int(ranking.greater.sum()))
        return ranking

    with monkeypatch.context() as patched:
        patched.setattr("distkg.embedding.learner.rank_answers", ranked)
        result = train_on_rank(run, tmp_path / "run", Ranks.single(), services=Services(stop=stop))
    assert scored == [0], "scores were computed although the run was asked to stop"
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    progress = read_manifest(checkpoint).progress
    steps = result["stopped"]
    assert (progress["epoch"], progress["step"], progress["steps"]) == (0, steps, steps)
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = train_on_rank(run, tmp_path / "run", Ranks.single(), resume=True)
    expected = train_on_rank(run, tmp_path / "calm", Ranks.single())
    assert resumed["metrics"] == expected["metrics"]
    assert valid_lines(tmp_path / "run") == valid_lines(tmp_path / "calm")


def test_a_stop_in_the_final_evaluation_leaves_no_result(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(small_store, train={"epochs": 1}, evaluate={"every": 1})
    stop = StopRequest()

    def asked_to_stop(self: Any) -> dict[str, Any]:
        assert not stop.unsaved, "all progress is on the disk before the final evaluation"
        stop.requested = True
        return {}

    with monkeypatch.context() as patched:
        patched.setattr("distkg.embedding.learner.EmbeddingLearner.evaluate", asked_to_stop)
        result = train_on_rank(run, tmp_path / "run", Ranks.single(), services=Services(stop=stop))
    assert result["stopped"] > 0
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = train_on_rank(run, tmp_path / "run", Ranks.single(), resume=True)
    assert resumed["train"]["steps"] == result["stopped"]
    assert resumed["metrics"]["test"]["mrr"] > 0


def test_nothing_is_written_where_nothing_has_changed(small_store: str, tmp_path: Path) -> None:
    run = config(small_store, train={"epochs": 2}, evaluate={"every": 1})
    train_on_rank(run, tmp_path / "run", Ranks.single(), services=Services(stop=StopAfter(3)))
    checkpoints = tmp_path / "run" / "checkpoints"
    before = {path: path.stat().st_mtime_ns for path in checkpoints.rglob("*")}
    train_on_rank(run, tmp_path / "run", Ranks.single(), resume=True, services=Services(stop=StopAfter(0)))
    assert {path: path.stat().st_mtime_ns for path in checkpoints.rglob("*")} == before


def test_a_stop_to_leave_nodes_says_which_step_is_saved(small_store: str, tmp_path: Path) -> None:
    run, stop = config(small_store, train={"epochs": 2}), StopAfter(3)
    stop.leaving = "node a (worker 0) is taken away in 9 s"
    result = train_on_rank(run, tmp_path / "run", Ranks.single(), services=Services(stop=stop))
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert read_manifest(newest).progress["steps"] == result["stopped"] > 0
    said = f"{stop.leaving}: saved a checkpoint at step {result['stopped']}, continuing on other nodes"
    assert RunFolder(tmp_path / "run").read_notices() == [said]


def test_a_foundation_model_stops_and_goes_on_alike(small_store: str, tmp_path: Path) -> None:
    run = parse_config(
        {
            "data": {"graphs": [small_store]},
            "model": {"name": "ultra", "options": {"width": 8, "layers": 2, "hidden": 8}},
            "objective": {"name": "self_adversarial", "margin": 0.0},
            "negatives": {"count": 4},
            "optimizer": {"name": "adam", "learning_rate": 0.005},
            "train": {"epochs": 2, "batch_size": 4, "steps_per_epoch": 6},
            "evaluate": {"every": 1, "max_valid_triples": 4, "max_final_triples": 4},
        },
        "test",
    )
    expected = undisturbed(Ranks.single(), run, str(tmp_path / "calm"))
    result, stops = stopped_until_the_end(Ranks.single(), run, str(tmp_path / "broken"), 1)
    assert len(stops) >= 2
    assert result["metrics"] == expected["metrics"]


def test_questions_come_more_often_where_steps_are_slow(small_store: str, tmp_path: Path) -> None:
    """Half a second between two questions, at most eight steps."""
    run = config(small_store)
    training = Training(run, RunFolder(tmp_path), Ranks.single(), None, Services())
    windows = []
    for seconds_per_step in (0.001, 0.1, 0.25, 3.0):
        training.loop.steps += 4
        training._asked_at = time.perf_counter() - 4 * seconds_per_step, training.loop.steps - 4
        windows.append(training._window())
    assert windows[:2] in ([8, 4], [8, 5])  # the clock goes on meanwhile
    assert windows[2:] == [1, 1]
