"""Foundation models asked from the command line and by functions: ranks and answers equal those of its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from distkg.cli import app, models
from distkg.data.fresh_graph import fresh_graph
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store
from distkg.foundation.model_files import PublishedFormat, make_model, save_model
from distkg.foundation.models import FoundationModel, KnowledgeGraph
from distkg.foundation.zero_shot import best_zero_shot, evaluate_zero_shot
from distkg.inference.predict import predict

ENTITIES = 12


@pytest.fixture
def model() -> FoundationModel:
    torch.manual_seed(0)
    return make_model("ultra", {"width": 8, "layers": 2, "hidden": 8})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = np.random.default_rng(0).integers(0, [ENTITIES, 3, ENTITIES], (40, 3))
    lines = [f"e{h}\tr{r}\te{t}\n" for h, r, t in np.unique(rows, axis=0)]
    files = tmp_path / "files"
    files.mkdir()
    for name, low, high in (("train", 0, 28), ("valid", 28, 31), ("test", 31, None)):
        (files / f"{name}.tsv").write_text("".join(lines[low:high]))
    return files


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Store:
    prepare(str(folder), str(tmp_path / "store"))
    return Store.open(str(tmp_path / "store"))


@torch.no_grad()
def scores_of(model: FoundationModel, store: Store, anchor: int, relation: int) -> np.ndarray:
    found = model.eval()(KnowledgeGraph.of_store(store), torch.tensor([anchor]), torch.tensor([relation]))
    return found[0].numpy()


def known_to(store: Store, anchor: int, relation: int) -> set[int]:
    found = set()
    for h, r, t in np.concatenate([store.triples(split) for split in ("train", "valid", "test")]).tolist():
        found |= {t} if (h, r) == (anchor, relation) else set()
        found |= {h} if (t, r + store.num_relations) == (anchor, relation) else set()
    return found


def test_ranks_are_those_of_its_scores(model: FoundationModel, store: Store) -> None:
    found = evaluate_zero_shot(model, store, "test", batch_size=5)
    reciprocal = []
    for h, r, t in store.triples("test").tolist():
        for anchor, relation, answer in ((h, r, t), (t, r + store.num_relations, h)):
            scores, known = scores_of(model, store, anchor, relation), known_to(store, anchor, relation)
            rivals = scores[[e for e in range(store.num_entities) if e not in known]]
            better, equal = (rivals > scores[answer]).sum(), (rivals == scores[answer]).sum()
            reciprocal.append(1 / (1 + better + equal / 2))
    # Sums in batches of another size round otherwise, which can turn a tie.
    assert found["metrics"]["mrr"] == pytest.approx(np.mean(reciprocal), rel=0.02)
    assert found["metrics"]["queries"] == len(reciprocal)


def test_answers_are_the_best_that_are_not_known(model: FoundationModel, store: Store) -> None:
    relation = 1 + store.num_relations
    (answers,) = predict(best_zero_shot(model, store), store, [4], [relation], top=5)
    known, scores = known_to(store, 4, relation), scores_of(model, store, 4, relation)
    free = [e for e in np.argsort(-scores, kind="stable").tolist() if e not in known]
    assert [answer.entity for answer in answers] == free[:5]
    assert [answer.score for answer in answers] == pytest.approx(scores[free[:5]].tolist(), abs=1e-5)


def test_a_file_is_a_graph_without_held_out_triples(folder: Path) -> None:
    with fresh_graph(str(folder / "train.tsv")) as store:
        assert store.manifest.triples == {"train": 28, "valid": 0, "test": 0}


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments])
    return result.exit_code, result.output


def test_every_published_format_is_offered() -> None:
    assert [each.value for each in models.PublishedFormat] == list(get_args(PublishedFormat))


def test_on_the_command_line(model: FoundationModel, store: Store, folder: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "model")
    save_model(model, Path(place))
    code, output = run("evaluate", place, "--store", store.address, "--json")
    assert code == 0
    assert json.loads(output)["metrics"] == evaluate_zero_shot(model, store)["metrics"]
    asked = "--anchor", "e1", "--relation", "r2", "--top", "2", "--json"
    code, output = run("predict", place, "--graph", str(folder / "train.tsv"), *asked)
    assert code == 0
    assert [answer["rank"] for answer in json.loads(output)] == [1, 2]
    code, output = run("predict", place, "--graph", str(folder / "train.tsv"), *asked, "--explain", "2")
    assert code == 0
    for answer in json.loads(output):
        importances = [reason["importance"] for reason in answer["reasons"]]
        assert importances == sorted(importances, reverse=True)
        assert all(reason["path"].startswith("e1 ") for reason in answer["reasons"])
        assert all(reason["path"].endswith(f" {answer['label']}") for reason in answer["reasons"])
    code, output = run("predict", place, "--store", store.address, "--graph", str(folder / "train.tsv"), *asked)
    assert code == 2
    assert "pass its graph with either --store or --graph" in " ".join(output.split())
    code, output = run("predict", place, "--store", store.address, "--anchor", "e99", "--relation", "r2")
    assert code == 2
    assert "no entity labelled 'e99'. Close: 'e" in output
    file = str(folder / "train.tsv")
    code, output = run("predict", place, "--graph", file, "--anchor", "e1", "--relation", "r22")
    assert code == 2
    assert f"store {file} has no relation labelled 'r22'. Close: 'r" in output
    code, output = run("evaluate", place)
    assert code == 2
    assert "is a foundation model: pass its graph with --store" in " ".join(output.split())


def test_relations_on_the_command_line(store: Store, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = make_model("trix_relations", {"width": 8, "rounds": 1, "layers": 1}).eval()
    save_model(made, tmp_path / "model")
    given = str(tmp_path / "model"), "--store", store.address
    head, _, tail = store.triples("train")[0].tolist()
    labels = store.entity_labels_of(np.array([head, tail]))
    ends = "--head", labels[0], "--tail", labels[1], "--json"
    code, output = run("predict-relation", *given, *ends)
    assert code == 0
    found = json.loads(output)
    with torch.no_grad():
        scores = made.relation_scores(KnowledgeGraph.of_store(store), torch.tensor([head]), torch.tensor([tail]))[0]
    order = scores.argsort(descending=True).tolist()
    assert [each["relation"] for each in found] == [store.relation_labels()[r].as_py() for r in order]
    every = np.concatenate([store.triples(split) for split in ("train", "valid", "test")]).tolist()
    assert [each["known"] for each in found] == [[head, r, tail] in every for r in order]
    code, output = run("predict-relation", *given, *ends, "--known", "exclude")
    assert [each["relation"] for each in json.loads(output)] == [e["relation"] for e in found if not e["known"]]
    code, output = run("evaluate", *given, "--triples", "3", "--json")
    assert code == 0
    assert json.loads(output)["metrics"]["queries"] == 3
    code, output = run("evaluate", *given)
    assert code == 0
    assert "Filtered ranks among all relations" in output


def test_a_model_for_entities_is_not_asked_for_relations(model: FoundationModel, store: Store, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model")
    ends = "--head", "e1", "--tail", "e2"
    code, output = run("predict-relation", str(tmp_path / "model"), "--store", store.address, *ends)
    assert code == 2
    assert "ultra" in output
    assert "trix_relations" in output
