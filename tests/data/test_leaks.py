"""Leaks between splits, against definitions written as loops."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_rejects import KeptRejects

from distkg.data.assemble import SplitPart
from distkg.data.prepare import prepare
from distkg.data.readers.problems import Problems, warning_text
from distkg.data.splits.leaks import report_leaks
from distkg.data.spool import Spool

Triples = set[tuple[int, int, int]]


def found(tmp_path: Path, splits: dict[str, Triples], relations: int, bucket_rows: int) -> Problems:
    parts = {}
    for split, triples in splits.items():
        spool = Spool(tmp_path / split)
        spool.append(np.array(sorted(triples), np.int32).reshape(-1, 3))
        spool.finish()
        parts[split] = SplitPart(spool)
    problems = Problems("fail", KeptRejects)
    report_leaks(parts, pa.array([f"r{i}" for i in range(relations)]), tmp_path, problems, bucket_rows)
    return problems


def by_definition(splits: dict[str, Triples], relations: int) -> dict[str, int]:
    """Counts by split and kind, looked for triple by triple."""
    everything = set.union(*splits.values())
    pairs = [{(h, t) for h, r, t in everything if r == relation} for relation in range(relations)]
    turned = [{(t, h) for h, t in each} for each in pairs]

    def near(a: set[tuple[int, int]], b: set[tuple[int, int]]) -> bool:
        return bool(a) and len(a & b) >= 0.8 * max(len(a), len(b))

    counts = dict[str, int]()
    for split in ("valid", "test"):
        for h, r, t in splits[split]:
            others = [other for other in range(relations) if other != r]
            kinds = {
                "inverses": any((t, o, h) in splits["train"] and near(pairs[r], turned[o]) for o in others),
                "duplicates_by_relation": any(
                    (h, o, t) in splits["train"] and near(pairs[r], pairs[o]) for o in others
                ),
            }
            for kind, leaked in kinds.items():
                counts[f"train_{split}_{kind}"] = counts.get(f"train_{split}_{kind}", 0) + leaked
    return {name: count for name, count in counts.items() if count}


def test_inverses_are_counted_as_in_the_issue(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    train = "".join(f"p{i}\tparent_of\tc{i}\n" for i in range(50))
    train += "".join(f"c{i}\tchild_of\tp{i}\n" for i in range(20, 60))
    test = "".join(f"p{i}\tparent_of\tc{i}\n" for i in range(50, 60))
    test += "".join(f"c{i}\tchild_of\tp{i}\n" for i in range(20))
    (folder / "train.tsv").write_text(train)
    (folder / "test.tsv").write_text(test)
    made = prepare(str(folder), str(tmp_path / "s"))
    assert made.warnings == {"train_test_inverses": 30}
    text = warning_text("train_test_inverses", 30, made.examples["train_test_inverses"])
    assert text == "train_test_inverses: 30, parent_of and child_of"


def test_symmetric_relations_are_a_note(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    (folder / "train.tsv").write_text("".join(f"a{i}\tmarried\tb{i}\n" for i in range(10)) + "x\tnear\ty\n")
    (folder / "test.tsv").write_text("".join(f"b{i}\tmarried\ta{i}\n" for i in range(9)))
    made = prepare(str(folder), str(tmp_path / "s"))
    assert made.warnings == {}
    assert made.notes == ("test: 9 facts of symmetric relations are in train with head and tail exchanged (married)",)


def test_duplicates_by_relation_and_a_threshold(tmp_path: Path) -> None:
    def graph(shared: int) -> dict[str, Triples]:
        same = {(i, 0, i + 100) for i in range(10)} | {(i, 1, i + 100) for i in range(shared)}
        own = {(i + 50, 1, i + 100) for i in range(10 - shared)}
        asked = {(0, 1, 100)}
        return {"train": (same | own) - asked, "valid": set(), "test": asked}

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    problems = found(tmp_path / "a", graph(8), 2, 1 << 20)
    assert problems.counts == {"train_test_duplicates_by_relation": 1}
    assert problems.examples == {"train_test_duplicates_by_relation": "r0 and r1"}
    assert not found(tmp_path / "b", graph(7), 2, 1 << 20).counts
    assert not list((tmp_path / "a").glob("pairs.*"))


TRIPLE = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3))


@settings(max_examples=150, deadline=None)
@given(
    train=st.sets(TRIPLE, min_size=1, max_size=20),
    valid=st.sets(TRIPLE, max_size=4),
    test=st.sets(TRIPLE, max_size=6),
    bucket_rows=st.sampled_from([2, 7, 1 << 20]),
)
def test_as_the_definition_says(
    train: Triples, valid: Triples, test: Triples, bucket_rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    splits = {"train": train, "valid": valid, "test": test}
    problems = found(tmp_path_factory.mktemp("leaks"), splits, 3, bucket_rows)
    assert dict(problems.counts) == by_definition(splits, 3)
