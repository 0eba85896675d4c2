"""A search on Ray: killed in the middle, taken up again, its best configuration trained again; trials that fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from distkg.config import load_config
from distkg.data.generate import generate
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# A learning rate of 1e30 diverges at once.
SPACE = {
    "optimizer.learning_rate": {"choice": [0.1, 0.3, 1.0e30]},
    "model.dim": {"choice": [16, 24, 32]},
}
CONFIG = {
    "model": {"name": "distmult", "dim": 16},
    "optimizer": {"learning_rate": 0.1},
    "train": {"epochs": 8, "batch_size": 256, "workers": 1},
    "evaluate": {"every": 2},
}


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    generate(str(tmp_path / "store"), entities=300, relations=6, triples=3000, seed=1)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": {"store": str(tmp_path / "store")}}))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    config, space, run = (str(tmp_path / name) for name in ("config.yaml", "space.yaml", "search"))
    return [sys.executable, "-m", "distkg", "tune", config, "--space", space, "--run", run, "--trials", "3"]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())


def kill_when(driver: subprocess.Popen[str], there: Path) -> None:
    """SIGKILL to the driver and to everything that it started, once a file is there."""
    deadline = time.monotonic() + 300
    while not there.exists():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    for process in family:
        if process.is_running():
            process.send_signal(signal.SIGKILL)
    driver.communicate(timeout=60)
    psutil.wait_procs(family, timeout=30)


def test_a_search_that_was_killed_goes_on_and_its_best_configuration_trains_again(
    tmp_path: Path, command: list[str]
) -> None:
    search = tmp_path / "search"
    # The second trial has made its folder: the first has ended.
    kill_when(started(command), search / "trials" / "0002" / "config.yaml")
    before = (search / "search.jsonl").read_text()
    assert [json.loads(line)["number"] for line in before.splitlines()] == [1]
    cut_short = json.loads((search / "trials" / "0002" / "parameters.json").read_text())

    again = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    assert again.returncode == 2
    assert "--resume, or name another folder" in again.stderr

    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment(), timeout=500)
    assert done.returncode == 0, done.stderr
    text = (search / "search.jsonl").read_text()
    assert text.startswith(before)
    trials = {trial["number"]: trial for trial in map(json.loads, text.splitlines())}
    assert sorted(trials) == [1, 2, 3]
    assert trials[1]["parameters"] == {"optimizer.learning_rate": 0.1, "model.dim": 16}
    assert trials[2]["parameters"] == cut_short
    for trial in trials.values():
        assert (trial["state"] == "failed") == (trial["parameters"]["optimizer.learning_rate"] == 1e30)
    finished = [trial for trial in trials.values() if trial["state"] == "finished"]
    best = max(finished, key=lambda trial: trial["valid_mrr"])
    assert f"Best: trial {best['number']}, validation MRR {best['valid_mrr']:.4f}" in done.stdout
    assert (search / "report.html").exists()
    assert not (search / ".launch").exists()
    kept = [path.parent.name for path in search.glob("trials/*/checkpoints")]
    assert kept == [f"{best['number']:04d}"]

    config = load_config(str(search / "best.yaml"))
    assert (config.model.dim, config.train.workers) == (best["parameters"]["model.dim"], 1)
    train_on_rank(config, tmp_path / "again", Ranks.single())
    lines = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["valid"]["mrr"] for line in lines if "valid" in line) == pytest.approx(best["valid_mrr"], abs=1e-4)


def test_a_search_over_a_foundation_model_is_led_by_all_its_graphs(tmp_path: Path, command: list[str]) -> None:
    generate(str(tmp_path / "other"), entities=80, relations=3, triples=500, seed=2)
    config = {
        "data": {"graphs": [str(tmp_path / "store"), str(tmp_path / "other")]},
        "model": {"name": "ultra", "options": {"width": 8, "layers": 2, "hidden": 8}},
        "objective": {"name": "self_adversarial", "margin": 0.0},
        "negatives": {"count": 8},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "train": {"workers": 1, "epochs": 2, "batch_size": 8, "steps_per_epoch": 5},
        "evaluate": {"every": 1, "max_valid_triples": 10},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    space = {"model.options.width": {"choice": [8, 16]}, "negatives.count": {"int_uniform": [4, 16]}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    done = subprocess.run(
        [*command[:-1], "2"], capture_output=True, text=True, env=environment(), timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in (tmp_path / "search" / "search.jsonl").read_text().splitlines()]
    assert trials[0]["parameters"] == {"model.options.width": 8, "negatives.count": 8}
    assert len(trials) == 2
    assert "finished" in {trial["state"] for trial in trials}
    assert "store, other" in (tmp_path / "search" / "report.html").read_text()
    best = load_config(str(tmp_path / "search" / "best.yaml"))
    assert len(best.data.graphs) == 2


def test_trials_that_diverge_are_recorded_and_the_search_goes_on(tmp_path: Path, command: list[str]) -> None:
    space = {"optimizer.learning_rate": {"choice": [1.0e30, 2.0e30]}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    both = [*command[:-1], "2", "--max-concurrent", "2"]
    done = subprocess.run(both, capture_output=True, text=True, env=environment(), timeout=400, check=False)
    assert done.returncode == 1
    assert "no trial has finished, so there is no best configuration" in done.stderr
    trials = [json.loads(line) for line in (tmp_path / "search" / "search.jsonl").read_text().splitlines()]
    assert [trial["state"] for trial in trials] == ["failed", "failed"]
    begins = "DivergedError: training has diverged in epoch "
    assert [trial["error"][: len(begins)] for trial in trials] == [begins, begins]
    assert not (tmp_path / "search" / "best.yaml").exists()
