"""Local copies of folders in an object store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distkg.data.errors import StoreError
from distkg.data.storage import objects
from distkg.data.storage.file_changes import changed
from distkg.data.storage.objects import StoreUnavailableError, objects_at
from distkg.data.storage.working_copy import WorkingCopy, copy_of, flush, folder_at, shown
from distkg.redaction import redact
from tests.faulty_s3 import FaultyS3

Faulty = tuple[FaultyS3, Callable[[str], str]]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTKG_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(objects, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(objects, "_LONGEST_PAUSE", 0.05)
    return tmp_path / "scratch"


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_small_files_come_large_ones_stay(bucket: Callable[[str], str]) -> None:
    store = objects_at(bucket("runs/x"))
    store.write("config.yaml", b"a: 1\n")
    store.write("checkpoints/step-1/manifest.json", b"{}")
    store.write("checkpoints/step-1/rank-00000-of-00001.safetensors", b"0" * 100)
    with folder_at(bucket("runs/x")) as run:
        assert files_below(run) == ["checkpoints/step-1/manifest.json", "config.yaml"]
        assert (run / "config.yaml").read_bytes() == b"a: 1\n"


def test_written_and_deleted_files_reach_the_store(bucket: Callable[[str], str]) -> None:
    store = objects_at(bucket("runs/x"))
    store.write("old.txt", b"1")
    with folder_at(bucket("runs/x")) as run:
        (run / "sub").mkdir()
        for name in ("a.txt", "sub/b.txt"):
            (run / name).write_text(name)
            changed(run / name)
        (run / "old.txt").unlink()
        changed(run / "old.txt")
        flush(run)
        assert {entry.name for entry in store.entries()} == {"a.txt", "sub/b.txt"}
        (run / "a.txt").write_text("last")
        changed(run / "a.txt")
    assert store.read("a.txt") == b"last"


def test_files_are_sent_in_the_background(bucket: Callable[[str], str]) -> None:
    store = objects_at(bucket("runs/x"))
    with folder_at(bucket("runs/x")) as run:
        (run / "metrics.jsonl").write_text("{}\n")
        changed(run / "metrics.jsonl")
        deadline = time.monotonic() + 30
        while store.read("metrics.jsonl") is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_others_write_is_fetched_and_what_is_unsent_is_kept(bucket: Callable[[str], str]) -> None:
    store = objects_at(bucket("runs/x"))
    store.write("gone", b"")
    with WorkingCopy(bucket("runs/x")) as copy:
        copy.flush = lambda: None  # type: ignore[method-assign]
        (copy.path / "mine").write_text("mine")
        copy.changed(copy.path / "mine")
        store.write("mine", b"theirs")
        store.write("new", b"1")
        store.delete(["gone"])
        copy.refresh(["new", "absent"])
        assert files_below(copy.path) == ["gone", "mine", "new"]
        copy.refresh()
        assert files_below(copy.path) == ["mine", "new"]
        assert (copy.path / "mine").read_text() == "mine"


def test_a_path_is_found_in_its_copy_and_shown_by_its_address(bucket: Callable[[str], str], tmp_path: Path) -> None:
    address = bucket("runs/x").partition("?")[0]
    with folder_at(bucket("runs/x")) as run:
        copy = copy_of(run / "checkpoints" / "step-1")
        assert copy is not None
        assert copy.path == run
        assert shown(run) == address
        assert shown(run / "a" / "b") == f"{address}/a/b"
        assert redact(f"run folder {run} is not empty: {run}/a.txt") == (
            f"run folder {address} is not empty: {address}/a.txt"
        )
        assert redact(f"checkpoint '{copy.shared}/step-1' is torn") == f"checkpoint '{address}/step-1' is torn"
    assert copy_of(run) is None
    assert shown(tmp_path) == str(tmp_path)
    assert redact(f"other {tmp_path}/x") == f"other {tmp_path}/x"


def test_nothing_stays_on_disk_not_even_of_a_killed_process(bucket: Callable[[str], str], scratch: Path) -> None:
    code = (
        "import sys, time; from distkg.data.storage.working_copy import WorkingCopy\n"
        "copy = WorkingCopy(sys.argv[1]).__enter__(); (copy.path / 'x').write_text('x')\n"
        "(copy.shared / 'big').write_text('x'); print('open', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, bucket("runs/x")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    with folder_at(bucket("runs/x")):
        left = files_below(scratch)
        assert any(name.endswith("/x") for name in left)  # the other process is alive
        assert any(name.endswith("shared/big") for name in left)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with folder_at(bucket("runs/x")):
        assert [name for name in files_below(scratch) if not name.endswith(".lock")] == []
    assert [name for name in files_below(scratch) if name.endswith(".lock")] == []


def test_two_processes_of_one_machine_have_copies_of_their_own(bucket: Callable[[str], str]) -> None:
    with WorkingCopy(bucket("runs/x")) as one, WorkingCopy(bucket("runs/x")) as two, WorkingCopy(bucket("y")) as other:
        assert one.path != two.path
        assert one.shared == two.shared != other.shared


def test_a_store_that_fails_in_the_background_is_reported(
    faulty_bucket: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, address = faulty_bucket
    monkeypatch.setattr(objects, "PATIENCE_SECONDS", 0.1)
    with WorkingCopy(address("x")) as copy:
        proxy.policy = lambda method, path, number: "unavailable" if method == "PUT" else None
        (copy.path / "a").write_text("1")
        copy.changed(copy.path / "a")
        deadline = time.monotonic() + 30
        while "unavailable" not in proxy.injected:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(StoreUnavailableError, match="write a failed"):
            copy.flush()
        proxy.policy = lambda method, path, number: None
        copy.flush()
    assert objects_at(address("x")).read("a") == b"1"


def test_names_that_lead_out_of_the_copy_are_not_fetched(bucket: Callable[[str], str], scratch: Path) -> None:
    store = objects_at(bucket("runs/x"))
    store.write("../escaped", b"1")
    store.write("a//b", b"1")
    store.write("plain", b"1")
    with folder_at(bucket("runs/x")) as run:
        assert files_below(run) == ["plain"]
        assert not (run.parent / "escaped").exists()


def test_scratch_that_cannot_be_written_to_is_named(
    bucket: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DISTKG_SCRATCH", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="DISTKG_SCRATCH"), folder_at(bucket("x")):
        pass


def test_a_path_is_no_address(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        assert folder == tmp_path
    with folder_at(str(tmp_path)) as folder:
        assert folder == tmp_path
    assert os.listdir(tmp_path) == []
