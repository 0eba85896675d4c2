"""A run and its store on the command line: prepared again, moved, and what each command says; without Ray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from distkg.cli import app
from distkg.config import load_config
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

ENTITIES, RELATIONS = 45, 4


def run_cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_graph(folder: Path) -> None:
    """Facts with a rule that a model learns: relation r leads from p{i} to p{i + r + 1}."""
    triples = [(i, r, (i + r + 1) % ENTITIES) for i in range(ENTITIES) for r in range(RELATIONS)]
    order = np.random.default_rng(0).permutation(len(triples))
    folder.mkdir()
    for split, rows in (("train", order[30:]), ("valid", order[:15]), ("test", order[15:30])):
        text = "".join(f"p{h}\tr{r}\tp{t}\n" for h, r, t in (triples[row] for row in rows))
        (folder / f"{split}.tsv").write_text(text)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on ``tmp_path / "s"``."""
    write_graph(tmp_path / "data")
    assert run_cli("prepare", tmp_path / "data", "--store", tmp_path / "s").exit_code == 0
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "model: {name: distmult, dim: 16}\nobjective: {name: one_vs_all}\n"
        "train: {epochs: 3, batch_size: 64}\nevaluate: {every: 2}\n"
    )
    train_on_rank(load_config(str(config), [f"data.store={tmp_path / 's'}"]), tmp_path / "r", Ranks.single())
    return tmp_path / "r"


def readers(run: Path, *more: str | Path) -> dict[str, list[str | Path]]:
    """Every command that reads a run."""
    folder = run.parent
    return {
        "evaluate": ["evaluate", run, "--json", *more],
        "predict": ["predict", run, "--anchor", "p1", "--relation", "r1", "--top", "3", "--json", *more],
        "export": ["export", run, "--to", folder / "exported", *more],
        "report": ["report", run, *more],
    }


def mrr(*more: str | Path, run: Path) -> float:
    result = run_cli("evaluate", run, "--json", *more)
    assert result.exit_code == 0, result.output
    return float(json.loads(result.stdout)["metrics"]["mrr"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_labels_replaced_under_the_same_manifest_are_refused(run: Path, tmp_path: Path) -> None:
    before, labels = contents(run), pq.read_table(tmp_path / "s" / "entities.parquet")
    turned = labels.set_column(1, "label", labels["label"].combine_chunks()[::-1])
    pq.write_table(turned, tmp_path / "s" / "entities.parquet")
    commands = readers(run)
    resume = ["train", tmp_path / "tiny.yaml", "--set", f"data.store={tmp_path / 's'}", "--run", run, "--resume"]
    commands["resume"] = [*resume, "--set", "train.epochs=9"]
    for name, arguments in commands.items():
        result = run_cli(*arguments)
        assert (name, result.exit_code) == (name, 2)
        assert "entities.parquet of store" in result.stderr, name
    assert contents(run) == before
    assert not (tmp_path / "exported").exists()


def test_a_store_prepared_again_is_refused_by_every_command_and_found_where_it_is(run: Path, tmp_path: Path) -> None:
    before, expected = contents(run), mrr(run=run)
    answers = run_cli(*readers(run)["predict"]).stdout
    shutil.move(tmp_path / "s", tmp_path / "moved")
    assert run_cli("prepare", tmp_path / "data", "--store", tmp_path / "s", "--seed", "1").exit_code == 0
    commands = readers(run)
    commands["negatives"] = ["negatives", tmp_path / "s", "--source", "near_miss", "--run", run]
    resume = ["train", tmp_path / "tiny.yaml", "--set", f"data.store={tmp_path / 's'}", "--run", run, "--resume"]
    commands["resume"] = [*resume, "--set", "train.epochs=9"]
    commands["accepting resume"] = [*commands["resume"], "--accept-changes"]
    commands["compare"] = ["report", run, run / ".." / "r2"]
    for name, command in commands.items():
        result = run_cli(*command)
        assert result.exit_code == 2, name
        assert f"error: entities.parquet of store {tmp_path / 's'} differs from the one that run {run}" in result.stderr
        assert "--store" in result.stderr
    assert not (tmp_path / "exported").exists()
    assert contents(run) == before

    moved = ["--store", tmp_path / "moved"]
    for name, command in readers(run, *moved).items():
        assert run_cli(*command).exit_code == 0, name
    assert mrr(*moved, run=run) == expected
    assert run_cli(*readers(run, *moved)["predict"]).stdout == answers
    negatives = ["negatives", tmp_path / "moved", "--source", "near_miss", "--run", run, "--show", "0", "--json"]
    assert run_cli(*negatives).exit_code == 0


def test_the_same_store_prepared_again_is_accepted(run: Path, tmp_path: Path) -> None:
    expected = mrr(run=run)
    shutil.rmtree(tmp_path / "s")
    assert run_cli("prepare", tmp_path / "data", "--store", tmp_path / "s").exit_code == 0
    assert mrr(run=run) == expected


def test_another_store_than_that_of_the_run_is_not_a_moved_one(run: Path, tmp_path: Path) -> None:
    assert run_cli("prepare", tmp_path / "data", "--store", tmp_path / "t", "--seed", "1").exit_code == 0
    for name, command in readers(run, "--store", tmp_path / "t").items():
        result = run_cli(*command)
        assert (result.exit_code, "entities.parquet of store" in result.stderr) == (2, True), name


def test_another_split_of_the_same_facts_is_refused_where_facts_count(run: Path, tmp_path: Path) -> None:
    """What was the test split is now valid: its figures would be those of facts that chose the checkpoint."""
    shutil.rmtree(tmp_path / "s")
    valid, test = ((tmp_path / "data" / f"{split}.tsv").read_text() for split in ("valid", "test"))
    (tmp_path / "data" / "valid.tsv").write_text(test)
    (tmp_path / "data" / "test.tsv").write_text(valid)
    assert run_cli("prepare", tmp_path / "data", "--store", tmp_path / "s").exit_code == 0
    result = run_cli("evaluate", run)
    assert result.exit_code == 2
    assert ".parquet of store" in result.stderr


def test_a_store_that_is_gone_is_asked_for(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "s")
    result = run_cli("evaluate", run)
    assert result.exit_code == 2
    assert f"error: the store of run {run} cannot be opened" in result.stderr
    assert "--store" in result.stderr
    assert run_cli("report", run).exit_code == 0  # it needs none


def test_a_run_of_an_earlier_version_opens_with_one_warning(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.training.test_resume import of_an_earlier_version

    expected = mrr(run=run)
    of_an_earlier_version(run)
    caplog.clear()
    assert mrr(run=run) == expected
    assert [record.getMessage().count("cannot be checked") for record in caplog.records] == [1]


def test_accept_changes_belongs_to_resume(tmp_path: Path) -> None:
    result = run_cli("train", "preset:demo", "--run", tmp_path / "r", "--accept-changes")
    assert result.exit_code == 2
    assert "belongs to --resume" in " ".join(result.stderr.split())


def test_another_scorer_is_refused_on_the_command_line(run: Path, tmp_path: Path) -> None:
    before, expected = contents(run), mrr(run=run)
    base: list[Any] = [
        "train",
        tmp_path / "tiny.yaml",
        "--run",
        run,
        "--resume",
        "--set",
        f"data.store={tmp_path / 's'}",
    ]
    for more in (["--set", "model.name=complex"], ["--set", "model.name=complex", "--set", "train.epochs=10"]):
        result = run_cli(*base, *more, "--accept-changes")
        assert result.exit_code == 2
        assert "model.name: distmult in the run, complex now" in result.stderr
    result = run_cli(*base, "--set", "train.seed=3")
    assert result.exit_code == 2
    assert "train.seed: 0 in the run, 3 now" in result.stderr
    assert "--accept-changes" in result.stderr
    assert contents(run) == before
    assert mrr(run=run) == expected
