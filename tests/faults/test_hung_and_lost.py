"""A worker that hangs, and a cluster that dies under its driver."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from distkg.cluster.launch import run_on_workers
from distkg.cluster.watch.progress_monitor import Record
from distkg.cluster.watch.run_folder import newest_step
from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from tests.faults.commands import command, lines_of, write_config

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "small"
    generate(str(path), entities=400, relations=6, triples=6000, seed=3)
    return path


def test_a_worker_that_is_stopped_is_replaced_and_the_run_goes_on(store: Path, tmp_path: Path) -> None:
    config, run = write_config(tmp_path, store, cluster={"hung_after": 10}), tmp_path / "run"
    with command(tmp_path, "train", config, "--run", run, "--workers", "2") as training:
        training.wait_until(lambda: lines_of(run / "metrics.jsonl") >= 2)
        workers = [child for child in training.children() if "RayTrainWorker" in " ".join(child.cmdline())]
        assert len(workers) == 2
        workers[1].suspend()
        training.wait_until(lambda: lines_of(run / "failures.jsonl") >= 1)
        lines = lines_of(run / "metrics.jsonl")
        training.wait_until(lambda: lines_of(run / "metrics.jsonl") > lines + 2)
        assert not workers[1].is_running()
        assert training.send(signal.SIGTERM) == 143, training.output
    failures = [json.loads(line) for line in (run / "failures.jsonl").read_text().splitlines()]
    hung = [failure for failure in failures if failure["error"].startswith("hung: it has shown no sign of life for")]
    assert len(hung) == 1
    assert hung[0]["restart"] is True
    assert "failed: hung: it has shown no sign of life for" in training.output


def test_a_slow_node_hangs_nobody(store: Path, tmp_path: Path) -> None:
    """A worker that runs for a tenth of a second in each half makes its peer slow, and is left alone."""
    config, run = write_config(tmp_path, store, cluster={"hung_after": 5}), tmp_path / "run"
    with command(tmp_path, "train", config, "--run", run, "--workers", "2") as training:
        training.wait_until(lambda: lines_of(run / "metrics.jsonl") >= 2)
        slow = next(child for child in training.children() if "RayTrainWorker" in " ".join(child.cmdline()))
        end, lines = time.monotonic() + 20, lines_of(run / "metrics.jsonl")
        while time.monotonic() < end or lines_of(run / "metrics.jsonl") < lines + 3:
            slow.suspend()
            time.sleep(0.4)
            slow.resume()
            time.sleep(0.1)
            assert training.process.poll() is None, training.output
        assert training.send(signal.SIGTERM) == 143, training.output
    assert not (run / "failures.jsonl").exists()


def test_workers_that_wait_for_each_other_are_replaced(store: Path, tmp_path: Path) -> None:
    def train(config: RunConfig, run: Path, ranks: Ranks, *, resume: bool, listener: Any, services: Any) -> Record:
        marker = run / f"locked-{ranks.rank}"
        if not marker.exists():
            marker.write_text("")
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        return train_on_rank(config, run, ranks, resume=resume, listener=listener, services=services)

    settings = {
        "data": {"store": str(store)},
        "model": {"name": "distmult", "dim": 16},
        "train": {"epochs": 1, "workers": 2},
        "cluster": {"hung_after": 10, "address": "local"},
    }
    result = run_on_workers(train, RunConfig.model_validate(settings), tmp_path / "run")
    assert result["train"]["epochs"] == 1
    failures = [json.loads(line)["error"] for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert any("a deadlock" in failure for failure in failures), failures


@pytest.mark.parametrize(
    ("process", "reason"),
    [("raylet", "Ray's process on this machine"), ("gcs_server", "its head has not answered for 40 s")],
)
def test_a_cluster_that_dies_ends_the_run_with_our_own_last_line(
    process: str, reason: str, store: Path, tmp_path: Path
) -> None:
    config, run = write_config(tmp_path, store, cluster={"address": "local"}), tmp_path / "run"
    with command(tmp_path, "train", config, "--run", run) as training:
        training.wait_until(lambda: newest_step(run) is not None)
        (victim,) = [child for child in training.children() if child.name() == process]
        before = training.output.count("\n")
        victim.kill()
        for child in training.children():  # nobody needs it to train until the loss is noticed
            if "RayTrainWorker" in " ".join(child.cmdline()):
                child.suspend()
        assert training.ended() == 1, training.output
        *others, last = training.output.strip().splitlines()
    assert last.startswith(f"error: the Ray cluster is lost: {reason}")
    assert last.endswith(f"Continue with the same command and --resume; the run is in {run}")
    others = [line for line in others[before:] if not re_metrics(line)]
    assert len(others) < 30, "\n".join(others)


def re_metrics(line: str) -> bool:
    return line.startswith("[") and " s] epoch " in line
