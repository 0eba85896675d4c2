"""Process of a search: one trial after another; Ray itself is not started here."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.search import trial as trials
from distkg.cluster.search.trial import TrialProcess, keeps_workers
from distkg.config import RunConfig
from distkg.search.search_folder import SearchFolder

CONFIG = RunConfig.model_validate({"train": {"workers": 2}})


class Trial:
    """Trial that reports when told, and ends when it is stopped, or only with its workers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, stops: bool = True) -> None:
        self.begun: list[tuple[int, KeptWorkers | None]] = []
        self.closed: list[KeptWorkers] = []
        self.ends, self._stops = threading.Event(), stops
        monkeypatch.setattr(trials, "run_trial", self.run)
        monkeypatch.setattr(trials.ray, "get_actor", self.watch_of)
        monkeypatch.setattr(KeptWorkers, "close", lambda kept: self.close(kept))
        monkeypatch.setattr(trials, "PRUNED_SECONDS", 0.2)

    def run(
        self, folder: SearchFolder, number: int, report: Any, concurrent: int, base: RunConfig, kept: Any, search: str
    ) -> None:
        assert search == str(folder.path)
        assert (concurrent, base) == (3, CONFIG)
        self.begun.append((number, kept))
        report({"valid_mrr": number / 8})
        if number == 7:
            raise OSError("the disk is full")
        if number > 1:
            assert self.ends.wait(60)
            self.ends.clear()

    def watch_of(self, name: str) -> Any:
        class Watch:
            class stop:
                remote = staticmethod(self.ends.set if self._stops else lambda: None)

        return Watch

    def close(self, kept: KeptWorkers) -> None:
        self.closed.append(kept)
        self.ends.set()


def started(tmp_path: Path, number: int, config: RunConfig = CONFIG) -> TrialProcess:
    process = TrialProcess.__new__(TrialProcess)
    process.setup({"number": number}, str(tmp_path), config.model_dump(), 3)
    return process


def test_trials_follow_each_other_on_the_same_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch)
    process = started(tmp_path, 1)
    assert process.step() == {"valid_mrr": 0.125}
    assert process.reset_config({"number": 2})
    assert process.step() == {"valid_mrr": 0.25}
    assert process.reset_config({"number": 3})  # the second one was pruned, and has stopped
    assert process.step() == {"valid_mrr": 0.375}
    (first, kept), (second, also_kept), (third, still_kept) = trial.begun
    assert (first, second, third) == (1, 2, 3)
    assert kept is also_kept is still_kept is not None
    assert trial.closed == []
    process.cleanup()
    assert trial.closed == [kept]


def test_workers_of_a_pruned_trial_that_do_not_stop_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(monkeypatch, stops=False)
    process = started(tmp_path, 2)
    assert process.step() == {"valid_mrr": 0.25}
    assert process.reset_config({"number": 3})
    assert process.step() == {"valid_mrr": 0.375}
    (_, former), (_, new) = trial.begun
    assert trial.closed == [former]
    assert new is not former
    process.cleanup()


def test_an_error_of_the_search_folder_reaches_tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trial(monkeypatch)
    process = started(tmp_path, 7)
    process.step()
    with pytest.raises(OSError, match="the disk is full"):
        process.step()


def test_an_elastic_search_leaves_its_workers_to_ray_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch)
    elastic = CONFIG.model_copy(update={"cluster": CONFIG.cluster.model_copy(update={"min_workers": 1})})
    assert keeps_workers(CONFIG)
    assert not keeps_workers(elastic)
    monkeypatch.setattr(trials, "run_trial", lambda *given: trial.begun.append((given[1], given[-2])))
    process = started(tmp_path, 1, elastic)
    process._thread.join(60)
    assert trial.begun == [(1, None)]
    process.cleanup()


def test_workers_without_a_trial_are_given_back_and_replaced_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial of another process may wait for their room, and the next one here for that trial."""
    monkeypatch.setattr(trials, "IDLE_SECONDS", 0.05)
    trial = Trial(monkeypatch)
    process = started(tmp_path, 1)
    process.step()
    process._thread.join(60)
    process._idle.join(60)
    ((_, former),) = trial.begun
    assert trial.closed == [former]
    trial.ends.clear()
    process.reset_config({"number": 2})
    process.step()
    assert trial.begun[1][1] is not former
    assert trial.closed == [former]  # a trial that trains keeps its workers
    process.cleanup()


def test_a_process_that_takes_over_a_trial_releases_the_workers_of_the_lost_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    monkeypatch.setattr(trials, "release_workers", released.append)
    first, second = KeptWorkers(CONFIG), KeptWorkers(CONFIG)
    for kept in (first, first, second, second):  # a process may train a trial on after an error of its workers
        trials._take_over(tmp_path, kept)
    assert released == [first.name]
    assert (tmp_path / "workers.txt").read_text() == second.name + "\n"
