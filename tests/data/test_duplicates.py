from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_rejects import KeptRejects

from distkg.data.readers.problems import Problems
from distkg.data.splits.duplicates import find_repeats, first_occurrences
from distkg.data.spool import Spool

Triple = tuple[int, int, int]
TRIPLES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 2)), max_size=25)


def spools(folder: Path, splits: dict[str, list[Triple]]) -> dict[str, Spool]:
    made = {}
    for split, triples in splits.items():
        made[split] = Spool(folder / split, f"{split}.tsv")
        made[split].append(np.array(triples, dtype=np.int32).reshape(-1, 3), np.arange(1, len(triples) + 1))
        made[split].finish()
    return made


@given(triples=TRIPLES)
def test_first_occurrences_are_those_of_a_linear_search(triples: list[Triple]) -> None:
    found = first_occurrences(np.array(triples, dtype=np.int32).reshape(-1, 3))
    assert found.tolist() == [triples.index(triple) for triple in triples]


@given(train=TRIPLES, valid=TRIPLES, test=TRIPLES, bucket_rows=st.sampled_from([3, 10, 1000]))
def test_repeats_are_those_of_python_sets(
    train: list[Triple],
    valid: list[Triple],
    test: list[Triple],
    bucket_rows: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    splits = {"train": train, "valid": valid, "test": test}
    folder = tmp_path_factory.mktemp("repeats")
    found = find_repeats(spools(folder, splits), folder, bucket_rows)
    for split, triples in splits.items():
        repeats = [row for row, triple in enumerate(triples) if triple in triples[:row]]
        assert found.dropped[split].tolist() == repeats
        assert found.originals[split].tolist() == [triples.index(triples[row]) for row in repeats]
    for (split, later), pairs in found.overlaps.items():
        shared = set(splits[split]) & set(splits[later])
        expected = {(splits[split].index(triple), splits[later].index(triple)) for triple in shared}
        assert {tuple(pair) for pair in pairs.tolist()} == expected
        assert len(pairs) == len(expected)
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train", "valid"]


def test_the_report_names_the_first_places(tmp_path: Path) -> None:
    a, b, c = (0, 0, 1), (1, 0, 2), (2, 0, 0)
    made = spools(tmp_path, {"train": [a, b, b, a], "valid": [c, b], "test": [c]})
    problems = Problems("fail", KeptRejects)
    find_repeats(made, tmp_path).report(made, problems)
    assert problems.counts == {"train_duplicates": 2, "train_valid_overlap": 1, "valid_test_overlap": 1}
    assert problems.examples == {
        "train_duplicates": "train.tsv:3 repeats train.tsv:2",
        "train_valid_overlap": "valid.tsv:2 is also train.tsv:2",
        "valid_test_overlap": "test.tsv:1 is also valid.tsv:1",
    }
