"""Runs in an object store: the same training, killed and resumed, as in a local folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import run_ranks
from safetensors.torch import load_file
from typer.testing import CliRunner

from distkg.cli import app
from distkg.config import RunConfig, parse_config
from distkg.data.storage.objects import objects_at
from distkg.data.storage.working_copy import folder_at
from distkg.inference.exported_rows import ExportedRows
from distkg.sharding.ranks import Ranks
from distkg.training.run import Training, train_on_rank
from tests.faulty_s3 import FaultyS3, listed

Faulty = tuple[FaultyS3, Callable[[str], str]]
FAULTS = ("unavailable", "throttled", "cut", "lost", "half")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTKG_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def every_fifth(method: str, path: str, number: int) -> str | None:
    """A fault of each kind in turn; and every listing lags."""
    if number % 5 == 3:
        return FAULTS[number // 5 % len(FAULTS)]
    return "stale" if listed(path) else None


def config_of(store: str, epochs: int, model: str = "complex") -> RunConfig:
    embedding = {"model": {"name": model, "dim": 4}, "objective": {"name": "one_vs_all"}}
    foundation = {
        "model": {"name": model, "options": {"width": 8, "layers": 2, "hidden": 8}},
        "objective": {"name": "self_adversarial"},
        "negatives": {"source": "uniform", "count": 4},
    }
    tree = {
        "data": {"store": store},
        "train": {"epochs": epochs, "batch_size": 64, "seed": 3},
        "evaluate": {"every": 1},
        "checkpoint": {"keep": 2},
    }
    return parse_config(tree | (foundation if model == "ultra" else embedding), "a test")


class Killed(Exception):
    """Stands for the end of the process."""


def train(ranks: Ranks, store: str, run: str, epochs: int, killed_at: int | None = None, model: str = "complex") -> Any:
    """The result of a training; None if the process was killed in that step."""
    original = Training._should_continue

    def dies(training: Training, step: int) -> bool:
        if killed_at is not None and training.progress.steps + step >= killed_at:
            training.checkpoints.wait()  # so that every run is killed with the same checkpoints
            raise Killed
        return original(training, step)

    with pytest.MonkeyPatch.context() as patches, folder_at(run) as folder:
        patches.setattr(Training, "_window", lambda training: 4)
        patches.setattr(Training, "_should_continue", dies)
        try:
            return train_on_rank(config_of(store, epochs, model), folder, ranks, resume=True)
        except Killed:
            return None


def downloaded(address: str, folder: Path) -> Path:
    """A local copy of everything at an address."""
    store = objects_at(address)
    for entry in store.entries():
        path = folder / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        store.download(entry.name, path)
    return folder


def validations(run: Path) -> dict[int, float]:
    """Step → MRR of the validations in metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["valid"]["mrr"] for line in lines if "valid" in line}


def test_a_run_in_a_store_is_the_run_in_a_folder(faulty_bucket: Faulty, small_store: str, tmp_path: Path) -> None:
    """Trained on three ranks among faults, killed, resumed on two, all as in a local folder; then read by one."""
    proxy, address = faulty_bucket
    proxy.policy = every_fifth
    runs = {"store": address("runs/x"), "folder": str(tmp_path / "run")}
    results = {}
    for place, run in runs.items():
        assert run_ranks(3, train, small_store, run, 4, 18) == [None] * 3
        results[place] = run_ranks(2, train, small_store, run, 4)[0]
    assert results["store"]["metrics"] == results["folder"]["metrics"]
    assert results["store"]["train"]["epochs"] == 4
    assert {"unavailable", "throttled", "cut", "lost", "half", "stale"} <= set(proxy.injected)
    proxy.policy = lambda method, path, number: None
    copy = downloaded(address("runs/x"), tmp_path / "copy")
    for name in ("config.yaml", "result.json", "metrics.jsonl", "checkpoints.jsonl", "provenance.json"):
        assert (copy / name).is_file(), name
    newest = max(path.name for path in (copy / "checkpoints").iterdir())
    in_folder = tmp_path / "run" / "checkpoints" / newest
    for file in in_folder.glob("*.safetensors"):
        (there,) = (copy / "checkpoints" / newest).glob(f"attempt-*/{file.name}")
        for tensor, values in load_file(file).items():
            assert torch.equal(load_file(there)[tensor], values)
    assert validations(copy) == validations(tmp_path / "run")

    runner = CliRunner()
    told = {}
    for place, run in runs.items():
        answer = runner.invoke(app, ["evaluate", run, "--json"])
        assert answer.exit_code == 0, answer.output
        exported = tmp_path / f"exported-{place}"
        to = address("exports/x") if place == "store" else str(exported)
        asked = runner.invoke(app, ["export", run, "--to", to])
        assert asked.exit_code == 0, asked.output
        if place == "store":
            downloaded(to, exported)
        told[place] = json.loads(answer.stdout), ExportedRows(exported)
    assert told["store"][0] == told["folder"][0]
    count = told["folder"][1].count
    assert torch.equal(told["store"][1].rows(0, count), told["folder"][1].rows(0, count))
    written = runner.invoke(app, ["report", runs["store"]])
    assert written.output.splitlines()[-1] == f"{address('runs/x').partition('?')[0]}/report.html"
    assert b"<title>x" in (objects_at(address("runs/x")).read("report.html") or b"")


def test_a_foundation_model_is_trained_in_a_store_and_started_from(faulty_bucket: Faulty, small_store: str) -> None:
    proxy, address = faulty_bucket
    proxy.policy = every_fifth
    result = train(Ranks.single(), small_store, address("runs/ultra"), 1, model="ultra")
    assert result["train"]["epochs"] == 1
    answer = CliRunner().invoke(app, ["evaluate", address("runs/ultra"), "--store", small_store, "--triples", "5"])
    assert answer.exit_code == 0, answer.output
    config = config_of(small_store, 1, "ultra")
    started = config.model_copy(update={"model": config.model.model_copy(update={"start": address("runs/ultra")})})
    with folder_at(address("runs/second")) as folder:
        second = train_on_rank(started, folder, Ranks.single())
    assert second["train"]["epochs"] == 1


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "ADDRESS"],
        ["predict", "ADDRESS", "--anchor", "a", "--relation", "r"],
        ["predict-relation", "ADDRESS", "--head", "a", "--tail", "b"],
        ["export", "ADDRESS", "--to", "out"],
        ["report", "ADDRESS"],
    ],
    ids=lambda command: command[0],
)
def test_a_missing_bucket_or_run_is_said_in_one_line(
    bucket: Callable[[str], str], command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = bucket("runs/none")
    missing = address.replace(address.split("/")[2], "no-such-bucket")
    for where, expected in ((missing, "there is no bucket 'no-such-bucket'"), (address, "runs/none")):
        result = CliRunner().invoke(app, [where if part == "ADDRESS" else part for part in command])
        assert result.exit_code == 2, result.output
        lines = result.output.strip().splitlines()
        assert expected in lines[-1]
        assert "scratch" not in result.output
        assert "?" not in lines[-1]


def run_command(arguments: list[str], **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "distkg", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **more
    )


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_on_ray_is_killed_and_resumed_on_another_number_of_workers(
    faulty_bucket: Faulty, small_store: str, tmp_path: Path
) -> None:
    """Two workers train into a store with faults; everything is killed; one worker ends it as it would locally; two
    workers evaluate and export to the store what one process reads."""
    proxy, address = faulty_bucket
    proxy.policy = every_fifth
    run = address("runs/x")
    settings = ["model.name=complex", "model.dim=8", "objective.name=one_vs_all", "train.batch_size=32"]
    base = ["preset:demo", *(part for each in [f"data.store={small_store}", *settings] for part in ("--set", each))]
    training = run_command(["train", *base, "--run", run, "--workers", "2", "--set", "train.epochs=5000"])
    store, deadline = objects_at(run), time.monotonic() + 240
    while not (committed := [e.name for e in store.entries("checkpoints/") if e.name.endswith("manifest.json")]):
        assert training.poll() is None, training.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    kill_all(training)
    assert committed
    proxy.policy = lambda method, path, number: None  # for a whole copy
    local = downloaded(run, tmp_path / "local")
    proxy.policy = every_fifth
    step = max(int(path.name[5:]) for path in (local / "checkpoints").iterdir() if (path / "manifest.json").exists())
    manifest = json.loads((local / "checkpoints" / f"step-{step:09d}" / "manifest.json").read_text())
    epochs = manifest["progress"]["epoch"] + 2
    results = {}
    for place, folder in (("store", run), ("folder", str(local))):
        resume = ["train", *base, "--run", folder, "--workers", "1", "--resume", "--set", f"train.epochs={epochs}"]
        resumed = run_command([*resume, "--accept-changes"])
        output = resumed.communicate(timeout=300)[0]
        assert resumed.returncode == 0, output
        assert "scratch" not in output
        with folder_at(folder) as opened:
            results[place] = json.loads((opened / "result.json").read_text())
    assert results["store"]["metrics"] == results["folder"]["metrics"]
    evaluated = run_command(["evaluate", run, "--workers", "2", "--json"])
    output = evaluated.communicate(timeout=300)[0]
    assert evaluated.returncode == 0, output
    assert json.loads(output.splitlines()[-1])["metrics"] == results["folder"]["metrics"]["test"]
    exported = run_command(["export", run, "--to", address("out"), "--workers", "2"])
    output = exported.communicate(timeout=300)[0]
    assert exported.returncode == 0, output
    proxy.policy = lambda method, path, number: None
    rows = ExportedRows(downloaded(address("out"), tmp_path / "out"))
    single = CliRunner().invoke(app, ["export", str(local), "--to", str(tmp_path / "single")])
    assert single.exit_code == 0, single.output
    assert torch.equal(rows.rows(0, rows.count), ExportedRows(tmp_path / "single").rows(0, rows.count))
    assert set(FAULTS) <= set(proxy.injected)
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill a command and every process that it started, as when a machine goes down."""
    import psutil

    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in tree:
        try:
            each.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()
