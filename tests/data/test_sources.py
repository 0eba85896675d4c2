from pathlib import Path

import pytest

from distkg.data.errors import IngestError
from distkg.data.readers.sources import DETECTED, ReadOptions, files_left_aside, find_sources, read_options
from distkg.data.storage.location import Location


def touch(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).write_bytes(b"a\tr\tb\n")
    return str(folder)


def test_a_folder_gives_its_splits_in_order(tmp_path: Path) -> None:
    folder = touch(tmp_path, "valid.csv", "train.tsv.gz", "test.nt", "notes.md", "entity_types.tsv", "train.tsv.bak")
    files = find_sources(folder, DETECTED)
    assert [(split, file.name, file.format) for split, file in files.items()] == [
        ("train", "train.tsv.gz", "tsv"),
        ("valid", "valid.csv", "tsv"),
        ("test", "test.nt", "nt"),
    ]
    assert [file.compression for file in files.values()] == ["gzip", None, None]
    assert [file.extension for file in files.values()] == ["tsv", "csv", "nt"]


def test_a_format_chooses_among_the_files_of_a_folder(tmp_path: Path) -> None:
    folder = touch(tmp_path, "train.tsv", "train.nt")
    assert find_sources(folder, ReadOptions(format="nt"))["train"].name == "train.nt"
    with pytest.raises(IngestError, match=r"holds train\.nt and train\.tsv; keep one file for train"):
        find_sources(folder, DETECTED)


def test_one_file_may_have_its_evaluation_files_beside(tmp_path: Path) -> None:
    touch(tmp_path, "facts.txt", "dev.txt")
    files = find_sources(str(tmp_path / "facts.txt"), DETECTED, str(tmp_path / "dev.txt"))
    assert {split: file.name for split, file in files.items()} == {"train": "facts.txt", "valid": "dev.txt"}


def test_a_format_overrules_the_ending(tmp_path: Path) -> None:
    touch(tmp_path, "dump.data")
    assert find_sources(str(tmp_path / "dump.data"), ReadOptions(format="nt"))["train"].format == "nt"
    with pytest.raises(IngestError, match=r"dump\.data: the extension does not give the format .*use --format"):
        find_sources(str(tmp_path / "dump.data"), DETECTED)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"there is no file or folder .*nowhere"):
        find_sources(str(tmp_path / "nowhere"), DETECTED)
    with pytest.raises(IngestError, match=r"holds no train file \(train\.tsv, "):
        find_sources(touch(tmp_path, "valid.tsv"), DETECTED)
    with pytest.raises(IngestError, match="is a folder where a file is expected"):
        find_sources(touch(tmp_path, "train.tsv"), DETECTED, test=str(tmp_path))


def test_a_split_is_named_once(tmp_path: Path) -> None:
    folder = touch(tmp_path, "train.tsv", "valid.tsv", "other.tsv")
    with pytest.raises(IngestError, match=r"valid\.tsv and --valid .*other\.tsv both name the valid split"):
        find_sources(folder, DETECTED, str(tmp_path / "other.tsv"))


def test_an_unknown_format_answers_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"format 'xml' is unknown\. Known: auto, tsv, parquet, nt"):
        find_sources(touch(tmp_path, "train.tsv"), ReadOptions(format="xml"))


def test_compressed_files_and_endings_in_capitals_are_found(tmp_path: Path) -> None:
    folder = touch(tmp_path, "train.nt.bz2", "VALID.CSV", "test.ttl.zst")
    files = find_sources(folder, DETECTED)
    assert {split: (file.name, file.format, file.compression) for split, file in files.items()} == {
        "train": ("train.nt.bz2", "nt", "bz2"),
        "valid": ("VALID.CSV", "tsv", None),
        "test": ("test.ttl.zst", "ttl", "zstd"),
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("train.zip", "train.zip is there, but is not read: archives are not read; unpack it"),
        ("train.tsv.tar", "train.tsv.tar is there, but is not read: archives are not read"),
        ("train.parquet.gz", "train.parquet.gz is there, but is not read: Parquet is compressed inside"),
        ("train.xlsx", "train.xlsx is there, but is not read: this format is not read"),
        ("train.del", "train.del is there, but is not read: its extension is unknown"),
        ("training.csv", "training.csv is not read; name it train.csv"),
        ("train2id.txt", "train2id.txt is there: OpenKE's form.*--columns 1,3,2"),
        ("facts.tsv", "It holds facts.tsv"),
    ],
)
def test_what_is_there_instead_of_train_is_said(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(IngestError, match=f"holds no train file .*{reason}"):
        find_sources(touch(tmp_path, name), DETECTED)


def test_splits_by_other_names_are_told(tmp_path: Path) -> None:
    folder = Location.of(touch(tmp_path, "train.tsv", "dev.tsv", "val_triples.csv", "test.zip", "notes.txt", "dev.md"))
    assert files_left_aside(folder, ["train.tsv"]) == [
        "dev.tsv is not read; name it valid.tsv if it is the valid split",
        "test.zip is there, but is not read: archives are not read; unpack it, and give the file or folder "
        "that it holds",
        "val_triples.csv is not read; name it valid.csv if it is the valid split",
    ]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tsv.7z"])
def test_archives_are_refused_by_name(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    with pytest.raises(IngestError, match="archives are not read"):
        find_sources(str(tmp_path / name), ReadOptions(format="tsv"))


@pytest.mark.parametrize("columns", ["a,b", "a,b,c,d", "a,,c", "a,b,a", ""])
def test_columns_are_three(columns: str) -> None:
    with pytest.raises(IngestError, match="must name three different columns"):
        read_options(columns=columns)


def test_delimiters_by_name_or_character() -> None:
    assert [read_options(delimiter=given).delimiter for given in ("tab", "\\t", "\t", ";", "Pipe", "^")] == [
        *"\t\t\t",
        ";",
        "|",
        "^",
    ]
    for given in ("", "||", "a", "é", '"', "\n"):
        with pytest.raises(IngestError, match="must be one ASCII character"):
            read_options(delimiter=given)
