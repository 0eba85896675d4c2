"""The published benchmark graphs: counts as in the literature."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store

# name: entities, relations, train, valid, test, valid and test triples with an entity unseen in train
COUNTS = {
    "FB15k-237": (14_541, 237, 272_115, 17_535, 20_466, 9, 28),
    "WN18RR": (40_943, 11, 86_835, 3_034, 3_134, 210, 210),
    "UMLS": (135, 46, 5_216, 652, 661, 0, 0),
    "Kinship": (104, 25, 8_544, 1_068, 1_074, 0, 0),
    "Nations": (14, 55, 1_592, 199, 201, 0, 0),
    "CoDEx-S": (2_034, 42, 32_888, 1_827, 1_828, 0, 0),
    "Family": (3_007, 12, 23_483, 2_038, 2_835, 12, 18),
    "YAGO3-10-quarter": (106_196, 37, 269_760, 5_000, 5_000, 440, 441),
    "DBpedia77k": (76_651, 150, 140_760, 16_334, 32_934, 0, 0),
}
# Facts that train tells under a near-inverse or near-duplicate relation. FB15k-237 and WN18RR were made to have none.
LEAKS = {
    "Nations": {
        "train_valid_inverses": 16,
        "train_test_inverses": 10,
        "train_valid_duplicates_by_relation": 67,
        "train_test_duplicates_by_relation": 55,
    },
    "Family": {"train_valid_inverses": 142, "train_test_inverses": 176},
    "DBpedia77k": {"train_valid_inverses": 3, "train_test_inverses": 10},
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_as_published(shared_data: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    made = prepare(str(shared_data(name)), str(tmp_path / "s"))
    entities, relations, train, valid, test, unseen_valid, unseen_test = COUNTS[name]
    assert (made.entities, made.relations) == (entities, relations)
    assert made.triples == {"train": train, "valid": valid, "test": test}
    unseen = {"valid_unseen_entities": unseen_valid, "test_unseen_entities": unseen_test}
    leaks = LEAKS.get(name, {})
    assert made.warnings == {warning: count for warning, count in (unseen | leaks).items() if count}
    store = Store.open(str(tmp_path / "s"))
    assert len(set(store.entity_labels().to_pylist())) == entities
    assert bool((store.degrees() == 0).any()) == bool(unseen_valid + unseen_test)
