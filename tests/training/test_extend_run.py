"""Growth of the graph of a run: what the new run records, what is refused, and that a failure leaves nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from distkg.cli import app
from distkg.config import load_config
from distkg.data.storage.objects import objects_at
from distkg.data.storage.working_copy import folder_at
from distkg.embedding.scorers.base import SCORERS, Options, Scorer
from distkg.foundation.model_files import make_model, save_model
from distkg.sharding.checkpoint.checkpoint import CheckpointError
from distkg.sharding.ranks import Ranks
from distkg.training import extend as extend_module
from distkg.training.extend import FIRST
from distkg.training.run import train_on_rank
from distkg.training.run_dir import RunFolder

KEYS = ["model.name=distmult", "model.dim=8", "train.epochs=2", "train.batch_size=32", "train.workers=1"]


def run_cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on ``tmp_path / "s"``, with new facts in ``tmp_path / "new.tsv"``."""
    (tmp_path / "old").mkdir()
    facts = [f"e{i % 20}\tr{i % 3}\te{(i * 7 + 1) % 20}\n" for i in range(60)]
    for split, lines in (("train", facts[:50]), ("valid", facts[50:55]), ("test", facts[55:])):
        (tmp_path / "old" / f"{split}.tsv").write_text("".join(lines))
    (tmp_path / "new.tsv").write_text("late\tr0\te1\ne2\tr1\tlate\n")
    assert run_cli("prepare", tmp_path / "old", "--store", tmp_path / "s").exit_code == 0
    train_on_rank(load_config("preset:demo", [*KEYS, f"data.store={tmp_path}/s"]), tmp_path / "r", Ranks.single())
    return tmp_path / "r"


def extend(run: Path, *more: str | Path, new: str = "new.tsv") -> Result:
    folder = run.parent
    return run_cli("extend", run, folder / new, "--store", folder / "t", "--to", folder / "g", *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_on_the_command_line(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    result = extend(run, "--set", "train.epochs=3", "--set", "train.old_rows=frozen")
    assert result.exit_code == 0, result.output
    assert "new: 1 entities (1 with rows from their neighbours), 0 relations" in result.stdout
    assert f"distkg train {tmp_path}/g/config.yaml --run {tmp_path}/g --resume" in result.stdout.replace("\n", "")
    assert contents(run) == before
    for reader in (["evaluate", tmp_path / "g"], ["plan", tmp_path / "g" / "config.yaml"]):
        assert run_cli(*reader).exit_code == 0
    answers = run_cli("predict", tmp_path / "g", "--anchor", "late", "--relation", "r0", "--json")
    assert len(json.loads(answers.stdout)) == 10
    config = RunFolder(tmp_path / "g").read_config()
    assert (config.train.epochs, config.train.old_rows, config.data.store) == (3, "frozen", str(tmp_path / "t"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "new.tsv", "old", "r", "s", "t"]


def test_the_origin_is_recorded_from_the_first_checkpoint_to_the_result(run: Path, tmp_path: Path) -> None:
    best = json.loads((run / "result.json").read_text())["best_checkpoint"]
    manifest = (run / "checkpoints" / best / "manifest.json").read_bytes()
    origin = {
        "run": str(run), "checkpoint": best, "sha256": hashlib.sha256(manifest).hexdigest(), "rows": "random",
    }  # fmt: skip
    assert extend(run, "--first-rows", "random").exit_code == 0
    grown = tmp_path / "g"
    assert json.loads((grown / "provenance.json").read_text())["grown_from"] == origin
    first = json.loads((grown / "checkpoints" / FIRST / "manifest.json").read_text())
    assert first["progress"]["provenance"]["grown_from"] == origin
    shutil.rmtree(run)
    result = train_on_rank(RunFolder(grown).read_config(), grown, Ranks.single(), resume=True)
    assert result["grown_from"] == json.loads((grown / "result.json").read_text())["grown_from"] == origin
    assert json.loads((grown / "provenance.json").read_text())["grown_from"] == origin
    last = json.loads((grown / "checkpoints" / "step-000000004" / "manifest.json").read_text())
    assert last["progress"]["provenance"]["grown_from"] == origin


def test_a_run_that_lost_its_first_checkpoint_does_not_start_from_nothing(run: Path, tmp_path: Path) -> None:
    assert extend(run).exit_code == 0
    shutil.rmtree(tmp_path / "g" / "checkpoints" / FIRST)
    with pytest.raises(CheckpointError, match=f"holds no checkpoint, and this run had some .*{FIRST}"):
        train_on_rank(RunFolder(tmp_path / "g").read_config(), tmp_path / "g", Ranks.single(), resume=True)


def refused(run: Path, message: str, *more: str | Path, new: str = "new.tsv") -> None:
    """The message is on stderr, and neither a store nor a run was made."""
    folder = run.parent
    before = sorted(path.name for path in folder.iterdir())
    result = extend(run, *more, new=new)
    assert result.exit_code == 2, result.output
    assert message in result.stderr.replace("\n", " ")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_what_cannot_be_extended_is_refused(run: Path, tmp_path: Path) -> None:
    refused(run, "model.dim: 8 in the run, 16 now", "--set", "model.dim=16")
    refused(run, "optimizer.name:", "--set", "optimizer.name=adam")
    refused(run, "train.epoch: is not a key of train", "--set", "train.epoch=3")
    refused(run, "there is no file or folder", new="none.tsv")
    refused(run, "no new facts, as all are in store", new="old/train.tsv")
    refused(tmp_path / "old", "is no run folder")
    save_model(make_model("ultra", {"width": 4, "layers": 2, "hidden": 4}), tmp_path / "model")
    refused(tmp_path / "model", "holds a foundation model, which has no rows of entities")
    save_model(make_model("trix_relations", {}), tmp_path / "relations")
    refused(tmp_path / "relations", "holds a foundation model, which has no rows of entities")
    refused(run, f"{run} exists already", "--to", run)
    (tmp_path / "file").write_text("x")
    refused(run, f"{tmp_path}/file exists already", "--to", tmp_path / "file")
    refused(run, "must not lie in each other", "--to", tmp_path / "t" / "run")
    refused(run, "already holds a finished store", "--store", tmp_path / "s")


def test_another_store_in_the_place_of_the_runs_own_is_refused_and_a_moved_one_found(run: Path, tmp_path: Path) -> None:
    (tmp_path / "s").rename(tmp_path / "moved")
    refused(run, "If it has moved, name its new place")
    assert run_cli("prepare", tmp_path / "old", "--store", tmp_path / "s", "--seed", "1").exit_code == 0
    refused(run, "entities.parquet of store")
    assert extend(run, "--old-store", tmp_path / "moved").exit_code == 0


def test_a_damaged_checkpoint_is_refused(run: Path) -> None:
    for file in run.glob("checkpoints/*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-8])
    refused(run, "every checkpoint in")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize(
    "place",
    [
        "distkg.sharding.checkpoint.storage.write_file",
        "distkg.sharding.checkpoint.storage.write_manifest",
        "distkg.training.extend.write_provenance",
        "distkg.training.extend.os.rename",
        "distkg.data.assemble.Manifest",
        "distkg.embedding.growth.new_rows.RowMaker.fill",
    ],
)
def test_a_failure_at_any_point_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise error

    before = contents(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(place, fail)
        assert extend(run).exit_code != 0
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.tsv", "old", "r", "s"]
    assert extend(run).exit_code == 0


def test_a_process_that_dies_leaves_no_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the staged folder is read, and the same command with another store succeeds."""
    with monkeypatch.context() as patched:
        patched.setattr(extend_module.shutil, "rmtree", lambda *arguments, **more: None)
        patched.setattr(
            "distkg.training.extend.os.rename", lambda *arguments: (_ for _ in ()).throw(OSError(5, "gone"))
        )
        assert extend(run).exit_code == 2
    assert not (tmp_path / "g").exists()
    assert extend(run).exit_code == 0
    assert run_cli("evaluate", tmp_path / "g").exit_code == 0


class Wide(Scorer):
    """A scorer of a plug-in whose queries are no entity rows."""

    def __init__(self, dim: int, options: Options) -> None:
        super().__init__(dim, options)
        self.entity_width = 2 * dim
        self.bend = torch.nn.Linear(2 * dim, dim)

    def query(self, anchor: torch.Tensor, relation: torch.Tensor) -> torch.Tensor:
        return self.bend(anchor) * relation

    def candidates(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[..., : self.dim]


def test_the_scorer_of_a_plug_in_grows(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORERS._entries, "wide", Wide)
    config = load_config("preset:demo", [*KEYS, "model.name=wide", f"data.store={tmp_path}/s"])
    train_on_rank(config, tmp_path / "wide", Ranks.single())
    result = extend(tmp_path / "wide", "--set", "train.old_rows=frozen")
    assert result.exit_code == 0, result.output
    assert "1 with rows from their neighbours" in result.stdout
    grown = tmp_path / "g"
    trained = train_on_rank(RunFolder(grown).read_config(), grown, Ranks.single(), resume=True)
    assert trained["metrics"]["test"]["queries"] == 10


def in_store(result: Result) -> str:
    return result.output.replace("\n", "")


def test_a_run_is_extended_into_an_object_store(
    run: Path, tmp_path: Path, bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTKG_SCRATCH", str(tmp_path / "scratch"))
    address = bucket("runs/g")
    result = extend(run, "--to", address)
    assert result.exit_code == 0, result.output
    names = {entry.name for entry in objects_at(address).entries()}
    (rows,) = {name for name in names if name.endswith(".safetensors")}
    assert rows.startswith(f"checkpoints/{FIRST}/attempt-")
    others = {"config.yaml", "provenance.json", "checkpoints.jsonl", f"checkpoints/{FIRST}/manifest.json"}
    assert names == others | {rows}
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))
    config = bucket("runs/g/config.yaml")
    assert f"distkg train {config} --run {address} --resume" in in_store(result)
    assert run_cli("plan", config).exit_code == 0
    answers = run_cli("predict", address, "--anchor", "late", "--relation", "r0", "--json")
    assert len(json.loads(answers.stdout)) == 10
    with folder_at(address) as folder:
        result_of_run = train_on_rank(RunFolder(folder).read_config(), folder, Ranks.single(), resume=True)
    assert result_of_run["train"]["epochs"] == 2

    again = extend(run, "--to", address, "--store", str(tmp_path / "t2"))
    assert again.exit_code == 2
    assert "holds files. Name a new folder for the run on the grown graph" in in_store(again)
    assert not (tmp_path / "t2").exists()
    inside = extend(run, "--to", bucket("all/t/g"), "--store", bucket("all/t"))
    assert inside.exit_code == 2
    assert "must not lie in each other" in in_store(inside)


def test_a_failed_extension_leaves_nothing_in_an_object_store(
    run: Path, tmp_path: Path, bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTKG_SCRATCH", str(tmp_path / "scratch"))

    def fails(*_: Any) -> None:
        raise OSError("no more")

    monkeypatch.setattr(extend_module, "write_provenance", fails)
    assert extend(run, "--to", bucket("runs/g")).exit_code == 2
    assert objects_at(bucket("runs/g")).entries() == []
    assert not (tmp_path / "t").exists()
