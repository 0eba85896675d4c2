"""Checkpoints come back bit for bit on any number of ranks, and the right ones are kept."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import run_ranks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from distkg.data.storage.tensor_files import DTYPES, MAX_DIMENSIONS
from distkg.sharding.checkpoint import files as checkpoint_files
from distkg.sharding.checkpoint import manifest, storage
from distkg.sharding.checkpoint.checkpoint import CheckpointError, Checkpoints, NonFiniteError, State
from distkg.sharding.ranks import Ranks
from distkg.sharding.row_storage import MappedFiles
from distkg.sharding.shards import Shards

TABLES = (4, 7)  # rows: on 3 ranks 2, 2 and 0, or 3, 3 and 1


def whole_tables(rows: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(7)
    return {
        "entities": torch.randn(rows, 6, generator=random).bfloat16(),
        "optimizer.mean": torch.randn(rows, 2, 3, generator=random),
        "optimizer.steps": torch.tensor([[0.0], [1.0], [2.0], [16777216.0], [4.0], [5.0], [6.0]])[:rows],
    }


def whole_network() -> dict[str, Tensor]:
    return {
        "relations": torch.tensor([[0.5, -0.0, 3.4028235e38], [1e-38, 2.0, -3.0]]),
        "batches": torch.tensor(9007199254740993),
        "empty": torch.zeros(0, 4),
    }


def full_state(ranks: Ranks, rows: int) -> State:
    low, high = Shards(rows, ranks.size).range(ranks.rank)
    return State({name: table[low:high] for name, table in whole_tables(rows).items()}, whole_network(), rows)


def blank_state(ranks: Ranks, rows: int) -> State:
    state = full_state(ranks, rows)
    sharded = {name: torch.full_like(tensor, -7) for name, tensor in state.sharded.items()}
    return State(sharded, {name: torch.full_like(tensor, -7) for name, tensor in state.replicated.items()}, rows)


def save_on(ranks: Ranks, folder: Path) -> None:
    checkpoints = Checkpoints(folder, ranks, keep=2)
    for rows in TABLES:
        progress = {"epoch": rows, "seconds": 0.1, "worker": ranks.rank}
        checkpoints.save(f"rows-{rows}", full_state(ranks, rows), progress)
    checkpoints.wait()


Loaded = tuple[dict[str, Any], State]


def load_on(ranks: Ranks, folder: Path) -> dict[int, Loaded]:
    checkpoints = Checkpoints(folder, ranks, keep=2)
    assert checkpoints.newest() == "rows-7"
    loaded = {}
    for rows in TABLES:
        state = blank_state(ranks, rows)
        loaded[rows] = checkpoints.load(f"rows-{rows}", state), state
    return loaded


def save_and_load_on(ranks: Ranks, to: Path, sources: list[Path]) -> list[dict[int, Loaded]]:
    save_on(ranks, to)
    return [load_on(ranks, source) for source in sources]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Where 1, 2 and 3 ranks write."""
    return {size: tmp_path_factory.mktemp(f"by-{size}") for size in (1, 2, 3)}


@pytest.fixture(scope="module")
def round_trips(folders: dict[int, Path]) -> dict[tuple[int, int], list[dict[int, Loaded]]]:
    """(writers, readers) → what each reader got, by rows of the tables."""
    save_on(Ranks.single(), folders[1])
    run_ranks(3, save_on, folders[3])
    on_two = run_ranks(2, save_and_load_on, folders[2], [folders[1], folders[3]])
    return {
        (1, 2): [loaded[0] for loaded in on_two],
        (3, 2): [loaded[1] for loaded in on_two],
        (2, 3): run_ranks(3, load_on, folders[2]),
        (2, 1): [load_on(Ranks.single(), folders[2])],
        (3, 1): [load_on(Ranks.single(), folders[3])],
    }


@pytest.fixture(scope="module")
def by_three(folders: dict[int, Path], round_trips: object) -> Checkpoints:
    """One reader of what three ranks wrote."""
    return Checkpoints(folders[3], Ranks.single(), keep=2)


@pytest.mark.parametrize("rows", TABLES)
@pytest.mark.parametrize("trip", [(1, 2), (2, 1), (2, 3), (3, 2), (3, 1)])
def test_any_number_of_ranks_reads_what_any_number_wrote(
    round_trips: dict[tuple[int, int], list[dict[int, Loaded]]], trip: tuple[int, int], rows: int
) -> None:
    loaded = [by_rows[rows] for by_rows in round_trips[trip]]
    assert len(loaded) == trip[1]
    for name, table in whole_tables(rows).items():
        together = torch.cat([state.sharded[name] for _, state in loaded])
        assert together.dtype == table.dtype
        assert torch.equal(together, table), name
    for progress, state in loaded:
        assert progress == {"epoch": rows, "seconds": 0.1, "worker": 0}
        for name, tensor in whole_network().items():
            assert torch.equal(state.replicated[name], tensor), name
        assert torch.signbit(state.replicated["relations"])[0].tolist() == [False, True, False]


@pytest.mark.usefixtures("round_trips")
def test_a_checkpoint_is_one_safetensors_file_a_rank_and_a_manifest(folders: dict[int, Path]) -> None:
    folder = folders[3] / "rows-4"
    ranks = [f"rank-0000{rank}-of-00003.safetensors" for rank in range(3)]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *ranks]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [(file["low"], file["high"]) for file in manifest["files"]] == [(0, 2), (2, 4), (4, 4)]
    assert manifest["tensors"]["entities"] == {"dtype": "bfloat16", "shape": [4, 6], "sharded": True}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {folder.stat().st_mode & 0o666}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bounds=st.tuples(st.integers(0, 7), st.integers(0, 7)), at_once=st.integers(1, 60))
def test_rows_are_read_by_global_range(
    by_three: Checkpoints, monkeypatch: pytest.MonkeyPatch, bounds: tuple[int, int], at_once: int
) -> None:
    monkeypatch.setattr(checkpoint_files, "_BYTES_AT_ONCE", at_once)
    low, high = sorted(bounds)
    for name, table in whole_tables(7).items():
        assert torch.equal(by_three.read_rows("rows-7", name, low, high), table[low:high])


def test_rows_of_replicated_tensors_are_read_too(by_three: Checkpoints) -> None:
    assert by_three.read_rows("rows-7", "relations", 1, 2).tolist() == [[pytest.approx(1e-38), 2.0, -3.0]]
    assert by_three.describe("rows-7").tensors["relations"].shape == [2, 3]


@pytest.mark.parametrize(
    ("tensor", "low", "high", "text"),
    [
        ("entitys", 0, 1, "has no rows of 'entitys'; it has empty, entities, optimizer.mean"),
        ("batches", 0, 1, "has no rows of 'batches'"),
        ("entities", 3, 8, "rows 3 to 8 of entities in checkpoint rows-7: it has 7"),
        ("entities", 3, 2, "rows 3 to 2"),
        ("entities", -1, 2, "rows -1 to 2"),
    ],
)
def test_rows_that_do_not_exist_are_refused(by_three: Checkpoints, tensor: str, low: int, high: int, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        by_three.read_rows("rows-7", tensor, low, high)


def one(value: float, rows: int = 3) -> State:
    return State({"entities": torch.full((rows, 2), value)}, {}, rows)


def value_of(checkpoints: Checkpoints, name: str) -> float:
    state = one(-1.0)
    checkpoints.load(name, state)
    (value,) = set(state.sharded["entities"].flatten().tolist())
    return value


def test_a_part_of_a_checkpoint_is_enough(by_three: Checkpoints) -> None:
    state = State({"entities": torch.zeros(7, 6, dtype=torch.bfloat16)}, {}, 7)
    by_three.load("rows-7", state)
    assert torch.equal(state.sharded["entities"], whole_tables(7)["entities"])


def test_parameters_are_filled_in_place(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Ranks.single(), keep=2)
    checkpoints.save("a", State({}, {"weight": torch.tensor([1.0, 2.0])}, 0), {})
    weight = torch.nn.Parameter(torch.zeros(2))
    checkpoints.load("a", State({}, {"weight": weight}, 0))
    assert weight.tolist() == [1.0, 2.0]


def test_slices_and_transposes_are_saved_as_they_read(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(4, 3)
    checkpoints = Checkpoints(tmp_path, Ranks.single(), keep=2)
    checkpoints.save("a", State({"columns": table.T}, {"part": table[1:3, 1:], "same": table[1:3, 1:]}, 3), {})
    checkpoints.wait()
    assert checkpoints.read_rows("a", "columns", 1, 2).tolist() == [[1.0, 4.0, 7.0, 10.0]]
    assert checkpoints.read_rows("a", "part", 0, 2).tolist() == [[4.0, 5.0], [7.0, 8.0]]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (
            State({"entities": torch.zeros(4, 2)}, {}, 4),
            r"entities is sharded float32 \[3, 2\] in the checkpoint, sharded float32 \[4, 2\] here",
        ),
        (State({"entities": torch.zeros(3, 5)}, {}, 3), r"\[3, 2\] in the checkpoint, sharded float32 \[3, 5\] here"),
        (State({"entities": torch.zeros(3, 2).bfloat16()}, {}, 3), r"sharded float32 .*, sharded bfloat16 \[3, 2\]"),
        (State({}, {"entities": torch.zeros(3, 2)}, 3), r"replicated float32 \[3, 2\] here"),
        (State({"optimizer.sum": torch.zeros(3, 1)}, {}, 3), r"optimizer.sum is missing in the checkpoint"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_left_alone(tmp_path: Path, state: State, text: str) -> None:
    checkpoints = Checkpoints(tmp_path, Ranks.single(), keep=2)
    checkpoints.save("a", State(one(1.0).sharded, {"relations": torch.ones(2)}, 3), {})
    fitting = torch.zeros(2)
    with pytest.raises(CheckpointError, match=text):
        checkpoints.load("a", State(state.sharded, {"relations": fitting} | state.replicated, state.rows))
    assert fitting.tolist() == [0.0, 0.0]


def test_a_shard_of_the_wrong_length_is_refused_at_once(tmp_path: Path) -> None:
    state = State({"entities": torch.zeros(3, 2)}, {}, 4)
    with pytest.raises(CheckpointError, match=r"entities has shape \[3, 2\] on rank 0, which owns 4 of 4 rows"):
        Checkpoints(tmp_path, Ranks.single(), keep=2).save("a", state, {})
    assert list(tmp_path.iterdir()) == []


def test_a_name_used_twice_is_refused(tmp_path: Path) -> None:
    state = State({"a": torch.zeros(1, 2)}, {"a": torch.zeros(2)}, 1)
    with pytest.raises(CheckpointError, match="a is both sharded and replicated"):
        Checkpoints(tmp_path, Ranks.single(), keep=2).save("a", state, {})


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "step-1.replaced"])
def test_a_checkpoint_has_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="must consist of letters"):
        Checkpoints(tmp_path, Ranks.single(), keep=2).save(name, one(1.0), {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.zeros(1), {1, 2}, b"bytes"])
def test_progress_that_is_not_json_is_refused_at_once(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        Checkpoints(tmp_path, Ranks.single(), keep=2).save("a", one(1.0), {"mrr": value})


def test_progress_comes_back_as_it_was_when_saved(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Ranks.single(), keep=2)
    progress: dict[str, Any] = {"mrr": 0.1 + 0.2, "seed": 2**64 - 1, "best": None, "rates": [0.5], "läuft": True}
    checkpoints.save("a", one(1.0), progress)
    progress["mrr"] = 9
    loaded = checkpoints.load("a", one(0.0))
    assert loaded == {"mrr": 0.30000000000000004, "seed": 2**64 - 1, "best": None, "rates": [0.5], "läuft": True}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Files are written only once this is set."""
    opened = threading.Event()
    write = storage.write_file

    def write_later(*args: Any) -> Any:
        assert opened.wait(60)
        return write(*args)

    monkeypatch.setattr(storage, "write_file", write_later)
    yield opened
    opened.set()


def test_training_goes_on_while_files_are_written(tmp_path: Path, gate: threading.Event) -> None:
    checkpoints = Checkpoints(tmp_path, Ranks.single(), keep=2)
    state = one(1.0)
    checkpoints.save("a", state, {})
    state.sharded["entities"].fill_(2.0)
    assert not (tmp_path / "a" / "manifest.json").exists()
    gate.set()
    checkpoints.wait()
    assert (tmp_path / "a" / "manifest.json").exists()
    assert value_of(checkpoints, "a") == 1.0


def test_a_second_save_awaits_the_first(tmp_path: Path, gate: threading.Event) -> None:
    checkpoints = Checkpoints(tmp_path, Ranks.single(), keep=2)
    checkpoints.save("a", one(1.0), {})
    threading.Timer(0.2, gate.set).start()
    checkpoints.save("b", one(2.0), {})
    assert (tmp_path / "a" / "manifest.json").exists()
    assert checkpoints.newest() == "b"


def test_a_checkpoint_stays_readable_while_its_successor_of_the_same_name_is_written(
    tmp_path: Path, gate: threading.Event
) -> None:
    gate.set()
    checkpoints = Checkpoints(tmp_path, Ranks.single(), keep=2)
    checkpoints.save("a", one(1.0), {})
    checkpoints.wait()
    gate.clear()
    checkpoints.save("a", one(2.0), {})
    deadline = time.monotonic() + 30
    while not (tmp_path / "a.replaced").exists():
        assert time.monotonic() < deadline, "the old checkpoint was not set aside"
        time.sleep(0.01)
    reader = Checkpoints(tmp_path, Ranks.single(), keep=2)
    assert reader.newest() == "a.replaced"
    assert value_of(reader, "a.replaced") == 1.0
    gate.set()
    checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert value_of(checkpoints, "a") == 2.0


def folders_after(folder: Path, keep: int, bests: list[bool]) -> list[str]:
    checkpoints = Checkpoints(folder, Ranks.single(), keep)
    for step, best in enumerate(bests):
        checkpoints.save(f"step-{step}", one(float(step)), {}, best=best)
    checkpoints.wait()
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("keep", "bests", "kept"),
    [
        (2, [False] * 4, ["step-2", "step-3"]),
        (2, [True, False, False, False], ["step-0", "step-2", "step-3"]),
        (2, [True, True, False, False, False], ["step-1", "step-3", "step-4"]),
        (2, [True, False, False, True], ["step-2", "step-3"]),
        (1, [True, False], ["step-0", "step-1"]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path: Path, keep: int, bests: list[bool], kept: list[str]) -> None:
    assert folders_after(tmp_path, keep, bests) == kept
    checkpoints = Checkpoints(tmp_path, Ranks.single(), keep)
    assert checkpoints.newest() == kept[-1]
    marked = [step for step, best in enumerate(bests) if best]
    assert checkpoints.best() == (f"step-{marked[-1]}" if marked else None)


def test_the_newest_is_the_last_saved_whatever_its_name(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path, Ranks.single(), keep=2)
    first.save("step-9", one(9.0), {})
    first.wait()
    later = Checkpoints(tmp_path, Ranks.single(), keep=2)
    later.save("step-10", one(10.0), {})
    assert later.newest() == "step-10"


def test_nothing_is_deleted_before_the_new_one_is_committed(tmp_path: Path, gate: threading.Event) -> None:
    gate.set()
    checkpoints = Checkpoints(tmp_path, Ranks.single(), keep=1)
    checkpoints.save("a", one(1.0), {})
    checkpoints.wait()
    gate.clear()
    checkpoints.save("b", one(2.0), {})
    assert Checkpoints(tmp_path, Ranks.single(), keep=1).newest() == "a"
    gate.set()
    checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_other_peoples_files_survive_deletion(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Ranks.single(), keep=1)
    checkpoints.save("a", one(1.0), {})
    checkpoints.wait()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.png").write_bytes(b"mine")
    checkpoints.save("b", one(2.0), {})
    checkpoints.wait()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["notes.txt"]
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["loss.png"]


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        checkpoints = Checkpoints(folder, Ranks.single(), keep=2)
        assert checkpoints.newest() is None
        assert checkpoints.best() is None
    with pytest.raises(CheckpointError, match=r"step-1 is not a checkpoint: it has no manifest\.json"):
        checkpoints.load("step-1", one(0.0))
    assert not (tmp_path / "absent").exists()


def test_at_least_one_is_kept(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep is 0"):
        Checkpoints(tmp_path, Ranks.single(), keep=0)


def memory_mb(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def growths(ranks: Ranks, folder: str) -> tuple[float, float]:
    """MB by which a process grows while it saves 122 MB, and while it loads them."""
    state = State({"entities": torch.ones(500_000, 64)}, {}, 500_000)
    checkpoints = Checkpoints(Path(folder), ranks, keep=2)

    def growth(work: Callable[[], object]) -> float:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = memory_mb("VmRSS")
        work()
        checkpoints.wait()
        return memory_mb("VmHWM") - before

    return growth(lambda: checkpoints.save("a", state, {})), growth(lambda: checkpoints.load("a", state))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")
def test_saving_takes_one_copy_of_the_state_and_loading_none(tmp_path: Path) -> None:
    # In a new process: one that has run other tests keeps memory that they have freed.
    ((saving, loading),) = run_ranks(1, growths, str(tmp_path), fresh=True)
    assert 110 < saving < 160
    assert loading < 60
    shutil.rmtree(tmp_path / "a")


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="tables on disk need Linux")
def test_a_table_on_disk_is_written_and_read_without_a_copy(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    rows = MappedFiles(tmp_path / "rows").zeros(500_000, 64, torch.float32)  # 122 MB
    state = State({"entities": rows.fill_(1.0)}, {}, 500_000, on_disk=True)
    checkpoints, most = Checkpoints(tmp_path / "run", Ranks.single(), keep=2), []

    def look(_: object = None) -> None:
        most.append(memory_mb("RssAnon"))

    before, stopped = memory_mb("RssAnon"), threading.Event()
    watch = threading.Thread(target=lambda: [look() for _ in iter(lambda: stopped.wait(0.002), True)])
    watch.start()
    checkpoints.save("a", state, {})
    rows.fill_(2.0)  # training goes on
    checkpoints.load("a", state)
    stopped.set()
    watch.join()
    assert max(most) - before < 60  # a few parts of 16 MB
    assert bool((rows == 1.0).all())


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="tables on disk need Linux")
def test_an_error_of_a_table_on_disk_is_raised_by_the_save_itself(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    state = State({"entities": MappedFiles(tmp_path / "rows").zeros(3, 2, torch.float32)}, {}, 3, on_disk=True)
    state.sharded["entities"][1, 1] = math.nan
    with pytest.raises(NonFiniteError, match="entities"):
        Checkpoints(tmp_path / "run", Ranks.single(), keep=2).save("a", state, {})


def test_the_data_types_of_manifests_are_those_of_tensor_files() -> None:
    assert {str(dtype).removeprefix("torch."): dtype.itemsize for dtype in DTYPES.values()} == manifest._BYTES
    assert manifest.MAX_DIMENSIONS == MAX_DIMENSIONS
