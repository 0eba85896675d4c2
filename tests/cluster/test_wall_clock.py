"""A wall clock that is set an hour forward or back while runs are under way; the clock since the boot goes on."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from distkg.cluster.watch import lease, node_processes
from distkg.cluster.watch.heartbeats import RunWatch, Sign, WorkerProcess
from distkg.cluster.watch.lease import Holder, RunInUseError, hold_lease, refuse_if_held
from distkg.cluster.watch.process_start import seconds_from_boot
from distkg.config import RunConfig
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from distkg.training.run_dir import RunFolder

HOUR = 3600.0
both_ways = pytest.mark.parametrize("jump", [HOUR, -HOUR])


def set_clock(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """Set the wall clock of this process; the kernel's time of the boot, from which psutil counts, goes with it."""
    now, boot = time.time, psutil.boot_time()
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot + jump)  # type: ignore[attr-defined]


@both_ways
def test_a_driver_of_this_machine_keeps_its_folder_while_it_lives(
    jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold_lease(tmp_path):
        set_clock(monkeypatch, jump)
        with pytest.raises(RunInUseError):
            refuse_if_held(tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        holder = Holder.this_process().model_copy(update={"pid": gone.pid, "born": seconds_from_boot(gone.pid)})
    (tmp_path / "lease.json").write_text(holder.model_dump_json())
    refuse_if_held(tmp_path)


@both_ways
@pytest.mark.parametrize("lives", [True, False])
def test_a_driver_elsewhere_keeps_its_folder_while_it_touches_its_lease(
    lives: bool, jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the file system was set after the last touch."""
    monkeypatch.setattr(lease, "OBSERVE_SECONDS", 1.0)
    holder = Holder.this_process().model_copy(update={"machine": "elsewhere", "pid": 4711})
    file = tmp_path / "lease.json"
    file.write_text(holder.model_dump_json())
    os.utime(file, (time.time() - jump,) * 2)
    touch = threading.Timer(0.5, os.utime, [file])
    if lives:
        touch.start()
        with pytest.raises(RunInUseError, match="process 4711"):
            refuse_if_held(tmp_path)
        touch.join()
    else:
        refuse_if_held(tmp_path)


@both_ways
def test_a_worker_is_found_and_killed_by_its_start(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = WorkerProcess("node", child.pid, seconds_from_boot(child.pid))
        set_clock(monkeypatch, jump)
        assert cast(Any, node_processes.examine)._function(process) in ("busy", "idle")
        cast(Any, node_processes.kill)._function(process)
        assert child.wait(30) == -9


@both_ways
def test_a_worker_is_neither_silent_nor_idle_by_the_wall_clock(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    async def steps() -> tuple[float, float]:
        watch = RunWatch()
        await watch.sign(0, WorkerProcess("node", 11, 1.0), Sign(0.0, False))
        set_clock(monkeypatch, jump)
        worker = (await watch.workers())[0]
        return worker.silent, worker.idle

    silent, idle = asyncio.run(steps())
    assert 0 <= silent < 300
    assert 0 <= idle < 300


def test_a_run_is_what_it_is_under_a_clock_that_jumps_to_and_fro(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str) -> tuple[list[float], Any]:
        result = train_on_rank(config, tmp_path / name, Ranks.single())
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert all(0 <= line["time"] < 600 for line in lines)
        return [line["loss"] for line in lines], result["metrics"]

    config = RunConfig.model_validate(
        {
            "data": {"store": small_store},
            "model": {"name": "distmult", "dim": 8},
            "train": {"epochs": 4, "time_limit_seconds": 600},
        }
    )
    calm = trained("calm")
    now, jumps = time.time, itertools.cycle([HOUR, -HOUR])
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    assert trained("disturbed") == calm


def test_the_newest_checkpoint_is_the_last_one_whatever_the_clock_said(tmp_path: Path) -> None:
    lines = [{"time": 2e9 + HOUR, "checkpoint": "step-000000001"}, {"time": 2e9, "checkpoint": "step-000000002"}]
    (tmp_path / "checkpoints.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert RunFolder(tmp_path).last_checkpoint_time() == 2e9
    assert RunFolder(tmp_path).last_checkpoint() == "step-000000002"
