from pathlib import Path

import numpy as np
import pytest

from distkg.data.errors import IngestError
from distkg.data.generate import PER_THEME, generate, relation_names
from distkg.data.rules.shapes import zipf
from distkg.data.store.graph_store import Store

Pairs = set[tuple[int, int]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    address = str(tmp_path_factory.mktemp("generated") / "store")
    generate(address, entities=2000, relations=14, triples=20_000, seed=3)
    return Store.open(address)


def pairs_by_name(store: Store, splits: list[str]) -> dict[str, Pairs]:
    triples = np.concatenate(list(store.iter_triples(splits)))
    names = store.relation_labels().to_pylist()
    return {name: set(map(tuple, triples[triples[:, 1] == r][:, [0, 2]].tolist())) for r, name in enumerate(names)}


def test_the_numbers_are_those_asked_for(store: Store) -> None:
    assert (store.num_entities, store.num_relations) == (2000, 14)
    assert store.manifest.triples == {"train": 18_000, "valid": 1000, "test": 1000}
    everything = np.concatenate(list(store.iter_triples(["train", "valid", "test"])))
    assert len(np.unique(everything, axis=0)) == 20_000
    assert np.unique(everything[:, 1]).tolist() == list(range(14))
    store.verify()


def test_every_entity_is_known_to_train(store: Store) -> None:
    assert store.degrees().min() >= 1


def test_labels_are_readable_and_distinct(store: Store) -> None:
    labels = store.entity_labels().to_pylist()
    assert len(set(labels)) == 2000
    assert {label.split("_")[0] for label in labels} == {"person", "company", "university", "film", "city"}
    assert "person_0" in labels


@pytest.mark.parametrize(
    ("base", "inverse", "symmetric", "site", "via", "wider"),
    [
        ("works_at", "employs", "knows", "based_in", "works_in", "affiliated_with"),
        ("graduated_from", "alumni_include", "classmate_of", "campus_in", "studied_in", "attended"),
    ],
)
def test_rules_hold_in_the_whole_graph(
    store: Store, base: str, inverse: str, symmetric: str, site: str, via: str, wider: str
) -> None:
    facts = pairs_by_name(store, ["train", "valid", "test"])
    city = dict(facts[site])
    assert len(city) == len(facts[site])
    assert facts[inverse] == {(organisation, person) for person, organisation in facts[base]}
    assert facts[symmetric] == {(b, a) for a, b in facts[symmetric]}
    assert facts[via] == {(person, city[organisation]) for person, organisation in facts[base]}
    assert facts[base] < facts[wider]


def test_held_out_facts_follow_from_train(store: Store) -> None:
    train = pairs_by_name(store, ["train"])
    held_out = pairs_by_name(store, ["valid", "test"])
    city, campus = dict(train["based_in"]), dict(train["campus_in"])
    implied = {
        "employs": {(organisation, person) for person, organisation in train["works_at"]},
        "alumni_include": {(organisation, person) for person, organisation in train["graduated_from"]},
        "stars": {(organisation, person) for person, organisation in train["starred_in"]},
        "knows": {(b, a) for a, b in train["knows"]},
        "classmate_of": {(b, a) for a, b in train["classmate_of"]},
        "works_in": {(person, city[organisation]) for person, organisation in train["works_at"]},
        "studied_in": {(person, campus[school]) for person, school in train["graduated_from"]},
        "affiliated_with": train["works_at"],
        "attended": train["graduated_from"],
    }
    for name, facts in held_out.items():
        assert facts <= implied.get(name, set()), name
    assert sum(len(facts) > 20 for facts in held_out.values()) == len(implied)


def test_degrees_are_skewed(store: Store) -> None:
    degrees = np.sort(store.degrees())[::-1]
    assert degrees[0] > 20 * np.median(degrees)


def test_train_is_shuffled(store: Store) -> None:
    relations = store.triples("train")[:, 1]
    halves = [np.bincount(half, minlength=14) / len(half) for half in np.array_split(relations, 2)]
    assert np.abs(halves[0] - halves[1]).max() < 0.02


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(str(tmp_path / name), entities=100, relations=6, triples=800, seed=seed, partitions=3)
    a, b, c = (Store.open(str(tmp_path / name)).manifest for name in "abc")
    assert a.files == b.files
    assert a.files["train.parquet"] != c.files["train.parquet"]
    assert a.partition_offsets == [0, 34, 68, 100]


@pytest.mark.parametrize("relations", [1, 2, 3, 4, 5, 6, 7, 19, 30])
def test_any_number_of_relations(tmp_path: Path, relations: int) -> None:
    made = generate(str(tmp_path / "s"), entities=300, relations=relations, triples=3001, seed=0)
    store = Store.open(made.store)
    assert sum(made.triples.values()) == 3001
    assert store.num_relations == relations
    assert store.degrees().min() >= 1
    assert set(np.unique(store.triples("train")[:, 1])) == set(range(relations))
    assert made.triples["test"] == (150 if relations > 1 else 0)


def test_relations_repeat_their_vocabulary_with_a_number() -> None:
    names = relation_names(3 * PER_THEME + 2)
    assert names[0] == "works_at"
    assert names[-2:] == ["works_at_2", "employs_2"]
    assert len(set(names)) == len(names)


def test_impossible_sizes_are_refused_with_advice(tmp_path: Path) -> None:
    address = str(tmp_path / "s")
    with pytest.raises(IngestError, match=r"2,000 triples are too few .* ask for more triples"):
        generate(address, entities=1000, relations=8, triples=2000, seed=0)
    with pytest.raises(IngestError, match="possible facts; ask for fewer triples or more entities"):
        generate(address, entities=100, relations=6, triples=100_000, seed=0)
    with pytest.raises(IngestError, match="at least 10 entities"):
        generate(address, entities=9, relations=1, triples=10, seed=0)
    assert not Path(address).exists()


def test_draws_follow_a_power_law() -> None:
    counts = np.bincount(zipf(np.random.default_rng(0), 1000, 200_000), minlength=1000)
    assert len(counts) == 1000
    # Rank-frequency line on logarithmic axes, away from the rounded head: slope -0.8.
    ranks = np.arange(20, 1000)
    slope = np.polyfit(np.log(ranks + 1.5), np.log(counts[ranks]), 1)[0]
    assert -0.85 < slope < -0.75


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"entities": 10**12, "relations": 1, "triples": 10}, "1,000,000,000,000 entities are too many"),
        ({"entities": 100, "relations": 2**30, "triples": 2**40}, "relations are too many"),
        (
            {"entities": 2**30, "relations": 6, "triples": 2**40},
            "needs at least .* GiB of memory, and 1 GiB are available",
        ),
    ],
)
def test_sizes_beyond_ids_and_memory_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], message: str
) -> None:
    monkeypatch.setattr("distkg.data.generate.memory_limit", lambda: 1 << 30)
    with pytest.raises(IngestError, match=message):
        generate(str(tmp_path / "s"), **sizes, seed=0)
    assert not (tmp_path / "s").exists()
