"""What many workers trained is read by any number of workers, and every number of them says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from distributed import run_ranks
from safetensors.numpy import load_file
from typer.testing import CliRunner

from distkg.cli import app
from distkg.cluster.collective import ask_workers
from distkg.config import RunConfig
from distkg.data.errors import StoreError
from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.foundation.model_files import make_model, save_model
from distkg.inference.exported_rows import ExportedRows
from distkg.inference.questions import BestAnswers, Evaluation
from distkg.sharding.ranks import Ranks
from distkg.training.family import GraphChoice
from distkg.training.run import train_on_rank

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


def train(ranks: Ranks, config: RunConfig, run: str) -> dict[str, Any]:
    return train_on_rank(config, Path(run), ranks)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Store, and run of three ranks."""
    folder = tmp_path_factory.mktemp("read")
    generate(str(folder / "store"), entities=101, relations=3, triples=900, seed=1)
    tree = {
        "data": {"store": str(folder / "store")},
        "model": {"name": "complex", "dim": 8},
        "train": {"epochs": 2, "workers": 3, "batch_size": 32},
    }
    run_ranks(3, train, RunConfig.model_validate(tree), str(folder / "run"))
    return folder / "store", folder / "run"


def labels_of(address: Path) -> tuple[pa.Array, pa.Array]:
    store = Store.open(str(address))
    return store.entity_labels(), store.relation_labels()


def command(*typed: str) -> str:
    result = CliRunner().invoke(app, list(typed))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_number_of_workers_says_what_one_process_says(trained: tuple[Path, Path], tmp_path: Path) -> None:
    store, run = trained
    entities, relations = (labels.to_pylist() for labels in labels_of(store))
    recorded = json.loads((run / "result.json").read_text())["metrics"]["test"]
    queries = tmp_path / "queries.tsv"
    sides = ("forward", "inverse")
    queries.write_text("".join(f"{entities[n]}\t{relations[n % 3]}\t{sides[n % 2]}\n" for n in range(40)))
    evaluated, answered, exported = {}, {}, {}
    for workers in (1, 2, 4):
        more = ["--workers", str(workers)]
        evaluated[workers] = json.loads(command("evaluate", str(run), "--json", *more))
        output = tmp_path / f"{workers}.tsv"
        command("predict", str(run), "--queries", str(queries), "--output", str(output), *more)
        answered[workers] = output.read_text()
        command("export", str(run), "--to", str(tmp_path / f"export{workers}"), *more)
        exported[workers] = ExportedRows(tmp_path / f"export{workers}").rows(0, 101).numpy()
    assert evaluated[1] == evaluated[2] == evaluated[4]
    assert evaluated[1]["metrics"] == recorded
    assert answered[1] == answered[2] == answered[4]
    assert len(answered[1].splitlines()) > 300
    whole = load_file(tmp_path / "export1" / "entities.safetensors")["vectors"]
    for rows in exported.values():
        np.testing.assert_array_equal(rows, whole)
    assert len(list((tmp_path / "export4").glob("entities-*.safetensors"))) == 4


def test_relative_paths_are_those_of_the_command(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Ray's workers were started elsewhere
    command("export", str(trained[1]), "--to", "here", "--workers", "2")
    assert (tmp_path / "here" / "model.json").is_file()
    assert ExportedRows(tmp_path / "here").count == 101


def test_an_error_on_the_workers_is_raised_as_in_one_process(trained: tuple[Path, Path]) -> None:
    store, run = trained
    question = BestAnswers("nobody", labels_of(store)[1][0].as_py(), False, 3, "exclude")
    with pytest.raises(StoreError, match=r"has no entity labelled 'nobody'"):
        ask_workers(run, GraphChoice(), 2, question)


def test_workers_share_the_queries_of_a_foundation_model(trained: tuple[Path, Path], tmp_path: Path) -> None:
    store, _ = trained
    options = {"width": 8, "layers": 2, "hidden": 8}
    save_model(make_model("ultra", options), tmp_path / "model")
    one, two = (
        json.loads(
            command("evaluate", str(tmp_path / "model"), "--store", str(store), "--json", "--workers", str(workers))
        )
        for workers in (1, 2)
    )
    assert one == two
    choice = GraphChoice(store=str(store))
    assert ask_workers(tmp_path / "model", choice, 2, Evaluation("test", None)) == one
