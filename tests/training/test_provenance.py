"""The record of what a run was made from, and readers that open its store."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from distkg.config import ConfigError, parse_config
from distkg.data.errors import StoreError
from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.data.store.identity import StoreIdentity, StoreMismatchError
from distkg.data.store.relation_text import make_relation_text
from distkg.embedding.load_run import load_run, view_of_run
from distkg.foundation.initial_model import check_foundation
from distkg.foundation.model_files import load_model
from distkg.foundation.zero_shot import best_zero_shot, evaluate_zero_shot, reasons_for
from distkg.sharding.ranks import Ranks
from distkg.training.provenance import (
    Provenance,
    ProvenanceError,
    check_run_store,
    provenance_of_run,
    read_provenance,
    recorded_config,
    write_provenance,
)
from distkg.training.resume import ResumeError
from distkg.training.run import train_on_rank


def world(folder: Path, name: str, seed: int) -> str:
    """Stores of equal sizes, whose entities and facts are others with another seed."""
    generate(str(folder / name), entities=40, relations=3, triples=300, seed=seed)
    return str(folder / name)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("stores")
    return [world(folder, "first", 1), world(folder, "second", 2)]


def embeddings(store: str, **sections: Any) -> dict[str, Any]:
    tree = {"data": {"store": store}, "model": {"name": "distmult", "dim": 8}, "train": {"epochs": 1}}
    return tree | sections


def foundation(name: str, graphs: list[str], **sections: Any) -> dict[str, Any]:
    options = {"width": 8} if name == "rgcn" else {"width": 8, "layers": 2, "hidden": 8}
    return {
        "data": {"graphs": graphs},
        "model": {"name": name, "options": options},
        "objective": {"name": "self_adversarial", "margin": 0.0},
        "negatives": {"count": 4},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "train": {"epochs": 1, "batch_size": 8, "steps_per_epoch": 2},
    } | sections


def train(tree: dict[str, Any], run: Path, **options: Any) -> dict[str, Any]:
    return train_on_rank(parse_config(tree, "test"), run, Ranks.single(), **options)


@pytest.fixture(scope="module")
def trained(stores: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train(embeddings(stores[0]), run)
    return run


@pytest.fixture
def run_with_moved_store(trained: Path, stores: list[str], tmp_path: Path) -> tuple[Path, str]:
    """A run whose store is gone from its place, where another one of the same sizes lies; and the store now."""
    place, moved = tmp_path / "store", tmp_path / "moved"
    shutil.copytree(stores[0], place)
    train(embeddings(str(place)), tmp_path / "run")
    shutil.move(place, moved)
    shutil.copytree(stores[1], place)
    return tmp_path / "run", str(moved)


def test_a_run_is_refused_where_another_store_lies_in_the_place_of_its_own(
    run_with_moved_store: tuple[Path, str],
) -> None:
    run, moved = run_with_moved_store
    said = r"\.parquet of store .*/store differs from the one that run .*/run was trained on"
    with pytest.raises(StoreMismatchError, match=said):
        load_run(run, Ranks.single())
    with pytest.raises(StoreMismatchError, match=said):
        check_run_store(run)
    model, store, _ = load_run(run, Ranks.single(), moved)
    assert store.address == moved
    assert model.num_entities == 40
    check_run_store(run, moved)


def test_a_store_that_is_gone_is_asked_for(run_with_moved_store: tuple[Path, str]) -> None:
    run, _ = run_with_moved_store
    shutil.rmtree(run.parent / "store")
    with pytest.raises(StoreError, match=r"the store of run .* cannot be opened: .*name its new place with --store"):
        load_run(run, Ranks.single())
    check_run_store(run)  # a report needs no store


def test_a_relative_store_is_found_or_asked_for(
    stores: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(stores[0], here / "store")
    monkeypatch.chdir(here)
    train(embeddings("store"), tmp_path / "run")
    load_run(tmp_path / "run", Ranks.single())
    monkeypatch.chdir(elsewhere)
    with pytest.raises(StoreError, match=rf"relative, and was looked for in {elsewhere}.*--store"):
        load_run(tmp_path / "run", Ranks.single())
    load_run(tmp_path / "run", Ranks.single(), str(here / "store"))


def test_a_moved_run_is_read_as_before(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "moved")
    load_run(tmp_path / "moved", Ranks.single())


def test_only_the_labels_matter_to_vectors(stores: list[str], trained: Path, tmp_path: Path) -> None:
    """A store of the same labels with another test split serves exports, and no metrics."""
    shutil.copytree(stores[0], tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    manifest["files"]["test.parquet"]["sha256"] = "0" * 64
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    load_run(trained, Ranks.single(), str(tmp_path / "other"), "labels")
    with pytest.raises(StoreMismatchError, match=r"^test\.parquet of store"):
        load_run(trained, Ranks.single(), str(tmp_path / "other"))


def test_vectors_are_looked_at_with_the_ids_of_their_store_alone(stores: list[str], trained: Path) -> None:
    view_of_run(trained, Store.open(stores[0]))
    with pytest.raises(StoreMismatchError, match=r"\.parquet of store .*second differs"):
        view_of_run(trained, Store.open(stores[1]))


def test_another_order_of_relations_is_no_store_for_vectors(stores: list[str], trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(stores[0], other)
    labels = pq.read_table(other / "relations.parquet")
    pq.write_table(labels.take(list(range(len(labels)))[::-1]), other / "relations.parquet")
    manifest = json.loads((other / "manifest.json").read_text())
    content = (other / "relations.parquet").read_bytes()
    manifest["files"]["relations.parquet"] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreMismatchError, match=r"^relations\.parquet of store"):
        view_of_run(trained, Store.open(str(other)))


def test_negatives_by_vectors_of_another_store_are_refused(stores: list[str], trained: Path, tmp_path: Path) -> None:
    negatives = {"source": "near_miss", "count": 4, "vectors": str(trained)}
    train(foundation("ultra", stores[:1], negatives=negatives), tmp_path / "same")
    with pytest.raises(StoreMismatchError, match=r"second differs from the one that run"):
        train(foundation("ultra", stores[1:], negatives=negatives), tmp_path / "other")


def test_vectors_that_were_trained_on_steer_the_course(stores: list[str], tmp_path: Path) -> None:
    train(embeddings(stores[0]), tmp_path / "vectors")
    negatives = {"source": "near_miss", "count": 4, "vectors": str(tmp_path / "vectors")}
    tree = foundation("ultra", stores[:1], negatives=negatives)
    train(tree, tmp_path / "run")
    train(embeddings(stores[0], train={"epochs": 2}), tmp_path / "vectors", resume=True)
    longer = tree | {"train": tree["train"] | {"epochs": 2}}
    with pytest.raises(ResumeError, match=r"negatives\.vectors: .*vectors \(.*now"):
        train(longer, tmp_path / "run", resume=True)
    result = train(longer, tmp_path / "run", resume=True, accept_changes=True)
    assert [change["key"] for change in result["accepted_changes"]] == ["negatives.vectors"]
    shutil.move(tmp_path / "vectors", tmp_path / "moved")
    longer["negatives"] = negatives | {"vectors": str(tmp_path / "moved")}
    assert train(longer, tmp_path / "run", resume=True)["accepted_changes"] == result["accepted_changes"]


def test_every_graph_of_a_foundation_run_is_held_against_its_own(stores: list[str], tmp_path: Path) -> None:
    tree = foundation("ultra", stores)
    train(tree, tmp_path / "run")
    record = provenance_of_run(tmp_path / "run")
    assert record is not None
    assert [graph.address for graph in record.graphs] == stores
    moved = str(tmp_path / "moved")
    shutil.copytree(stores[1], moved)
    longer = tree | {"train": tree["train"] | {"epochs": 2}}
    result = train(longer | {"data": {"graphs": [stores[0], moved]}}, tmp_path / "run", resume=True)
    assert result["train"]["epochs"] == 2
    third = world(tmp_path, "third", 3)
    for graphs, error, said in (
        ([stores[0], third], StoreMismatchError, r"\.parquet of store .*third differs .*\(then at .*moved\)"),
        ([stores[1], stores[0]], ResumeError, r"data\.graphs \(order\): "),
        (stores[:1], ResumeError, r"data\.graphs: "),
    ):
        with pytest.raises(error, match=said):
            train(longer | {"data": {"graphs": graphs}}, tmp_path / "run", resume=True)


def test_text_of_relations_that_a_model_reads_steers_its_course(stores: list[str], tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    shutil.copytree(stores[0], store)
    runs = {name: foundation(name, [store]) for name in ("ultra", "semma")}
    for name, tree in runs.items():
        train(tree, tmp_path / name)
    make_relation_text(Store.open(store), letters)
    train(runs["ultra"], tmp_path / "ultra", resume=True)  # it reads none
    with pytest.raises(ResumeError, match=r"data\.store \(relation_text\.parquet\): no such file in the run, SHA-256"):
        train(runs["semma"], tmp_path / "semma", resume=True)


def letters(texts: Sequence[str]) -> np.ndarray:
    return np.array([[text.count(letter) + 0.5 for letter in "aeinorst"] for text in texts], np.float32)


def test_a_model_with_vectors_of_one_graph_refuses_others(stores: list[str], tmp_path: Path) -> None:
    """Equal sizes do not make the same entities."""
    train(foundation("rgcn", stores[:1]), tmp_path / "run")
    model, own, other = load_model(tmp_path / "run"), Store.open(stores[0]), Store.open(stores[1])
    assert (own.num_entities, own.num_relations) == (other.num_entities, other.num_relations)
    evaluate_zero_shot(model, own)
    said = r"\.parquet of store .*second differs from the one that this rgcn model was trained on"
    for ask in (evaluate_zero_shot, best_zero_shot, lambda model, store: reasons_for(model, store, 0, 0, [1])):
        with pytest.raises(StoreMismatchError, match=said):
            ask(model, other)
    start = {"name": "rgcn", "options": {"width": 8}, "start": str(tmp_path / "run")}
    check_foundation(parse_config(foundation("rgcn", stores[:1], model=start), "test"))
    with pytest.raises(StoreMismatchError, match=said):
        check_foundation(parse_config(foundation("rgcn", stores[1:], model=start), "test"))


def test_a_model_to_go_on_from_may_move(stores: list[str], tmp_path: Path) -> None:
    train(foundation("ultra", stores[:1]), tmp_path / "start")
    options = {"width": 8, "layers": 2, "hidden": 8}
    model = {"name": "ultra", "start": str(tmp_path / "start"), "options": options}
    train(foundation("ultra", stores[:1], model=model), tmp_path / "run")
    shutil.copytree(tmp_path / "start", tmp_path / "moved")
    train(
        foundation("ultra", stores[:1], model=model | {"start": str(tmp_path / "moved")}), tmp_path / "run", resume=True
    )
    train(foundation("ultra", stores[:1], train={"epochs": 1, "seed": 5}), tmp_path / "other")
    with pytest.raises(ResumeError, match=r"model\.start: .*start in the run, .*other now"):
        train(
            foundation("ultra", stores[:1], model=model | {"start": str(tmp_path / "other")}),
            tmp_path / "run",
            resume=True,
            accept_changes=True,
        )


def test_a_foundation_run_has_no_vectors_to_load(stores: list[str], tmp_path: Path) -> None:
    train(foundation("ultra", stores[:1]), tmp_path / "run")
    with pytest.raises(ConfigError, match="has no entity vectors"):
        load_run(tmp_path / "run", Ranks.single())


def test_the_record_comes_back_as_it_was_written(stores: list[str], tmp_path: Path) -> None:
    graphs = [StoreIdentity.of(Store.open(store)) for store in stores]
    config = recorded_config(parse_config(embeddings(stores[0]), "test"))
    record = Provenance(graphs=graphs, config=config, inputs={"model.start": "ab"})
    write_provenance(tmp_path, record)
    assert read_provenance(tmp_path) == record
    assert read_provenance(tmp_path / "none") is None


@pytest.mark.parametrize("content", ["{", "[]", '{"graphs": 3}', '{"format": 2}', "[" * 200_000, "\xff"])
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "provenance.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ProvenanceError, match=r"provenance\.json"):
        read_provenance(tmp_path)


def test_secrets_are_not_recorded() -> None:
    tree = {
        "model": {"name": "ultra"},
        "objective": {"name": "margin"},
        "negatives": {"vectors": "s3://user:pass@bucket/run?token=x"},
    }
    assert recorded_config(parse_config(tree, "test"))["negatives.vectors"] == "s3://bucket/run"
