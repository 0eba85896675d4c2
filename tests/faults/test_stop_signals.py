"""Signals to real commands: exit code, last line, checkpoint, and no process left behind."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psutil
import pytest

from distkg.cluster.watch.run_folder import newest_step
from distkg.data.generate import generate
from tests.faults.commands import command, lines_of, write_config

LAST_LINE = r"stopped by SIG\w+, with a checkpoint at step ([\d,]+)\. Continue with the same command and --resume"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "small"
    generate(str(path), entities=400, relations=6, triples=6000, seed=3)
    return path


def open_to_others(processes: list[psutil.Process]) -> list[str]:
    """Titles of processes that listen on more than loopback, one for each port."""
    found = []
    for process in processes:
        for connection in process.net_connections(kind="inet"):
            loopback = connection.laddr.ip.removeprefix("::ffff:").startswith("127.") or connection.laddr.ip == "::1"
            if connection.status == psutil.CONN_LISTEN and not loopback:
                found.append(" ".join(process.cmdline()).strip())
    return found


@pytest.mark.cluster
def test_sigterm_to_two_workers_leaves_a_checkpoint_a_line_and_no_process(store: Path, tmp_path: Path) -> None:
    config, run = write_config(tmp_path, store), tmp_path / "run"
    with command(tmp_path, "train", config, "--run", run, "--workers", "2") as training:
        training.wait_until(lambda: lines_of(run / "metrics.jsonl") >= 2)
        listening = open_to_others([psutil.Process(training.process.pid), *training.children()])
        started = " ".join(word for child in training.children() for word in child.cmdline())
        code = training.send(signal.SIGTERM)
        last = training.output.strip().splitlines()[-1]
    assert code == 143, training.output
    said = re.fullmatch(f"{LAST_LINE}; the run is in {run}", last)
    assert said is not None, training.output
    assert int(said[1].replace(",", "")) == newest_step(run)
    assert "Traceback" not in training.output
    assert not (run / "result.json").exists()
    assert not (run / "failures.jsonl").exists()
    assert listening == []
    assert "raylet" in started
    assert not any(daemon in started for daemon in ("dashboard.py", "monitor.py")), "a daemon that no run needs"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_a_command_without_ray_ends_with_one_line(number: signal.Signals, code: int, tmp_path: Path) -> None:
    arguments = ("--entities", "3000000", "--relations", "50", "--triples", "30000000", "--seed", "1")
    with command(tmp_path, "generate", "--store", tmp_path / "huge", *arguments) as generating:
        # It has read its modules, and is at work.
        generating.wait_until(lambda: psutil.Process(generating.process.pid).memory_info().rss > 250 << 20)
        assert generating.send(number) == code
        assert generating.output == f"stopped by {number.name}\n"


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_while_ray_starts(number: signal.Signals, code: int, store: Path, tmp_path: Path) -> None:
    config, run = write_config(tmp_path, store, cluster={"address": "local"}), tmp_path / "run"
    with command(tmp_path, "train", config, "--run", run) as training:
        training.wait_until(lambda: any(child.name() == "raylet" for child in training.children()))
        assert training.send(number) == code, training.output
        assert "Traceback" not in training.output
        assert training.output.strip().splitlines()[-1].startswith(f"stopped by {number.name}")
    assert not (run / "checkpoints").exists()


@pytest.mark.cluster
@pytest.mark.slow
def test_a_search_is_stopped_with_the_checkpoint_of_its_trial(store: Path, tmp_path: Path) -> None:
    config, run = write_config(tmp_path, store, evaluate={"every": 1}), tmp_path / "search"
    (tmp_path / "space.yaml").write_text("optimizer.learning_rate: {log_uniform: [1.0e-3, 1.0]}\n")
    arguments = ("--space", tmp_path / "space.yaml", "--run", run, "--trials", "2")
    trial = run / "trials" / "0001"
    with command(tmp_path, "tune", config, *arguments) as search:
        search.wait_until(lambda: lines_of(trial / "metrics.jsonl") >= 2)
        steps = newest_step(trial) or 0
        assert search.send(signal.SIGTERM) == 143, search.output
        last = search.output.strip().splitlines()[-1]
    assert last == f"stopped by SIGTERM. Continue with the same command and --resume; the search is in {run}"
    assert (newest_step(trial) or 0) > steps
    assert lines_of(run / "search.jsonl") == 0, "an interrupted trial has not ended"
