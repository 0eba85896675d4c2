"""Checkpoints in an object store: any number of ranks, every interruption, and listings that lag."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import run_ranks

from distkg.data.storage import objects
from distkg.data.storage.file_changes import changed
from distkg.data.storage.objects import objects_at
from distkg.data.storage.working_copy import folder_at
from distkg.sharding.checkpoint.checkpoint import CheckpointError, Checkpoints, State
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards
from tests.faulty_s3 import FaultyS3, listed

Bucket = Callable[[str], str]
Faulty = tuple[FaultyS3, Bucket]
ROWS, WIDTH = 7, 3


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTKG_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(objects, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(objects, "_LONGEST_PAUSE", 0.05)
    return tmp_path / "scratch"


def table(value: float) -> torch.Tensor:
    return torch.arange(ROWS * WIDTH, dtype=torch.float32).reshape(ROWS, WIDTH) + value


def state_of(ranks: Ranks, value: float) -> State:
    low, high = Shards(ROWS, ranks.size).range(ranks.rank)
    return State({"entities": table(value)[low:high].clone()}, {"relations": torch.tensor([value])}, ROWS)


def blank(ranks: Ranks) -> State:
    return state_of(ranks, -100.0)


def save(ranks: Ranks, address: str, values: dict[str, float], keep: int = 2) -> str | None:
    """Save checkpoints by name, and note each as a run does."""
    with folder_at(address) as run:

        def note(name: str) -> None:
            with (run / "checkpoints.jsonl").open("a") as file:
                file.write(json.dumps({"checkpoint": name}) + "\n")
            changed(run / "checkpoints.jsonl")

        checkpoints = Checkpoints(run / "checkpoints", ranks, keep, on_commit=note)
        for name, value in values.items():
            checkpoints.save(name, state_of(ranks, value), {"value": value})
        checkpoints.wait()
        return checkpoints.last


def load(ranks: Ranks, address: str) -> tuple[str | None, float | None, list[str]]:
    """Name and value of the newest checkpoint, whose tensors are compared; and what was skipped."""
    notices: list[str] = []
    with folder_at(address) as run:
        checkpoints = Checkpoints(run / "checkpoints", ranks, 2, notice=notices.append)
        name = checkpoints.newest()
        if name is None:
            return None, None, notices
        state = blank(ranks)
        value = checkpoints.load(name, state)["value"]
        expected = state_of(ranks, value)
        assert torch.equal(state.sharded["entities"], expected.sharded["entities"])
        assert torch.equal(state.replicated["relations"], expected.replicated["relations"])
        rows = checkpoints.open_table(name, "entities", (ROWS, WIDTH), torch.float32)
        checkpoints.drop_fetched()
        assert torch.equal(rows.take(torch.tensor([6, 0, 3, 6])), table(value)[[6, 0, 3, 6]])
        assert torch.equal(checkpoints.read_rows(name, "entities", 1, 6), table(value)[1:6])
        checkpoints.drop_fetched()
    return name, value, notices


def names(address: str) -> list[str]:
    return sorted(entry.name for entry in objects_at(address).entries())


def checkpoint_names(address: str) -> list[str]:
    found = {name.split("/")[1] for name in names(address) if name.startswith("checkpoints/")}
    return sorted(found)


def test_three_ranks_write_and_one_two_and_four_read(bucket: Bucket, scratch: Path) -> None:
    address = bucket("runs/x")
    assert run_ranks(3, save, address, {"a": 1.0, "b": 2.0, "c": 3.0}) == ["c"] * 3
    assert checkpoint_names(address) == ["b", "c"]
    for size in (2, 4):
        assert run_ranks(size, load, address) == [("c", 3.0, [])] * size
    assert load(Ranks.single(), address) == ("c", 3.0, [])
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


def test_a_downloaded_run_is_read_like_any_other(bucket: Bucket, tmp_path: Path) -> None:
    save(Ranks.single(), bucket("x"), {"a": 1.0, "b": 2.0})
    store = objects_at(bucket("x"))
    for entry in store.entries("checkpoints/"):
        path = tmp_path / "run" / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        store.download(entry.name, path)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", Ranks.single(), keep=1)
    assert checkpoints.newest() == "b"
    state = blank(Ranks.single())
    checkpoints.load("b", state)
    assert torch.equal(state.sharded["entities"], table(2.0))
    checkpoints.save("c", state_of(Ranks.single(), 3.0), {})
    checkpoints.wait()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["c"]


def test_a_checkpoint_of_the_same_name_replaces_the_first_at_once(bucket: Bucket) -> None:
    address = bucket("x")
    save(Ranks.single(), address, {"a": 1.0})
    first = names(address)
    save(Ranks.single(), address, {"a": 2.0})
    assert load(Ranks.single(), address)[:2] == ("a", 2.0)
    assert len(names(address)) == len(first)
    assert set(names(address)) & set(first) == {"checkpoints/a/manifest.json", "checkpoints.jsonl"}


class Died(BaseException):
    """Stands for the end of a process."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # a thread that dies, too
def test_a_process_that_dies_at_any_request_leaves_the_old_checkpoint_or_the_new(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever request the process dies at, before or after it is served, the newest checkpoint is whole."""
    from distkg.data.storage import s3_objects

    original = s3_objects.S3Objects._request
    outcomes, left, at = set(), [0], 0

    def dying(folder: Any, work: Any, what: str) -> Any:
        mutates = not what.startswith(("read", "list", "look"))
        if mutates and left[0] == 0:
            raise Died
        value = original(folder, work, what)
        left[0] -= mutates
        if mutates and left[0] == 0 and after:
            raise Died
        return value

    while at < 30:
        for after in (False, True):
            address = bucket(f"x-{at}-{after}")
            save(Ranks.single(), address, {"a": 1.0, "b": 2.0})
            with monkeypatch.context() as patches:
                patches.setattr(s3_objects.S3Objects, "_request", dying)
                left[0] = at
                try:
                    save(Ranks.single(), address, {"c": 3.0})
                    done = True
                except Died:
                    done = False
            name, value, notices = load(Ranks.single(), address)
            assert (name, value) in {("b", 2.0), ("c", 3.0)}
            assert notices == []
            outcomes.add(name)
            save(Ranks.single(), address, {"d": 4.0})
            assert load(Ranks.single(), address)[:2] == ("d", 4.0)
            files = [part for part in names(address) if part.endswith(".safetensors")]
            assert len(files) == 2, "remains of the interruption are not deleted"
        if done:
            break
        at += 1
    assert outcomes == {"b", "c"}
    assert 3 <= at < 30


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "manifest", "no-manifest"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before_it(bucket: Bucket, damage: str) -> None:
    address = bucket("x")
    save(Ranks.single(), address, {"a": 1.0, "b": 2.0})
    store = objects_at(address)
    file = next(name for name in names(address) if name.startswith("checkpoints/b/attempt-"))
    name = "checkpoints/b/manifest.json" if "manifest" in damage else file
    content = bytearray(store.read(name) or b"")
    if damage in ("lose", "no-manifest"):
        store.delete([name])
    elif damage == "cut":
        store.write(name, bytes(content[:-1]))
    else:
        content[len(content) // 2] ^= 1
        store.write(name, bytes(content))
    found, value, notices = load(Ranks.single(), address)
    assert (found, value) == ("a", 1.0)
    if damage == "no-manifest":
        assert notices == []  # it was never committed, as far as anybody can tell
        return
    assert len(notices) == 1
    assert "checkpoint b is skipped" in notices[0]


def test_all_checkpoints_damaged_is_an_error_and_deletes_nothing(bucket: Bucket) -> None:
    address = bucket("x")
    save(Ranks.single(), address, {"a": 1.0})
    objects_at(address).write("checkpoints/a/manifest.json", b"{}")
    before = names(address)
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        load(Ranks.single(), address)
    assert names(address) == before


@pytest.mark.parametrize("fault", ["unavailable", "throttled", "cut", "lost", "half"])
def test_faults_that_pass_change_nothing(faulty_bucket: Faulty, fault: str) -> None:
    proxy, address = faulty_bucket
    proxy.policy = lambda method, path, number: fault if number % 3 == 2 else None
    values = {"a": 1.0, "b": 2.0, "c": 3.0}
    if fault == "lost":  # the longest pauses are those of ranks, which take them one after the other
        assert run_ranks(2, save, address("x"), values) == ["c", "c"]
        assert run_ranks(3, load, address("x")) == [("c", 3.0, [])] * 3
    else:
        assert save(Ranks.single(), address("x"), values) == "c"
        assert load(Ranks.single(), address("x")) == ("c", 3.0, [])
    assert len(proxy.injected) > 10


def test_a_listing_that_lags_hides_and_loses_nothing(faulty_bucket: Faulty) -> None:
    """Every listing is answered as it was answered the time before."""
    proxy, address = faulty_bucket
    proxy.policy = lambda method, path, number: "stale" if listed(path) else None
    for round_ in range(4):
        save(Ranks.single(), address("x"), {f"a{round_}": float(round_), f"b{round_}": round_ + 0.5})
        assert load(Ranks.single(), address("x")) == (f"b{round_}", round_ + 0.5, [])
    assert "stale" in proxy.injected


def test_what_a_save_costs_does_not_grow_with_the_run(faulty_bucket: Faulty) -> None:
    proxy, address = faulty_bucket
    costs = []
    with folder_at(address("x")) as run:
        checkpoints = Checkpoints(run / "checkpoints", Ranks.single(), 2)
        for step in range(12):
            before = len(proxy.requests)
            checkpoints.save(f"step-{step}", state_of(Ranks.single(), float(step)), {})
            checkpoints.wait()
            costs.append(len(proxy.requests) - before)
    assert costs[-1] == costs[3] <= 20


def test_a_store_that_stays_away_ends_the_save_and_the_next_one_works(
    faulty_bucket: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, address = faulty_bucket
    with folder_at(address("x")) as run:
        checkpoints = Checkpoints(run / "checkpoints", Ranks.single(), 2)
        checkpoints.save("a", state_of(Ranks.single(), 1.0), {})
        checkpoints.wait()
        monkeypatch.setattr(objects, "PATIENCE_SECONDS", 0.2)
        proxy.policy = lambda method, path, number: "unavailable" if method == "PUT" else None
        checkpoints.save("b", state_of(Ranks.single(), 2.0), {})
        with pytest.raises(OSError, match=r"write checkpoints/b/.* failed \d+ times"):
            checkpoints.wait()
        proxy.policy = lambda method, path, number: None
        checkpoints.save("c", state_of(Ranks.single(), 3.0), {"value": 3.0})
        checkpoints.wait()
    assert {"checkpoints/a/manifest.json", "checkpoints/c/manifest.json"} <= set(names(address("x")))
    assert "checkpoints/b/manifest.json" not in names(address("x"))
    assert load(Ranks.single(), address("x"))[:2] == ("c", 3.0)
