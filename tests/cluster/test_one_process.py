"""One worker in the process of the launch, without Ray."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from distkg.cluster.launch import launch_training, run_on_workers
from distkg.cluster.one_process import trains_alone
from distkg.cluster.session.address import ClusterError
from distkg.cluster.watch.run_folder import newest_step
from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from tests.faults.commands import command, lines_of, write_config


@pytest.fixture(autouse=True)
def outside_of_any_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> str:
    generate(str(tmp_path / "store"), entities=60, relations=4, triples=600, seed=1)
    return str(tmp_path / "store")


def config(store: str, **sections: Any) -> RunConfig:
    tree = {
        "data": {"store": store},
        "model": {"name": "complex", "dim": 8},
        "objective": {"name": "logistic"},
        "train": {"epochs": 3, "batch_size": 100},
        "evaluate": {"every": 1},
    }
    return RunConfig.model_validate(tree | sections)


def learned(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what the clock and the process decide."""
    timed = ("time", "seconds", "triples_per_second", "peak_rss_mb")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


POOL = {"source": "near_miss", "pool": {"actors": 1}}


@pytest.mark.parametrize(
    ("sections", "alone"),
    [
        ({}, True),
        ({"cluster": {"cpus_per_worker": 2, "gpus_per_worker": 1}}, True),
        ({"train": {"workers": 2}}, False),
        ({"objective": {"name": "logistic"}, "negatives": POOL}, False),
        ({"cluster": {"address": "local"}}, False),
        ({"cluster": {"address": "head:6379"}}, False),
        ({"cluster": {"min_workers": 1}}, False),
        ({"cluster": {"max_failures": 9}}, False),
        ({"cluster": {"hung_after": 5}}, False),
        ({"cluster": {"metrics_port": 9000}}, False),
        ({"cluster": {"label_selector": {"pool": "work"}}}, False),
        ({"cluster": {"accelerator_type": "H100"}}, False),
    ],
)
def test_a_run_that_needs_nothing_of_ray_does_without(sections: dict[str, Any], alone: bool) -> None:
    assert trains_alone(RunConfig.model_validate(sections)) is alone


def test_inside_a_job_or_a_session_a_run_belongs_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not trains_alone(RunConfig())
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert trains_alone(RunConfig())
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    assert not trains_alone(RunConfig())


def test_it_learns_what_the_training_function_learns(store: str, tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    result = launch_training(config(store), tmp_path / "launched", listener=heard.append)
    expected = train_on_rank(config(store), tmp_path / "called", Ranks.single())
    assert result["metrics"] == expected["metrics"]
    assert learned(tmp_path / "launched") == learned(tmp_path / "called")
    assert [line["epoch"] for line in heard] == [1.0, 2.0, 3.0]
    assert not (tmp_path / "launched" / "lease.json").exists()
    assert not (tmp_path / "launched" / "failures.jsonl").exists()


def test_ray_is_not_imported(store: str, tmp_path: Path) -> None:
    script = f"""
import sys
from distkg.cluster.launch import launch_training
from distkg.config import load_config
launch_training(load_config({str(tmp_path / "config.yaml")!r}), {str(tmp_path / "run")!r}, listener=lambda line: None)
print("ray" in sys.modules, "dgl" in sys.modules)
"""
    (tmp_path / "config.yaml").write_text(config(store).to_yaml())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_it_computes_with_the_threads_of_a_worker(store: str, tmp_path: Path) -> None:
    def look(config: RunConfig, run: Path, ranks: Ranks, **_: Any) -> dict[str, Any]:
        return {"threads": torch.get_num_threads(), "ranks": ranks.size}

    before = torch.get_num_threads()
    wide = config(store, cluster={"cpus_per_worker": 3.5})
    assert run_on_workers(look, config(store), tmp_path / "one") == {"threads": 1, "ranks": 1}
    assert run_on_workers(look, wide, tmp_path / "three") == {"threads": 3, "ranks": 1}
    assert torch.get_num_threads() == before


def test_an_error_is_raised_as_it_is_and_noted(store: str, tmp_path: Path) -> None:
    def fail(config: RunConfig, run: Path, ranks: Ranks, **_: Any) -> dict[str, Any]:
        raise LookupError("no such row\nmore")

    with pytest.raises(LookupError, match="no such row"):
        run_on_workers(fail, config(store), tmp_path / "run")
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert (line["rank"], line["error"], line["restart"]) == (0, "LookupError: no such row", False)
    assert not (tmp_path / "run" / "lease.json").exists()


def test_a_listener_that_raises_is_heard_at_the_end(store: str, tmp_path: Path) -> None:
    def listener(line: dict[str, Any]) -> None:
        raise KeyError("listener")

    with pytest.raises(KeyError, match="listener"):
        launch_training(config(store), tmp_path / "run", listener=listener)
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(store: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"cluster\.gpus_per_worker=1: torch finds no GPU on this machine"):
        launch_training(config(store, cluster={"gpus_per_worker": 1}), tmp_path / "run")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_leaves_a_checkpoint_and_a_line(number: signal.Signals, code: int, tmp_path: Path) -> None:
    generate(str(tmp_path / "store"), entities=400, relations=6, triples=6000, seed=3)
    config, run = write_config(tmp_path, tmp_path / "store"), tmp_path / "run"
    with command(tmp_path, "train", config, "--run", run) as training:
        training.wait_until(lambda: lines_of(run / "metrics.jsonl") >= 2)
        children = psutil.Process(training.process.pid).children(recursive=True)
        assert training.send(number) == code, training.output
        last = training.output.strip().splitlines()[-1]
    assert children == []
    assert last == (
        f"stopped by {number.name}, with a checkpoint at step {newest_step(run):,}. Continue with the same command and "
        f"--resume; the run is in {run}"
    )
    assert "Traceback" not in training.output
    with command(tmp_path, "train", config, "--run", run, "--resume", "--set", "train.time_limit_seconds=0.5") as again:
        assert again.ended() == 0, again.output
    assert (run / "result.json").exists()


def test_a_killed_run_is_taken_over_from_its_newest_checkpoint(tmp_path: Path) -> None:
    generate(str(tmp_path / "store"), entities=400, relations=6, triples=6000, seed=3)
    config, run = write_config(tmp_path, tmp_path / "store"), tmp_path / "run"
    with command(tmp_path, "train", config, "--run", run) as training:
        training.wait_until(lambda: (newest_step(run) or 0) > 0)
        assert training.send(signal.SIGKILL) == -signal.SIGKILL
    steps = newest_step(run) or 0
    with command(tmp_path, "train", config, "--run", run, "--resume") as resumed:
        resumed.wait_until(lambda: (newest_step(run) or 0) > steps)
        assert "which has ended: this run takes it over" in resumed.output
        assert resumed.send(signal.SIGTERM) == 143, resumed.output
