"""Two graphs of one: nothing in common that must not be, and everything asked about is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from distkg.cli import app
from distkg.data.errors import IngestError, StoreError
from distkg.data.prepare import prepare
from distkg.data.splits.inductive_split import InductiveSplit, Kind, inductive_split, relation_sides
from distkg.data.store.graph_store import Store
from distkg.data.store.relation_text import make_relation_text, read_relation_text
from distkg.data.tokens.token_store import read_modalities, write_modality

Fact = tuple[str, str, str]


def facts_of(store: Store, *splits: str) -> list[Fact]:
    entities, relations = store.entity_labels().to_pylist(), store.relation_labels().to_pylist()
    triples = np.concatenate([store.triples(split) for split in splits or ("train", "valid", "test")])
    return [(entities[h], relations[r], entities[t]) for h, r, t in triples.tolist()]


def make(folder: Path, facts: list[Fact], **files: str) -> Store:
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "train.tsv").write_text("".join("\t".join(fact) + "\n" for fact in facts))
    for name, text in files.items():
        (folder / "files" / f"{name}.tsv").write_text(text)
    prepare(str(folder / "files"), str(folder / "store"))
    return Store.open(str(folder / "store"))


def random_facts(seed: int, entities: int, relations: int, count: int) -> list[Fact]:
    rng = np.random.default_rng(seed)
    triples = np.stack([rng.integers(0, n, count) for n in (entities, relations, entities)], axis=1)
    return list(dict.fromkeys((f"e{h}", f"r{r}", f"e{t}") for h, r, t in triples.tolist()))


def two(folder: Path) -> tuple[Store, Store]:
    return Store.open(str(folder / "training")), Store.open(str(folder / "inference"))


def split(store: Store, to: Path, kind: Kind, seed: int = 1, share: float = 0.5) -> InductiveSplit:
    return inductive_split(store.address, str(to), kind=kind, seed=seed, share=share)


def entities_in(facts: list[Fact]) -> set[str]:
    return {end for head, _, tail in facts for end in (head, tail)}


def relations_in(facts: list[Fact]) -> set[str]:
    return {relation for _, relation, _ in facts}


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    entities=st.integers(8, 40),
    relations=st.integers(2, 6),
    count=st.integers(30, 200),
    share=st.sampled_from([0.3, 0.5, 0.7]),
    kind=st.sampled_from(["entities", "entities-and-relations"]),
)
def test_what_holds_of_every_split(
    seed: int,
    entities: int,
    relations: int,
    count: int,
    share: float,
    kind: Kind,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("split")
    source = random_facts(seed, entities, relations, count)
    store = make(folder, source)
    made, refused = None, ""
    try:
        made = split(store, folder / "two", kind, seed, share)
    except IngestError as error:
        refused = str(error)
    if made is None:
        assert "would have no facts" in refused or "cannot be divided" in refused
        assert not (folder / "two").exists()
        return
    training, inference = (facts_of(each) for each in two(folder / "two"))
    assert not entities_in(training) & entities_in(inference)
    shared = relations_in(training) & relations_in(inference)
    assert kind == "entities" or not shared
    assert (made.shared_entities, made.shared_relations) == (0, len(shared))
    assert len(training) + len(inference) + made.left_out == len(source)
    assert len(set(training) | set(inference)) == len(training) + len(inference)
    assert set(training) | set(inference) <= set(source)
    assert len(entities_in(training)) <= max(round(share * store.num_entities), 1)
    for each, facts in zip(two(folder / "two"), (training, inference), strict=True):
        learned, asked = facts_of(each, "train"), facts_of(each, "valid", "test")
        assert entities_in(asked) <= entities_in(learned)
        assert relations_in(asked) <= relations_in(learned)
        assert set(each.entity_labels().to_pylist()) == entities_in(facts)
        assert set(each.relation_labels().to_pylist()) == relations_in(facts)
        assert each.manifest.triples["valid"] + each.manifest.triples["test"] <= round(0.2 * len(facts)) + 1
        each.verify()


def test_a_fact_between_kept_entities_is_kept(tmp_path: Path) -> None:
    store = make(tmp_path, random_facts(3, 60, 4, 500))
    split(store, tmp_path / "two", "entities")
    for each in two(tmp_path / "two"):
        mine = set(each.entity_labels().to_pylist())
        assert set(facts_of(each)) == {(h, r, t) for h, r, t in facts_of(store) if h in mine and t in mine}


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    store = make(tmp_path, random_facts(5, 60, 6, 500))
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        split(store, tmp_path / name, "entities-and-relations", seed)
    one, again, other = ([each.manifest.files for each in two(tmp_path / name)] for name in ("one", "again", "other"))
    assert one == again
    assert one[0] != other[0]


def test_all_splits_of_the_source_are_shared_out(tmp_path: Path) -> None:
    facts = random_facts(7, 40, 3, 400)
    lines = ["\t".join(fact) + "\n" for fact in facts]
    # The last ten facts of train are in test too, and count once.
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.tsv").write_text("".join(lines[:200]))
    (tmp_path / "files" / "test.tsv").write_text("".join(lines[190:]))
    prepare(str(tmp_path / "files"), str(tmp_path / "store"))
    made = split(Store.open(str(tmp_path / "store")), tmp_path / "two", "entities")
    kept = [facts_of(each) for each in two(tmp_path / "two")]
    assert len(kept[0]) + len(kept[1]) + made.left_out == len(facts)


def test_relations_are_shared_out_by_their_facts() -> None:
    counts = np.array([1000, *[10] * 100])
    for seed in range(5):
        side = relation_sides(counts, 0.5, seed)
        assert sorted(np.bincount(side, counts).tolist()) == [1000, 1000]
    chosen = [relation_sides(np.full(100, 7), 0.7, seed) for seed in range(5)]
    assert [np.bincount(side).tolist() for side in chosen] == [[70, 30]] * 5
    assert len({tuple(side.tolist()) for side in chosen}) == 5
    assert {int(relation_sides(counts, 0.5, seed)[0]) for seed in range(9)} == {0, 1}
    with pytest.raises(IngestError, match=r"1 relations cannot be divided 0.5 to 0.5"):
        relation_sides(np.array([5]), 0.5, 0)


def test_components_are_reported(tmp_path: Path) -> None:
    # Two cliques of six, far apart: whichever goes where, each graph is one of them.
    facts = [(f"{c}{i}", "r", f"{c}{j}") for c in "ab" for i in range(6) for j in range(6) if i != j]
    made = split(make(tmp_path, facts), tmp_path / "two", "entities")
    assert (made.left_out, made.connected) == (0, (1.0, 1.0))
    assert [each.num_entities for each in two(tmp_path / "two")] == [6, 6]


def test_classes_texts_and_tokens_go_along(tmp_path: Path) -> None:
    facts = random_facts(11, 40, 4, 300)
    labels = sorted(entities_in(facts))
    store = make(
        tmp_path,
        facts,
        entity_types="".join(f"{label}\tkind {label[-1]}\n{label}\tany\n" for label in labels[3:]),
        relation_domain_range="r0\tkind 1\tany\nr1\t-\tkind 2\n",
    )
    make_relation_text(store, lambda texts: np.array([[len(text), ord(text[-1])] for text in texts], np.float32))
    number = {label: int(label[1:]) for label in labels}
    rows = np.array([[number[label], -1] for label in store.entity_labels().to_pylist()], np.int32)
    write_modality(store, "text", [rows], 2, np.arange(80.0).reshape(40, 2), "a test")
    made = split(store, tmp_path / "two", "entities-and-relations")
    assert made.carried == ["relation_text.parquet", "tokens text"]
    for each in two(tmp_path / "two"):
        entities, relations = each.entity_labels().to_pylist(), each.relation_labels().to_pylist()
        text = read_modalities(each)["text"]
        assert text.rows().tolist() == [[number[label], -1] for label in entities]
        assert text.codebook_id == read_modalities(store)["text"].codebook_id
        vectors = read_relation_text(each)
        assert vectors is not None
        assert vectors[: len(relations), 1].tolist() == [2.0 * ord(label[-1]) for label in relations]
        classes = each.classes()
        assert classes is not None
        names = classes.labels.to_pylist()
        for place, label in enumerate(entities):
            members = classes.members[classes.offsets[place] : classes.offsets[place + 1]]
            assert [names[kind] for kind in members] == ([f"kind {label[-1]}", "any"] if label in labels[3:] else [])
        wanted = [names[kind] if kind >= 0 else None for kind in classes.required]
        expected = {"r0": ("any", "kind 1"), "r1": ("kind 2", None)}
        sides = [expected.get(relation, (None, None)) for relation in relations]
        assert wanted == [tail for tail, _ in sides] + [head for _, head in sides]
        assert not {name for name in each.manifest.warnings if "not_in_the_graph" in name}


def test_what_cannot_be_split_is_said(tmp_path: Path) -> None:
    store = make(tmp_path, [("a", "r", "b"), ("b", "r", "c"), ("c", "s", "a")])
    with pytest.raises(IngestError, match="graph would have no facts; choose another seed or share"):
        split(store, tmp_path / "two", "entities", share=0.9)
    with pytest.raises(IngestError, match=r"share 1.0 must lie between 0 and 1"):
        split(store, tmp_path / "two", "entities", share=1.0)
    with pytest.raises(IngestError, match="Known: entities, entities-and-relations"):
        split(store, tmp_path / "two", "relations")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="there is no store at"):
        inductive_split(str(tmp_path / "none"), str(tmp_path / "two"), kind="entities", seed=0)
    assert not (tmp_path / "two").exists()


def test_on_the_command_line(tmp_path: Path) -> None:
    store = make(tmp_path, random_facts(13, 40, 4, 400))
    arguments = ["inductive-split", store.address, "--to", str(tmp_path / "two"), "--kind", "entities-and-relations"]
    result = CliRunner().invoke(app, [*arguments, "--seed", "1", "--share", "0.6"])
    assert result.exit_code == 0
    assert "in both: 0 entities, 0 relations" in result.stdout
    training, inference = two(tmp_path / "two")
    assert training.num_entities + inference.num_entities <= 40
    assert Store.open_inference(str(tmp_path / "two")).address == inference.address
    result = CliRunner().invoke(app, [*arguments, "--seed", "1"])
    assert result.exit_code == 2
    assert "already holds a finished store" in result.stderr


@pytest.mark.slow
def test_fb15k237_stays_connected(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    prepare(str(shared_data("FB15k-237")), str(tmp_path / "store"))
    made = split(Store.open(str(tmp_path / "store")), tmp_path / "two", "entities-and-relations")
    assert min(made.connected) > 0.95
    for report in (made.training, made.inference):
        assert report.entities > 6500
        assert sum(report.triples.values()) > 50_000
        assert report.warnings == {}
