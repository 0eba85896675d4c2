"""One writer for each run folder in an object store, with real processes as its drivers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distkg.cluster.watch import lease
from distkg.cluster.watch.lease import Holder, RunInUseError, RunTakenOverError, check_lease, hold_lease, refuse_if_held
from distkg.data.storage.objects import objects_at
from distkg.data.storage.working_copy import folder_at

Bucket = Callable[[str], str]

DRIVER = """
import sys, time
from pathlib import Path
from distkg.cluster.watch.lease import RunInUseError, claimed
from distkg.data.storage.working_copy import folder_at
with folder_at(sys.argv[1]) as run:
    print("ready", flush=True)
    while not Path(sys.argv[2]).exists():
        pass
    try:
        with claimed(run, resume=True):
            print("won", flush=True)
            sys.stdin.read()
    except RunInUseError as error:
        print(f"lost {error}", flush=True)
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTKG_SCRATCH", str(tmp_path / "scratch"))


def driver(address: str, start: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, address, str(start)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("before", ["nothing", "a dead driver"])
def test_of_drivers_that_start_in_the_same_instant_one_wins(bucket: Bucket, tmp_path: Path, before: str) -> None:
    address = bucket("runs/x")
    if before == "a dead driver":
        dead = Holder.this_process().model_copy(update={"born": 1.0})
        objects_at(address).write("lease.json", dead.model_dump_json().encode())
    processes = [driver(address, tmp_path / "start") for _ in range(3)]
    try:
        assert [line_of(process) for process in processes] == ["ready"] * 3
        (tmp_path / "start").touch()
        outcomes = [line_of(process) for process in processes]
        won = [not outcome.startswith("lost") for outcome in outcomes]
        assert sum(won) == 1
        winner = processes[won.index(True)]
        held = objects_at(address).read("lease.json")
        assert held is not None
        assert json.loads(held)["pid"] == winner.pid
        loser = outcomes[won.index(False)]
        assert f"run folder {address.partition('?')[0]} is in use by process {winner.pid} on " in loser
    finally:
        for process in processes:
            process.communicate("", timeout=60)
    assert objects_at(address).read("lease.json") is None


def test_a_driver_elsewhere_is_gone_when_the_store_says_that_its_lease_is_old(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = bucket("x")
    other = Holder.this_process().model_copy(update={"machine": "elsewhere", "host": "node7", "pid": 4711})
    objects_at(address).write("lease.json", other.model_dump_json().encode())
    with folder_at(address) as run:
        with pytest.raises(RunInUseError, match="process 4711 on node7"):
            refuse_if_held(run)
        monkeypatch.setattr(lease, "STALE_SECONDS", -1.0)
        monkeypatch.setattr(lease, "OBSERVE_SECONDS", 4.0)  # the store tells time in seconds
        with hold_lease(run, lambda text: None) as held:
            check_lease(run, held.token)
            objects_at(address).write("lease.json", other.model_dump_json().encode())
            with pytest.raises(RunTakenOverError, match=r"run folder s3://.*/x was taken over .* process 4711 on"):
                check_lease(run, held.token)
    assert b"4711" in (objects_at(address).read("lease.json") or b"")


def test_a_touch_does_not_take_a_lease_back(bucket: Bucket) -> None:
    with folder_at(bucket("x")) as run, hold_lease(run) as held:
        held._file.touch()
        check_lease(run, held.token)
        seen = held._file.look()
        assert seen is not None
        objects_at(bucket("x")).write("lease.json", b"theirs")
        assert not held._file.replace(b"mine", seen)
        held._file.touch()
        assert objects_at(bucket("x")).read("lease.json") == b"theirs"
