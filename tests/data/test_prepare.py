from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distkg.data.assemble import PrepareReport
from distkg.data.errors import IngestError
from distkg.data.prepare import prepare
from distkg.data.readers.sources import ReadOptions, read_options
from distkg.data.store.graph_store import Store
from tests.with_dgl import HAS_DGL


def folder_of(tmp_path: Path, **splits: str) -> str:
    folder = tmp_path / "files"
    folder.mkdir(parents=True)
    for split, text in splits.items():
        (folder / f"{split}.tsv").write_text(text)
    return str(folder)


def clique(size: int = 20) -> str:
    return "".join(f"n{a}\tr{(a + b) % 3}\tn{b}\n" for a in range(size) for b in range(size) if a != b)


def labels_of(store: Store, split: str) -> set[tuple[str, ...]]:
    triples = store.triples(split)
    columns = (
        store.entity_labels_of(triples[:, 0]),
        store.relation_labels().take(triples[:, 1]).to_pylist(),
        store.entity_labels_of(triples[:, 2]),
    )
    return set(zip(*columns, strict=True))


def test_duplicates_overlaps_and_unseen_entities_are_counted_and_located(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path,
        train="a\tr\tb\nb\tr\tc\na\tr\tb\na\tr\tb\n",
        valid="b\tr\tc\nz\tr\ta\n",
        test="b\tr\tc\na\tnew\tb\na\tr\tz\nz\tr\tz\n",
    )
    made = prepare(source, str(tmp_path / "s"))
    assert made.triples == {"train": 2, "valid": 2, "test": 4}
    assert (made.entities, made.relations) == (4, 2)
    assert made.warnings == {
        "train_duplicates": 2,
        "train_valid_overlap": 1,
        "train_test_overlap": 1,
        "valid_test_overlap": 1,
        "valid_unseen_entities": 1,
        "test_unseen_entities": 2,
        "test_unseen_relations": 1,
    }
    assert made.examples == {
        "train_duplicates": "train.tsv:3 repeats train.tsv:1",
        "train_valid_overlap": "valid.tsv:1 is also train.tsv:2",
        "train_test_overlap": "test.tsv:1 is also train.tsv:2",
        "valid_test_overlap": "test.tsv:1 is also valid.tsv:1",
        "valid_unseen_entities": "valid.tsv:2",
        "test_unseen_entities": "test.tsv:3",
        "test_unseen_relations": "test.tsv:2",
    }
    store = Store.open(str(tmp_path / "s"))
    assert labels_of(store, "valid") == {("b", "r", "c"), ("z", "r", "a")}
    assert store.manifest.warnings == made.warnings
    assert store.manifest.examples == made.examples


def test_skipped_lines_are_in_the_store_and_its_manifest(tmp_path: Path) -> None:
    source = folder_of(tmp_path, train="a\tr\tb\nbad line\nb\tr\ta\n", valid="", test="a\tr\ta\nx\t\ty\n")
    made = prepare(source, str(tmp_path / "s"), ReadOptions(on_error="skip"))
    assert made.triples == {"train": 2, "valid": 0, "test": 1}
    assert made.warnings == {"rejected_lines": 2, "empty_files": 1}
    assert made.rejects == str(tmp_path / "s") + "/rejects.tsv"
    lines = Path(made.rejects).read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines] == [["file", "line"], ["train.tsv", "2"], ["test.tsv", "2"]]
    store = Store.open(str(tmp_path / "s"))
    store.verify()
    assert store.manifest.files["rejects.tsv"].rows == 2


def test_by_default_a_bad_line_stops_and_leaves_nothing(tmp_path: Path) -> None:
    source = folder_of(tmp_path, train="a\tr\tb\nbad line\n")
    with pytest.raises(IngestError, match=r"train\.tsv:2: 1 column"):
        prepare(source, str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["train", "valid"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    source = folder_of(tmp_path, **({"train": "a\tr\tb\n", "valid": "a\tr\tb\n"} | {name: ""}))
    with pytest.raises(IngestError, match=rf"{name}\.tsv:1: the file holds no triples"):
        prepare(source, str(tmp_path / "s"))


def test_a_file_of_rejects_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    source = folder_of(tmp_path, train="x\ty\nz\n")
    with pytest.raises(IngestError, match=r"no triples; 2 lines rejected, first train\.tsv:1: 2 columns"):
        prepare(source, str(tmp_path / "s"), ReadOptions(on_error="skip"))


def test_one_file_is_split_by_the_shares(tmp_path: Path) -> None:
    (tmp_path / "all.tsv").write_text(clique() + "n0\tr1\tn1\n")
    made = prepare(str(tmp_path / "all.tsv"), str(tmp_path / "s"), split=(0.8, 0.15, 0.05))
    assert made.triples == {"train": 304, "valid": 57, "test": 19}
    assert made.warnings == {"train_duplicates": 1}
    store = Store.open(str(tmp_path / "s"))
    parts = [labels_of(store, split) for split in ("train", "valid", "test")]
    assert set.union(*parts) == {tuple(line.split("\t")) for line in clique().splitlines()}
    assert sum(map(len, parts)) == 380


def test_a_sparse_file_spares_what_it_can_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "all.tsv").write_text("a\tr\tb\nb\tr\ta\na\tr\tc\n")
    made = prepare(str(tmp_path / "all.tsv"), str(tmp_path / "s"), split=(0.34, 0.33, 0.33))
    assert made.triples == {"train": 2, "valid": 0, "test": 1} or made.triples == {"train": 2, "valid": 1, "test": 0}
    assert made.warnings == {"held_out_short": 1}


def test_one_file_with_others_beside_is_not_split(tmp_path: Path) -> None:
    (tmp_path / "all.tsv").write_text(clique(5))
    (tmp_path / "dev.tsv").write_text("n0\tr0\tn0\n")
    made = prepare(str(tmp_path / "all.tsv"), str(tmp_path / "s"), valid=str(tmp_path / "dev.tsv"))
    assert made.triples == {"train": 20, "valid": 1, "test": 0}


def test_a_folder_with_train_alone_is_not_split(tmp_path: Path) -> None:
    assert prepare(folder_of(tmp_path, train=clique(5)), str(tmp_path / "s")).triples["train"] == 20


def same_graph(tmp_path: Path, name: str) -> PrepareReport:
    rows = [tuple(line.split("\t")) for line in clique(6).splitlines()]
    path = tmp_path / name
    if name.endswith(".nt"):
        iri = "<http://x/{}> <http://x/{}> <http://x/{}> .\n"
        path.write_text("".join(iri.format(*row) for row in rows))
    elif name.endswith(".parquet"):
        pq.write_table(pa.table(dict(zip(("head", "relation", "tail"), zip(*rows, strict=True), strict=True))), path)
    else:
        path.write_text("".join(",".join(row) + "\n" for row in rows))
    return prepare(str(path), str(tmp_path / f"store-{name}"))


def test_all_formats_give_the_same_graph(tmp_path: Path) -> None:
    made = [same_graph(tmp_path, name) for name in ("g.csv", "g.parquet", "g.nt")]
    first, second, third = (Store.open(report.store) for report in made)
    assert [report.triples for report in made] == [{"train": 26, "valid": 2, "test": 2}] * 3
    for split in ("train", "valid", "test"):
        assert first.triples(split).tolist() == second.triples(split).tolist()
        assert {tuple(f"http://x/{label}" for label in row) for row in labels_of(first, split)} == labels_of(
            third, split
        )


def test_the_seed_decides_ids_and_splits(tmp_path: Path) -> None:
    (tmp_path / "all.tsv").write_text(clique())
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(str(tmp_path / "all.tsv"), str(tmp_path / name), seed=seed)
    a, b, c = (Store.open(str(tmp_path / name)) for name in "abc")
    assert a.manifest.files == b.manifest.files
    assert a.entity_labels().to_pylist() != c.entity_labels().to_pylist()
    assert labels_of(a, "test") != labels_of(c, "test")


def test_ids_are_in_random_order(tmp_path: Path) -> None:
    prepare(folder_of(tmp_path, train="".join(f"e{i:04}\tr\te{i + 1:04}\n" for i in range(1000))), str(tmp_path / "s"))
    labels = Store.open(str(tmp_path / "s")).entity_labels().to_pylist()
    order = np.argsort(labels)
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.15  # 0.03 is one standard deviation


def test_partitions_put_communities_into_contiguous_ranges(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = [(f"{group}-{a}", f"{group}-{b}") for group in "xyz" for a, b in rng.integers(0, 30, (300, 2))]
    source = folder_of(tmp_path, train="".join(f"{a}\tr\t{b}\n" for a, b in pairs))
    made = prepare(source, str(tmp_path / "s"), partitions=3, partitioner="metis")
    manifest = Store.open(made.store).manifest
    assert manifest.partitioner == ("metis" if HAS_DGL else "ldg")
    assert manifest.partition_offsets == [0, 30, 60, 90]
    labels = Store.open(made.store).entity_labels().to_pylist()
    groups = [{label[0] for label in labels[start : start + 30]} for start in (0, 30, 60)]
    assert sorted(map(sorted, groups)) == [["x"], ["y"], ["z"]]


def test_random_partitions_have_offsets_too(tmp_path: Path) -> None:
    source = folder_of(tmp_path, train=clique(10))
    prepare(source, str(tmp_path / "s"), partitions=4)
    assert Store.open(str(tmp_path / "s")).manifest.partition_offsets == [0, 3, 6, 9, 10]
    with pytest.raises(IngestError, match="11 partitions of 10 entities: choose from 1 to 10"):
        prepare(source, str(tmp_path / "t"), partitions=11)


@pytest.mark.parametrize("split", [(0.5, 0.5, 0.5), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_impossible_shares_are_refused(tmp_path: Path, split: tuple[float, float, float]) -> None:
    with pytest.raises(IngestError, match=r"must be three shares that sum to 1"):
        prepare("anything.tsv", str(tmp_path / "s"), split=split)


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"on_error='stop' is unknown\. Known: fail, skip"):
        prepare("x.tsv", str(tmp_path / "s"), ReadOptions(on_error="stop"))  # type: ignore[arg-type]
    with pytest.raises(IngestError, match=r"partitioner='kahip' is unknown\. Known: random, metis"):
        prepare("x.tsv", str(tmp_path / "s"), partitioner="kahip")  # type: ignore[arg-type]


def test_progress_tells_stages_and_counts(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    source = folder_of(tmp_path, train=clique(5), test="n0\tr0\tn0\n")
    prepare(source, str(tmp_path / "s"), progress=lambda stage, done: told.append((stage, done)))
    assert told == [
        ("reading train.tsv", 20),
        ("reading test.tsv", 1),
        ("looking for duplicates", 21),
        ("writing train", 20),
        ("writing test", 1),
    ]


def test_every_line_is_accounted_for(tmp_path: Path) -> None:
    lines = ["# by hand", "", "head\trelation\ttail", "a\tr\tb", "bad", "a\tr\tb", "", "b\tr\t", "#note", "b\tr\tc"]
    made = prepare(
        folder_of(tmp_path, train="\n".join(lines) + "\n"), str(tmp_path / "s"), ReadOptions(on_error="skip")
    )
    assert made.warnings == {
        "comment_lines": 2,
        "blank_lines": 2,
        "header_lines": 1,
        "rejected_lines": 2,
        "train_duplicates": 1,
    }
    assert sum(made.warnings.values()) + made.triples["train"] == len(lines)


def test_each_file_may_have_a_header_or_not(tmp_path: Path) -> None:
    facts = "a\tr\tb\nb\tr\tc\n"
    source = folder_of(
        tmp_path, train=facts + "c\tr\ta\n", valid="tail\trel\thead\na\tr\ta\n", test="one\ttwo\tthree\nb\tr\tb\n"
    )
    made = prepare(source, str(tmp_path / "s"))
    assert made.triples == {"train": 3, "valid": 1, "test": 2}
    assert made.warnings["header_lines"] == 1
    assert made.warnings["first_line_may_be_a_header"] == 1
    assert made.examples["first_line_may_be_a_header"] == "test.tsv:1"
    assert prepare(source, str(tmp_path / "t"), ReadOptions(header=True)).triples == {"train": 2, "valid": 1, "test": 1}
    made = prepare(source, str(tmp_path / "u"), ReadOptions(header=False))
    assert made.triples == {"train": 3, "valid": 2, "test": 2}
    assert "first_line_may_be_a_header" not in made.warnings


def test_a_first_line_whose_labels_other_files_have_is_a_fact(tmp_path: Path) -> None:
    source = folder_of(tmp_path, train="a\tr\tb\nb\ts\tc\nc\ts\ta\n", test="a\tr\tc\nb\ts\ta\n")
    assert prepare(source, str(tmp_path / "s")).warnings == {}
    source = folder_of(tmp_path / "x", train="x\ty\tz\na\tr\tb\n", test="x\ty\tz\na\tr\tc\n")
    warnings = prepare(source, str(tmp_path / "t")).warnings
    assert warnings["first_line_may_be_a_header"] == 2


def test_labels_that_are_one_are_told(tmp_path: Path) -> None:
    made = prepare(folder_of(tmp_path, train="Paris\tin\tFrance\nParis \tin \tFrance\n"), str(tmp_path / "s"))
    assert made.warnings == {"labels_that_differ_in_spaces_or_unicode_form": 2}
    assert made.examples == {"labels_that_differ_in_spaces_or_unicode_form": "'Paris' and 'Paris '"}
    assert (made.entities, made.relations) == (3, 2)


def test_options_that_no_file_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.nt").write_text("<http://a> <http://b> <http://c> .\n")
    with pytest.raises(IngestError, match=r"--columns: only for .*, which none of the files \(x\.nt\) is"):
        prepare(str(tmp_path / "x.nt"), str(tmp_path / "s"), read_options(columns="1,2,3"))


def test_options_reach_both_graphs_of_an_inductive_folder(tmp_path: Path) -> None:
    rows = "1\ta\tb\tr\n2\tb\tc\tr\n"
    source = folder_of(tmp_path, train=rows, valid=rows, test=rows, inference=rows)
    made = prepare(source, str(tmp_path / "s"), read_options(columns="2,4,3"))
    assert (made.entities, made.relations) == (3, 1)
    assert made.training_graph is not None
    assert made.training_graph.triples["train"] == 2
