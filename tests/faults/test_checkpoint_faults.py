"""Torn, tampered and half-written checkpoints are found, and the one before them is used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from distributed import run_ranks
from safetensors.torch import save_file
from torch.multiprocessing import ProcessExitedException

from distkg.sharding.checkpoint import files as checkpoint_files
from distkg.sharding.checkpoint import storage
from distkg.sharding.checkpoint.checkpoint import CheckpointError, Checkpoints, State
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards

ROWS = 6
FIRST, SECOND = "rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors"


def state_with(value: float, ranks: Ranks, columns: int = 4) -> State:
    count = Shards(ROWS, ranks.size).count(ranks.rank)
    return State({"entities": torch.full((count, columns), value)}, {"relations": torch.full((2, 4), value)}, ROWS)


def save_two(ranks: Ranks, folder: Path) -> None:
    checkpoints = Checkpoints(folder, ranks, keep=2)
    for step in (1, 2):
        checkpoints.save(f"step-{step}", state_with(float(step), ranks), {"epoch": step}, best=True)
    checkpoints.wait()


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def load_too_wide(checkpoints: Checkpoints, ranks: Ranks) -> str:
    """What each rank is told when one of them asks for another shape."""
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load("step-2", state_with(0.0, ranks, columns=5 if ranks.rank == 1 else 4))
    return str(caught.value)


def fill_the_disk_of_one(checkpoints: Checkpoints, ranks: Ranks) -> str:
    """What each rank is told when one of them cannot write."""
    if ranks.rank == 1:
        limit_files(100_000)
    checkpoints.save("step-3", state_with(3.0, ranks, columns=1 << 16), {})
    with pytest.raises(OSError, match="rank 1") as caught:
        checkpoints.wait()
    return str(caught.value)


def faults_on_two_ranks(ranks: Ranks, written: Path, scratch: Path) -> dict[str, str | None]:
    save_two(ranks, written)
    if ranks.first:
        shutil.copytree(written, scratch)
    ranks.barrier()
    checkpoints = Checkpoints(scratch, ranks, keep=2)
    told: dict[str, str | None] = {
        "too wide": load_too_wide(checkpoints, ranks),
        "disk full": fill_the_disk_of_one(checkpoints, ranks),
        "newest then": checkpoints.newest(),
    }
    if ranks.first:
        flip_last_byte(scratch / "step-2" / SECOND)
    ranks.barrier()
    return told | {"newest of damaged": checkpoints.newest()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def on_two_ranks(written: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str | None]]:
    """What two ranks met, after they wrote step-1 and step-2 to ``written``."""
    return run_ranks(2, faults_on_two_ranks, written, tmp_path_factory.mktemp("scratch") / "checkpoints", fresh=True)


@pytest.fixture
def folder(written: Path, on_two_ranks: object, tmp_path: Path) -> Path:
    """Checkpoints step-1 and step-2 of two ranks."""
    return shutil.copytree(written, tmp_path / "checkpoints")


def loaded_value(folder: Path, name: str) -> float:
    state = state_with(-1.0, Ranks.single())
    progress = Checkpoints(folder, Ranks.single(), keep=2).load(name, state)
    (value,) = set(torch.cat([state.sharded["entities"], state.replicated["relations"]]).flatten().tolist())
    assert progress == {"epoch": value}
    return value


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def edit_progress(path: Path) -> None:
    tree = json.loads(path.read_text())
    tree["progress"]["epoch"] = 1000
    path.write_text(json.dumps(tree))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def make_list(path: Path) -> None:
    path.write_text("[]")


def forge(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Edit a manifest as somebody would who knows how its checksum is made."""

    def edit(path: Path) -> None:
        tree = json.loads(path.read_text())
        del tree["sha256"]
        change(tree)
        digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(tree | {"sha256": digest}))

    return edit


def leave_the_folder(tree: dict[str, Any]) -> None:
    tree["files"][0]["name"] = "../step-1/" + FIRST


def forget_a_file(tree: dict[str, Any]) -> None:
    del tree["files"][1]


def leave_a_gap(tree: dict[str, Any]) -> None:
    tree["files"][1]["low"] = 4


def of_the_future(tree: dict[str, Any]) -> None:
    tree["format"] = 2


DAMAGES = [
    (truncate, FIRST, f"{FIRST} has ... bytes, its manifest says"),
    (lengthen, SECOND, f"{SECOND} has ... bytes, its manifest says"),
    (flip_last_byte, FIRST, f"{FIRST} has SHA-256"),
    (flip_last_byte, SECOND, f"{SECOND} has SHA-256"),
    (Path.unlink, SECOND, f"{SECOND} cannot be read (No such file or directory)"),
    (edit_progress, "manifest.json", "manifest.json was changed after it was written"),
    (halve, "manifest.json", "manifest.json is damaged"),
    (lengthen, "manifest.json", "manifest.json is damaged"),
    (empty, "manifest.json", "manifest.json is damaged"),
    (make_list, "manifest.json", "manifest.json is damaged"),
    (forge(leave_the_folder), "manifest.json", "manifest.json is damaged"),
    (forge(forget_a_file), "manifest.json", "its files do not hold rows 0 to 6"),
    (forge(leave_a_gap), "manifest.json", "its files do not hold rows 0 to 6"),
    (forge(of_the_future), "manifest.json", "has checkpoint format 2, this distkg reads 1"),
]


@pytest.mark.parametrize(("damage", "name", "warning"), DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], name: str, warning: str
) -> None:
    damage(folder / "step-2" / name)
    checkpoints = Checkpoints(folder, Ranks.single(), keep=2)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest() == "step-1"
    assert "checkpoint step-2 is skipped" in caplog.text
    assert all(part in caplog.text for part in warning.split("..."))
    assert checkpoints.best() == "step-1"
    assert loaded_value(folder, "step-1") == 1.0


def test_undamaged_checkpoints_raise_no_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Checkpoints(folder, Ranks.single(), keep=2).newest() == "step-2"
    assert caplog.text == ""
    assert loaded_value(folder, "step-2") == 2.0


def test_without_its_manifest_a_checkpoint_does_not_exist(folder: Path) -> None:
    (folder / "step-2" / "manifest.json").unlink()
    checkpoints = Checkpoints(folder, Ranks.single(), keep=2)
    assert checkpoints.newest() == "step-1"
    checkpoints.save("step-3", state_with(3.0, Ranks.single()), {"epoch": 3})
    assert checkpoints.newest() == "step-3"
    assert sorted(path.name for path in folder.iterdir()) == ["step-1", "step-3"]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_where_all_are_damaged_each_is_named_and_none_is_deleted(folder: Path) -> None:
    flip_last_byte(folder / "step-1" / FIRST)
    (folder / "step-2" / "manifest.json").write_bytes(b"[" * 200_000)
    before = files_below(folder)
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(folder, Ranks.single(), keep=2).newest()
    message = str(caught.value)
    assert message.startswith(f"every checkpoint in {folder} is damaged:")
    assert f"step-1: {FIRST} has SHA-256" in message
    assert "step-2: " in message
    assert "manifest.json is damaged (its brackets are nested too deeply)" in message
    assert "Nothing was deleted." in message
    assert files_below(folder) == before


def test_a_damaged_checkpoint_takes_no_place_among_those_kept(folder: Path) -> None:
    flip_last_byte(folder / "step-2" / FIRST)
    checkpoints = Checkpoints(folder, Ranks.single(), keep=2)
    assert checkpoints.newest() == "step-1"
    checkpoints.save("step-3", state_with(3.0, Ranks.single()), {"epoch": 3})
    checkpoints.wait()
    assert sorted(path.name for path in folder.iterdir()) == ["step-1", "step-3"]


@pytest.mark.parametrize("name", [FIRST, "manifest.json"])
def test_a_damaged_checkpoint_is_replaced_when_training_passes_it_again(folder: Path, name: str) -> None:
    empty(folder / "step-2" / name)
    checkpoints = Checkpoints(folder, Ranks.single(), keep=2)
    assert checkpoints.newest() == "step-1"
    checkpoints.save("step-2", state_with(2.0, Ranks.single()), {"epoch": 2})
    assert checkpoints.newest() == "step-2"
    assert sorted(path.name for path in folder.iterdir()) == ["step-1", "step-2"]
    assert loaded_value(folder, "step-2") == 2.0


def test_ranks_agree_though_only_one_reads_the_damaged_file(on_two_ranks: list[dict[str, str | None]]) -> None:
    assert [told["newest of damaged"] for told in on_two_ranks] == ["step-1", "step-1"]


def test_a_shape_that_does_not_fit_on_one_rank_stops_all(on_two_ranks: list[dict[str, str]]) -> None:
    for told in on_two_ranks:
        assert told["too wide"].startswith("rank 1: checkpoint step-2 in ")
        assert "entities is sharded float32 [6, 4] in the checkpoint, sharded float32 [6, 5] here" in told["too wide"]


def test_a_rank_that_cannot_write_fails_the_save_on_all_and_harms_nothing(on_two_ranks: list[dict[str, str]]) -> None:
    for told in on_two_ranks:
        assert told["disk full"].startswith("rank 1: ")
        assert "File too large" in told["disk full"]
        assert told["newest then"] == "step-2"


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_rename(ranks: Ranks, folder: Path) -> None:
    checkpoints = Checkpoints(folder, ranks, keep=2)
    with mock.patch.object(checkpoint_files.os, "replace", die):
        checkpoints.save("step-3", state_with(3.0, ranks), {"epoch": 3})
        checkpoints.wait()


def test_killed_between_files_and_manifest(folder: Path) -> None:
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_ranks(1, die_at_rename, folder, fresh=True)
    left = {path.name for path in (folder / "step-3").iterdir()}
    assert left == {"rank-00000-of-00001.safetensors", "manifest.json.part"}
    notices: list[str] = []
    checkpoints = Checkpoints(folder, Ranks.single(), keep=2, notice=notices.append)
    assert checkpoints.newest() == "step-2"
    checkpoints.save("step-4", state_with(4.0, Ranks.single()), {"epoch": 4})
    assert checkpoints.newest() == "step-4"
    assert sorted(path.name for path in folder.iterdir()) == ["step-2", "step-4"]
    assert notices == []


def test_a_first_checkpoint_that_was_never_finished_is_none(tmp_path: Path) -> None:
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_ranks(1, die_at_rename, tmp_path, fresh=True)
    assert Checkpoints(tmp_path, Ranks.single(), keep=2).newest() is None


def die_in_the_middle_of_a_file(ranks: Ranks, folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel now kills whoever writes beyond the limit
    limit_files(100_000)
    checkpoints = Checkpoints(folder, ranks, keep=2)
    checkpoints.save("step-3", state_with(3.0, ranks, columns=1 << 16), {})
    checkpoints.wait()


def test_killed_in_the_middle_of_a_file(folder: Path) -> None:
    with pytest.raises(ProcessExitedException, match="SIGXFSZ"):
        run_ranks(1, die_in_the_middle_of_a_file, folder, fresh=True)
    assert (folder / "step-3").is_dir()
    checkpoints = Checkpoints(folder, Ranks.single(), keep=2)
    assert checkpoints.newest() == "step-2"
    checkpoints.save("step-4", state_with(4.0, Ranks.single()), {"epoch": 4})
    checkpoints.wait()
    assert sorted(path.name for path in folder.iterdir()) == ["step-2", "step-4"]


def killed_beside_another(ranks: Ranks, folder: Path) -> None:
    checkpoints = Checkpoints(folder, ranks, keep=2)
    with mock.patch.object(storage, "write_file", die if ranks.rank == 1 else storage.write_file):
        checkpoints.save("step-3", state_with(3.0, ranks), {})
        checkpoints.wait()


def test_nothing_is_committed_without_the_file_of_a_killed_rank(folder: Path) -> None:
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_ranks(2, killed_beside_another, folder, fresh=True)
    assert not (folder / "step-3" / "manifest.json").exists()
    assert Checkpoints(folder, Ranks.single(), keep=2).newest() == "step-2"


def test_an_error_in_the_background_is_raised_by_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    checkpoints = Checkpoints(tmp_path / "file", Ranks.single(), keep=2)
    checkpoints.save("step-1", state_with(1.0, Ranks.single()), {})
    with pytest.raises(OSError, match="file"):
        checkpoints.newest()
    (tmp_path / "file").unlink()
    checkpoints.save("step-2", state_with(2.0, Ranks.single()), {})
    assert checkpoints.newest() == "step-2"


def test_a_deletion_that_fails_half_way_leaves_no_torn_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unlink = Path.unlink

    def refuse_rows(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("rank-"):
            raise OSError(f"{path} is busy")
        unlink(path, missing_ok)

    checkpoints = Checkpoints(folder, Ranks.single(), keep=1)
    with monkeypatch.context() as patches:
        patches.setattr(Path, "unlink", refuse_rows)
        checkpoints.save("step-3", state_with(3.0, Ranks.single()), {"epoch": 3}, best=True)
        checkpoints.wait()
    assert "could not be deleted" in caplog.text
    torn = [path.name for path in folder.iterdir() if not (path / "manifest.json").exists()]
    assert len(torn) == 1
    assert (folder / torn[0] / FIRST).exists()
    assert checkpoints.newest() == "step-3"
    checkpoints.save("step-4", state_with(4.0, Ranks.single()), {"epoch": 4}, best=True)
    checkpoints.wait()
    assert [path.name for path in folder.iterdir()] == ["step-4"]


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._trace,)


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


@pytest.mark.timeout(120)
def test_pickles_in_the_folder_are_never_opened(folder: Path, tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "trace"))
    for name in (".metadata", "rank-00000-of-00002.pt", "model.pt"):
        (folder / "step-2" / name).write_bytes(trap)
        (folder / name).write_bytes(trap)
    os.mkfifo(folder / "step-2" / "model.pickle")  # whoever opens it waits for ever
    checkpoints = Checkpoints(folder, Ranks.single(), keep=2)
    assert checkpoints.newest() == "step-2"
    assert loaded_value(folder, "step-2") == 2.0
    checkpoints.read_rows("step-2", "entities", 0, ROWS)
    assert not (tmp_path / "trace").exists()


def test_a_pickle_in_place_of_a_file_is_refused_even_with_a_forged_manifest(folder: Path, tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "trace"))
    (folder / "step-2" / FIRST).write_bytes(trap)

    def vouch(tree: dict[str, Any]) -> None:
        tree["files"][0] |= {"bytes": len(trap), "sha256": hashlib.sha256(trap).hexdigest()}

    forge(vouch)(folder / "step-2" / "manifest.json")
    checkpoints = Checkpoints(folder, Ranks.single(), keep=2)
    assert checkpoints.newest() == "step-1"
    with pytest.raises(CheckpointError, match=f"{FIRST} is damaged"):
        checkpoints.load("step-2", state_with(0.0, Ranks.single()))
    with pytest.raises(CheckpointError, match=f"{FIRST} is damaged"):
        checkpoints.read_rows("step-2", "entities", 0, 1)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"entities": torch.zeros(2, 4)}, r"holds entities of shape \[2, 4\], its manifest says \[3, 4\]"),
        ({"entities": torch.zeros(3, 4)}, f"{FIRST} is damaged .*relations"),
        (
            {"entities": torch.zeros(3, 4), "relations": torch.zeros(1, 4)},
            r"holds relations of shape \[1, 4\], its manifest says \[2, 4\]",
        ),
    ],
)
def test_a_file_that_holds_something_else_is_refused(folder: Path, tensors: dict[str, torch.Tensor], text: str) -> None:
    save_file(tensors, folder / "step-2" / FIRST)
    with pytest.raises(CheckpointError, match=text):
        Checkpoints(folder, Ranks.single(), keep=2).load("step-2", state_with(0.0, Ranks.single()))
