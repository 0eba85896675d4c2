"""A search on Ray: killed in the middle, taken up again, its best configuration trained again; trials that fail; rungs
and two objectives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from distkg.cluster.tune import launch_search
from distkg.config import RunConfig, load_config
from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.search.method import Options
from distkg.search.search_folder import SearchFolder
from distkg.search.space import parse_space
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


def test_a_search_by_rungs_that_was_killed_goes_on_in_another_folder_and_on_another_cluster(
    tmp_path: Path, command: list[str]
) -> None:
    command = [*command[:-1], "3", "--rungs", "2", "--set", "train.epochs=12"]
    search, moved = tmp_path / "search", tmp_path / "moved" / "elsewhere"
    # Two trials of the first rung have ended, the third trains.
    kill_when(started(command), search / "trials" / "0003" / "config.yaml")
    before = (search / "search.jsonl").read_text()
    assert [json.loads(line)["rung"] for line in before.splitlines()] == [1, 1]
    core = next((search / "cores").iterdir())
    made = (core / "manifest.json").stat().st_mtime_ns
    moved.parent.mkdir()
    shutil.move(search, moved)

    again = [str(moved) if part == str(search) else part for part in command] + ["--resume"]
    wrong = subprocess.run(
        [part if part != "2" else "1" for part in again], capture_output=True, text=True, env=environment(), timeout=120
    )
    assert wrong.returncode == 2
    assert "was started with --trials 3 --rungs 2 --budget 2" in wrong.stderr
    done = subprocess.run(again, capture_output=True, text=True, env=environment(), timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    text = (moved / "search.jsonl").read_text()
    assert text.startswith(before)
    trials = {trial["number"]: trial for trial in map(json.loads, text.splitlines())}
    first = [trial for trial in trials.values() if trial["rung"] == 1]
    second = [trial for trial in trials.values() if trial["rung"] == 2]
    assert sorted(trial["number"] for trial in first) == [1, 2, 3]
    # Promoted are the two best finished ones of the first rung, or as many as have finished.
    ranked = sorted((t for t in first if t["state"] == "finished"), key=lambda t: (-t["valid_mrr"], t["number"]))
    assert [trial["promoted_from"] for trial in second] == [trial["number"] for trial in ranked[:2]]
    for trial in second:
        assert trial["parameters"] == trials[trial["promoted_from"]]["parameters"]
    # Trials have trained on the stores of cores, which were made once, in the folder.
    made_again = (moved / "cores" / core.name / "manifest.json").stat().st_mtime_ns
    assert made_again == made
    rungs = SearchFolder(moved).read_method().rungs
    assert Store.open(str(moved / "cores" / core.name)).manifest.triples["train"] in {rung.triples for rung in rungs}
    for trial in (*first, *second):
        run = load_config(str(moved / "trials" / f"{trial['number']:04d}" / "config.yaml"))
        assert run.train.epochs == rungs[trial["rung"] - 1].epochs
        assert Path(run.data.store).parent.name == "cores"
    resumed = load_config(str(moved / "trials" / "0003" / "config.yaml"))
    assert Path(resumed.data.store).parent == moved / "cores"
    best = load_config(str(moved / "best.yaml"))
    assert (best.data.store, best.train.epochs) == (str(tmp_path / "store"), 12)
    assert f"in rung 2 {second[-1]['state']}" in done.stdout
    assert "Rungs" in (moved / "report.html").read_text()


def on_one_slot(tmp_path: Path) -> RunConfig:
    """Workers of four CPUs: of the six that the shared Ray counts, one has room."""
    generate(str(tmp_path / "store"), entities=300, relations=6, triples=3000, seed=1)
    tree = {**CONFIG, "data": {"store": str(tmp_path / "store")}, "cluster": {"cpus_per_worker": 4}}
    return RunConfig.model_validate(tree)


def test_more_trials_than_slots_wait_in_a_queue_and_every_rung_ends(tmp_path: Path, shared_ray: None) -> None:
    """Three processes of trials ask for workers where one has room; a rung waits for the trials of all three."""
    space = parse_space({"optimizer.learning_rate": {"log_uniform": [0.05, 0.3]}}, "s")
    trials = launch_search(
        on_one_slot(tmp_path), space, tmp_path / "search", trials=4, max_concurrent=3, options=Options(rungs=2)
    )
    assert [(trial.rung, trial.state) for trial in trials] == [(1, "finished")] * 4 + [(2, "finished")] * 2
    assert sorted(trial.number for trial in trials) == [1, 2, 3, 4, 5, 6]


def test_a_search_with_two_objectives_writes_its_front(tmp_path: Path, shared_ray: None) -> None:
    space = parse_space({"model.dim": {"choice": [8, 16, 512]}}, "s")
    trials = launch_search(
        on_one_slot(tmp_path), space, tmp_path / "search", trials=4, options=Options(against="memory")
    )
    assert [trial.state for trial in trials] == ["finished"] * 4  # none is stopped early
    assert all(trial.peak_mb and trial.peak_mb > 50 for trial in trials)
    names = sorted(path.stem for path in (tmp_path / "search" / "front").iterdir())
    points = {trial.name: (trial.value, trial.peak_mb or 0.0) for trial in trials}
    free = [
        name
        for name, (mrr, peak) in points.items()
        if not any(m >= mrr and p <= peak and (m, p) != (mrr, peak) for m, p in points.values())
    ]
    assert names == sorted(free)


def test_a_trial_whose_process_is_lost_goes_on_from_its_checkpoint(tmp_path: Path, shared_ray: None) -> None:
    """As with the node of the process: its workers, which belong to it, end too."""
    settings = on_one_slot(tmp_path).model_dump()
    settings["train"]["epochs"], settings["evaluate"]["every"] = 400, 100
    lost: list[int] = []

    def lose() -> None:
        while not any((tmp_path / "search" / "trials" / "0001" / "checkpoints").glob("*/manifest.json")):
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "ResourceTrainable" in " ".join(process.cmdline()):  # Tune's name of every trial process
                    process.kill()
                    lost.append(process.pid)

    threading.Thread(target=lose, daemon=True).start()
    space = parse_space({"optimizer.learning_rate": {"choice": [0.1]}}, "s")
    (trial,) = launch_search(RunConfig.model_validate(settings), space, tmp_path / "search", trials=1)
    assert len(lost) == 1
    assert (trial.state, trial.epochs) == ("finished", 400)
    metrics = tmp_path / "search" / "trials" / "0001" / "metrics.jsonl"
    epochs = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    assert epochs == sorted(epochs)
    assert len(set(epochs)) == len(epochs)
