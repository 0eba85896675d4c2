"""Finding the files of a graph: one file, or a folder with train, valid and test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from distkg.data.errors import IngestError
from distkg.data.location import Location, without_secrets

Format = Literal["auto", "tsv", "parquet", "nt"]
SPLITS = ("train", "valid", "test")
EXTENSIONS: dict[str, Format] = {
    "tsv": "tsv",
    "txt": "tsv",
    "csv": "tsv",
    "parquet": "parquet",
    "nt": "nt",
}
_ENDING = re.compile(r"\.(tsv|txt|csv|parquet|nt)(\.gz)?$")
_NAMED = re.compile(r"^(?P<name>\w+)\.(?P<ending>tsv|txt|csv|parquet|nt)(\.gz)?$")


@dataclass(frozen=True)
class SourceFile:
    """One file of triples.

    Attributes:
        location: where it is.
        format: ``tsv`` (any delimiter), ``parquet`` or ``nt``.
        name: how messages call it.
    """

    location: Location
    format: Format
    name: str

    @property
    def extension(self) -> str:
        """tsv, csv, … without .gz; empty where the name does not tell."""
        match = _ENDING.search(self.location.name)
        return match.group(1) if match else ""

    @property
    def compression(self) -> str | None:
        return "gzip" if self.location.name.endswith(".gz") else None


def find_sources(source: str, format: Format, valid: str | None, test: str | None) -> dict[str, SourceFile]:
    """The files of a graph by split; ``train`` alone where one file is to be split.

    Raises:
        IngestError: nothing there, no train file in the folder, two files for one split, unknown ending.
    """
    if format not in get_args(Format):
        raise IngestError(f"format {format!r} is unknown. Known: {', '.join(get_args(Format))}")
    location = Location.of(source)
    if location.is_folder():
        files = _in_folder(location, format, without_secrets(source))
    else:
        files = {"train": _one_file(source, format)}
    for split, address in (("valid", valid), ("test", test)):
        if address is None:
            continue
        if split in files:
            raise IngestError(f"{files[split].name} and --{split} {address} both name the {split} split; keep one")
        files[split] = _one_file(address, format)
    return files


def _one_file(address: str, format: Format) -> SourceFile:
    location = Location.of(address)
    shown = without_secrets(address)
    if location.is_folder():
        raise IngestError(f"{shown} is a folder where a file is expected")
    if not location.is_file():
        raise IngestError(f"there is no file or folder {shown}")
    return SourceFile(location, _format_of(location.name, format, shown), location.name)


def _format_of(name: str, format: Format, shown: str) -> Format:
    if format != "auto":
        return format
    match = _ENDING.search(name)
    if not match:
        known = ", ".join(f".{extension}" for extension in EXTENSIONS)
        raise IngestError(f"{shown}: the ending does not tell the format ({known}, also with .gz); use --format")
    return EXTENSIONS[match.group(1)]


def files_in_folder(folder: Location, names: Sequence[str], format: Format) -> dict[str, SourceFile]:
    """Name → its file, of those names that have one, in any known format.

    Raises:
        IngestError: two files for one name.
    """
    files: dict[str, SourceFile] = {}
    for file in sorted(folder.names()):
        match = _NAMED.match(file)
        if not match or match["name"] not in names or (format != "auto" and EXTENSIONS[match["ending"]] != format):
            continue
        name = match["name"]
        if name in files:
            shown = without_secrets(folder.path)
            raise IngestError(f"{shown} holds {files[name].name} and {file}; keep one file for {name}")
        files[name] = SourceFile(folder.child(file), EXTENSIONS[match["ending"]], file)
    return files


def _in_folder(folder: Location, format: Format, shown: str) -> dict[str, SourceFile]:
    files = files_in_folder(folder, SPLITS, format)
    if "train" not in files:
        wanted = ", ".join(f"train.{extension}" for extension in EXTENSIONS)
        raise IngestError(f"folder {shown} holds no train file ({wanted}, text also with .gz)")
    return {split: files[split] for split in SPLITS if split in files}
