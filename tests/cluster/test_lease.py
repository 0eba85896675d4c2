"""One writer for each run folder, with real processes as its drivers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distkg.cluster.watch import lease
from distkg.cluster.watch.lease import (
    Holder,
    RunInUseError,
    RunTakenOverError,
    check_lease,
    claimed,
    hold_lease,
    refuse_if_held,
    wait_until_free,
)
from distkg.cluster.watch.run_folder import RunFolderError

HOLD = """
import sys, time
from pathlib import Path
from distkg.cluster.watch.lease import hold_lease
with hold_lease(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

RACE = """
import sys, time
from pathlib import Path
from distkg.cluster.watch.lease import RunInUseError, claimed
run, start = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
while not start.exists():
    pass
try:
    with claimed(run, resume=True):
        print("won", flush=True)
        sys.stdin.read()
except RunInUseError as error:
    print(f"lost {error}", flush=True)
"""


@pytest.fixture(autouse=True)
def _observed_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "OBSERVE_SECONDS", 0.2)


def started(script: str, *arguments: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> None:
    process.communicate("", timeout=60)


@contextmanager
def driver(run: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease of a folder."""
    process = started(HOLD, run)
    try:
        assert line_of(process) == "held"
        yield process
    finally:
        process.kill()
        process.wait()


def written(run: Path, age: float = 0, **fields: Any) -> None:
    """A lease of a driver on another machine, last touched ``age`` seconds ago."""
    holder = Holder.this_process().model_copy(
        update={"machine": "elsewhere", "host": "node7", "pid": 4711, "token": "theirs"} | fields
    )
    (run / "lease.json").write_text(holder.model_dump_json())
    touched = time.time() - age
    os.utime(run / "lease.json", (touched, touched))


def test_a_second_driver_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    with driver(tmp_path) as other:
        with pytest.raises(RunInUseError) as caught, hold_lease(tmp_path):
            pass
        text = str(caught.value)
        assert f"process {other.pid} on {os.uname().nodename}, since 20" in text
        assert str(tmp_path) in text
        assert "name another folder" in text
        with pytest.raises(RunInUseError):
            refuse_if_held(tmp_path)
    # A killed holder is noticed at once on its own machine.
    heard: list[str] = []
    with hold_lease(tmp_path, heard.append):
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()
    (line,) = heard
    assert line.startswith(f"the run folder was held by process {other.pid} on ")
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_process_still_holds_its_folder(tmp_path: Path) -> None:
    with driver(tmp_path) as other:
        other.send_signal(signal.SIGSTOP)
        with pytest.raises(RunInUseError):
            refuse_if_held(tmp_path)


def test_a_lease_is_given_back_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), hold_lease(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with hold_lease(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_of_drivers_that_start_in_the_same_instant_one_wins(tmp_path: Path) -> None:
    race(tmp_path, 4)


def test_of_drivers_that_find_a_dead_holder_in_the_same_instant_one_wins(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with driver(run):
        pass
    assert (run / "lease.json").exists()
    race(tmp_path, 4)


def race(folder: Path, drivers: int) -> None:
    processes = [started(RACE, folder / "run", folder / "start") for _ in range(drivers)]
    try:
        assert [line_of(process) for process in processes] == ["ready"] * drivers
        (folder / "start").write_text("")
        outcomes = [line_of(process) for process in processes]
        winner = [
            process
            for process, line in zip(processes, outcomes, strict=True)
            if line == "won" or line.startswith("the run folder was held by")
        ]
        assert len(winner) == 1
        assert sum(line.startswith("lost ") for line in outcomes) == drivers - 1
        assert json.loads((folder / "run" / "lease.json").read_text())["pid"] == winner[0].pid
    finally:
        for process in processes:
            ended(process)
    assert [path.name for path in (folder / "run").iterdir()] == []


def test_a_process_of_the_same_number_that_started_later_is_another_one(tmp_path: Path) -> None:
    holder = Holder.this_process()
    (tmp_path / "lease.json").write_text(holder.model_copy(update={"born": (holder.born or 0) - 60}).model_dump_json())
    refuse_if_held(tmp_path)
    (tmp_path / "lease.json").write_text(holder.model_dump_json())
    with pytest.raises(RunInUseError):
        refuse_if_held(tmp_path)


@pytest.mark.parametrize(("age", "held"), [(0, True), (100, True), (140, False)])
def test_a_holder_on_another_machine_counts_as_gone_after_two_minutes(tmp_path: Path, age: float, held: bool) -> None:
    written(tmp_path, age, job="raysubmit_1")
    if held:
        with pytest.raises(RunInUseError, match=r"process 4711 on node7 \(Ray job raysubmit_1\), since 20"):
            refuse_if_held(tmp_path)
    else:
        refuse_if_held(tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"token": 3}'])
def test_a_lease_that_cannot_be_read_is_held_until_it_is_old(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease.json").write_text(content)
    with pytest.raises(RunInUseError, match="just starting"), hold_lease(tmp_path):
        pass
    os.utime(tmp_path / "lease.json", (time.time() - 140,) * 2)
    with hold_lease(tmp_path, lambda text: None):
        pass


def test_the_holder_touches_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "REFRESH_SECONDS", 0.01)
    with hold_lease(tmp_path):
        os.utime(tmp_path / "lease.json", (0, 0))
        deadline = time.monotonic() + 60
        while (tmp_path / "lease.json").stat().st_mtime < 1e9:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_driver_that_was_taken_over_is_told_and_leaves_the_new_lease(tmp_path: Path) -> None:
    with hold_lease(tmp_path) as held:
        check_lease(tmp_path, held.token)
        written(tmp_path)
        with pytest.raises(RunTakenOverError, match="now held by process 4711 on node7"):
            check_lease(tmp_path, held.token)
    assert json.loads((tmp_path / "lease.json").read_text())["token"] == "theirs"


def test_a_lease_that_was_deleted_is_lost(tmp_path: Path) -> None:
    with hold_lease(tmp_path) as held:
        (tmp_path / "lease.json").unlink()
        with pytest.raises(RunTakenOverError, match="its lease was deleted"):
            check_lease(tmp_path, held.token)


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Any, target: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with hold_lease(tmp_path) as held:
        check_lease(tmp_path, held.token)
        with pytest.raises(RunInUseError), hold_lease(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_trial_waits_for_the_process_that_had_it(tmp_path: Path) -> None:
    written(tmp_path)
    timer = threading.Timer(0.2, (tmp_path / "lease.json").unlink)
    timer.start()
    wait_until_free(tmp_path, 60)
    timer.join()
    written(tmp_path)
    with pytest.raises(RunInUseError):
        wait_until_free(tmp_path, 0)


def test_a_folder_in_use_says_so_rather_than_that_it_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    written(tmp_path)
    with pytest.raises(RunInUseError, match="in use by process 4711"), claimed(tmp_path, resume=False):
        pass
    (tmp_path / "lease.json").unlink()
    with pytest.raises(RunFolderError, match="not empty"), claimed(tmp_path, resume=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_job_of_a_driver_is_part_of_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"metadata": {"job_submission_id": "raysubmit_abc"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(settings))
    assert Holder.this_process().job == "raysubmit_abc"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "[]")
    assert Holder.this_process().job == ""
