from pathlib import Path

import pytest

from distkg.data.errors import IngestError
from distkg.data.sources import find_sources


def touch(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).write_bytes(b"a\tr\tb\n")
    return str(folder)


def test_a_folder_gives_its_splits_in_order(tmp_path: Path) -> None:
    folder = touch(tmp_path, "valid.csv", "train.tsv.gz", "test.nt", "notes.md", "entity_types.tsv", "train.tsv.bak")
    files = find_sources(folder, "auto", None, None)
    assert [(split, file.name, file.format) for split, file in files.items()] == [
        ("train", "train.tsv.gz", "tsv"),
        ("valid", "valid.csv", "tsv"),
        ("test", "test.nt", "nt"),
    ]
    assert [file.compression for file in files.values()] == ["gzip", None, None]
    assert [file.extension for file in files.values()] == ["tsv", "csv", "nt"]


def test_a_format_chooses_among_the_files_of_a_folder(tmp_path: Path) -> None:
    folder = touch(tmp_path, "train.tsv", "train.nt")
    assert find_sources(folder, "nt", None, None)["train"].name == "train.nt"
    with pytest.raises(IngestError, match=r"holds train\.nt and train\.tsv; keep one file for train"):
        find_sources(folder, "auto", None, None)


def test_one_file_may_have_its_evaluation_files_beside(tmp_path: Path) -> None:
    touch(tmp_path, "facts.txt", "dev.txt")
    files = find_sources(str(tmp_path / "facts.txt"), "auto", str(tmp_path / "dev.txt"), None)
    assert {split: file.name for split, file in files.items()} == {"train": "facts.txt", "valid": "dev.txt"}


def test_a_format_overrules_the_ending(tmp_path: Path) -> None:
    touch(tmp_path, "dump.data")
    assert find_sources(str(tmp_path / "dump.data"), "nt", None, None)["train"].format == "nt"
    with pytest.raises(IngestError, match=r"dump\.data: the ending does not tell the format .*use --format"):
        find_sources(str(tmp_path / "dump.data"), "auto", None, None)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"there is no file or folder .*nowhere"):
        find_sources(str(tmp_path / "nowhere"), "auto", None, None)
    with pytest.raises(IngestError, match=r"holds no train file \(train\.tsv, "):
        find_sources(touch(tmp_path, "valid.tsv"), "auto", None, None)
    with pytest.raises(IngestError, match="is a folder where a file is expected"):
        find_sources(touch(tmp_path, "train.tsv"), "auto", None, str(tmp_path))


def test_a_split_is_named_once(tmp_path: Path) -> None:
    folder = touch(tmp_path, "train.tsv", "valid.tsv", "other.tsv")
    with pytest.raises(IngestError, match=r"valid\.tsv and --valid .*other\.tsv both name the valid split"):
        find_sources(folder, "auto", str(tmp_path / "other.tsv"), None)


def test_an_unknown_format_answers_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"format 'xml' is unknown\. Known: auto, tsv, parquet, nt"):
        find_sources(touch(tmp_path, "train.tsv"), "xml", None, None)  # type: ignore[arg-type]
