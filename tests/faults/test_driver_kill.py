"""A driver that is killed: its workers, actors and Ray end by themselves, and the run is resumed at once."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from distkg.cluster.watch.run_folder import newest_step
from distkg.data.generate import generate
from tests.faults.commands import command, lines_of, write_config

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SHARED_MEMORY = Path("/dev/shm")


def orphaned_files(before: set[Path]) -> list[Path]:
    """Files of shared memory that came since ``before``, and that no process has open."""
    opened = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            opened |= {Path(os.readlink(file)) for file in Path(f"/proc/{process.pid}/fd").iterdir()}
            opened |= {Path(mapped.path) for mapped in process.memory_maps()}
    return sorted(set(SHARED_MEMORY.iterdir()) - before - opened)


def test_a_killed_driver_leaves_nothing_and_its_run_is_resumed(tmp_path: Path) -> None:
    generate(str(tmp_path / "store"), entities=400, relations=6, triples=6000, seed=3)
    negatives = {"source": "near_miss", "options": {"neighbours": 8}, "count": 4, "pool": {"actors": 2}}
    objective = {"name": "logistic"}
    config, run = write_config(tmp_path, tmp_path / "store", negatives=negatives, objective=objective), tmp_path / "run"
    before = set(SHARED_MEMORY.iterdir())
    arguments = ("train", config, "--run", run, "--workers", "2")
    with command(tmp_path, *arguments) as training:
        training.wait_until(lambda: (newest_step(run) or 0) > 0 and lines_of(run / "metrics.jsonl") >= 2)
        titles = " ".join("".join(child.cmdline()[:1]) for child in training.children())
        assert "ray::RayTrainWorker" in titles
        assert "ray::NegativeActor" in titles
        training.process.kill()
        steps = newest_step(run) or 0
        with command(tmp_path, *arguments, "--resume") as resumed:
            resumed.wait_until(lambda: (newest_step(run) or 0) > steps)
            assert "which has ended: this run takes it over" in resumed.output
            assert resumed.send(signal.SIGTERM) == 143, resumed.output
        assert training.ended() == -signal.SIGKILL  # once every process that it had started has ended by itself
    assert orphaned_files(before) == []
