"""Finding the files of a graph: one file, or a folder with train, valid and test; and how each is to be read."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from distkg.data.errors import IngestError
from distkg.data.storage.location import Location, without_secrets

Format = Literal["auto", "tsv", "parquet", "nt", "nq", "ttl", "trig", "rdf", "n3", "jsonld"]
Literals = Literal["keep", "drop"]
SPLITS = ("train", "valid", "test")
OTHER_SPLIT_NAMES = {"training": "train", "dev": "valid", "val": "valid", "validation": "valid", "testing": "test"}
EXTENSIONS: dict[str, Format] = {
    "tsv": "tsv",
    "txt": "tsv",
    "csv": "tsv",
    "parquet": "parquet",
    "nt": "nt",
    "nq": "nq",
    "ttl": "ttl",
    "trig": "trig",
    "rdf": "rdf",
    "xml": "rdf",
    "owl": "rdf",
    "n3": "n3",
    "jsonld": "jsonld",
}
COMPRESSIONS = {"gz": "gzip", "bz2": "bz2", "xz": "xz", "zst": "zstd", "lz4": "lz4"}
"""Ending of a compressed text file → its compression."""

_COMPRESSED = re.compile(rf"\.({'|'.join(COMPRESSIONS)})$", re.IGNORECASE)
_ENDING = re.compile(rf"\.({'|'.join(EXTENSIONS)})(\.({'|'.join(COMPRESSIONS)}))?$", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|7z|rar|tar\.\w+)$", re.IGNORECASE)
_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}


@dataclass(frozen=True)
class ReadOptions:
    """How files are read, where that is not to be found out.

    Attributes:
        columns: names or numbers (from 1) of the columns of head, relation and tail; empty: by the header, or in order.
        header: whether the first line names the columns; None: detect.
        delimiter: one character; empty: detect.
        encoding: of text files; empty: UTF-8, or UTF-16 or UTF-32 where a byte order mark says so.
        literals: whether RDF facts whose object is a literal are read.
    """

    columns: tuple[str, ...] = ()
    header: bool | None = None
    delimiter: str = ""
    encoding: str = ""
    literals: Literals = "keep"


def read_options(
    columns: str | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    literals: Literals = "keep",
) -> ReadOptions:
    """Options as users write them: ``columns="head,relation,tail"``, ``delimiter="tab"``.

    Raises:
        IngestError: other than three columns, a delimiter of several characters, an unknown encoding.
    """
    if literals not in get_args(Literals):
        raise IngestError(f"literals={literals!r} is unknown. Known: {', '.join(get_args(Literals))}")
    return ReadOptions(_columns(columns), header, _delimiter(delimiter), _encoding(encoding), literals)


def _columns(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if len(names) != 3 or not all(names) or len(set(names)) != 3:
        raise IngestError(
            f"--columns {text!r} must name three different columns, those of head, relation and tail, such as "
            "subject,predicate,object or 2,3,4 (numbers count from 1)"
        )
    return names


def _delimiter(text: str | None) -> str:
    if text is None:
        return ""
    character = _DELIMITERS.get(text.lower(), text)
    if len(character) != 1 or not character.isascii() or character in '\r\n"\0' or character.isalnum():
        raise IngestError(
            f"--delimiter {text!r} must be one ASCII character that is no letter, digit or quote, or one of tab, "
            "comma, semicolon, pipe, space"
        )
    return character


def _encoding(name: str | None) -> str:
    if name is None:
        return ""
    try:
        codecs.getincrementaldecoder(name)
        if "a\t\n".encode(name).decode(name) == "a\t\n":  # codecs that are no text encodings refuse this
            return name
    except (LookupError, UnicodeError, ValueError):
        pass
    raise IngestError(
        f"--encoding {name!r} is no text encoding that Python knows. Known, among others: utf-8, utf-16, latin-1, "
        "cp1252, gb18030, shift_jis"
    )


@dataclass(frozen=True)
class SourceFile:
    """One file of triples.

    Attributes:
        location: where it is.
        format: ``tsv`` (any delimiter), ``parquet``, or a form of RDF.
        name: how messages call it.
        options: how it is read.
    """

    location: Location
    format: Format
    name: str
    options: ReadOptions = field(default_factory=ReadOptions)

    @property
    def unit(self) -> str:
        """What the places in this file count, where that is not lines."""
        return "triple " if self.format in ("ttl", "trig", "rdf", "n3", "jsonld") else ""

    @property
    def extension(self) -> str:
        """tsv, csv, … without that of a compression; empty where the name does not tell."""
        match = _ENDING.search(self.location.name)
        return match.group(1).lower() if match else ""

    @property
    def compression(self) -> str | None:
        """gzip, bz2, xz, zstd or lz4, by the ending."""
        match = _COMPRESSED.search(self.location.name)
        return COMPRESSIONS[match.group(1).lower()] if match else None


def find_sources(
    source: str, format: Format, valid: str | None, test: str | None, options: ReadOptions | None = None
) -> dict[str, SourceFile]:
    """The files of a graph by split; ``train`` alone where one file is to be split.

    Raises:
        IngestError: nothing there, no train file in the folder, two files for one split, unknown ending.
    """
    options = options or ReadOptions()
    if format not in get_args(Format):
        raise IngestError(f"format {format!r} is unknown. Known: {', '.join(get_args(Format))}")
    location = Location.of(source)
    if location.is_folder():
        files = _in_folder(location, format, without_secrets(source), options)
    else:
        files = {"train": _one_file(source, format, options)}
    for split, address in (("valid", valid), ("test", test)):
        if address is None:
            continue
        if split in files:
            shown = without_secrets(address)
            raise IngestError(f"{files[split].name} and --{split} {shown} both name the {split} split; keep one")
        files[split] = _one_file(address, format, options)
    return files


def _one_file(address: str, format: Format, options: ReadOptions) -> SourceFile:
    location = Location.of(address)
    shown = without_secrets(address)
    if location.is_folder():
        raise IngestError(f"{shown} is a folder where a file is expected")
    if not location.is_file():
        raise IngestError(f"there is no file or folder {shown}")
    return SourceFile(location, _format_of(location.name, format, shown), location.name, options)


def _format_of(name: str, format: Format, shown: str) -> Format:
    reason = why_not_read(name)
    if reason and (format == "auto" or _ARCHIVE.search(name)):
        raise IngestError(f"{shown}: {reason}")
    if format != "auto":
        return format
    match = _ENDING.search(name)
    if not match:
        known = ", ".join(f".{extension}" for extension in EXTENSIONS)
        compressed = ", ".join(f".{ending}" for ending in COMPRESSIONS)
        raise IngestError(
            f"{shown}: the ending does not tell the format ({known}; text also with {compressed}); use --format"
        )
    return EXTENSIONS[match.group(1).lower()]


def why_not_read(name: str) -> str:
    """Why a file with such a name is not read, and what to do; empty where the name is no reason."""
    if _ARCHIVE.search(name):
        return "archives are not read; unpack it, and give the file or the folder that was in it"
    match = _ENDING.search(name)
    if match and match.group(2) and match.group(1).lower() == "parquet":
        return f"Parquet is compressed inside; unpack the {match.group(2)}"
    if re.search(r"\.(xlsx?|ods|json|jsonl|feather|arrow|pkl|pickle|npz|db|sqlite)(\.\w+)?$", name, re.IGNORECASE):
        return "this format is not read; write it as TSV, CSV or Parquet"
    return ""


def files_in_folder(
    folder: Location, names: Sequence[str], format: Format, options: ReadOptions | None = None
) -> dict[str, SourceFile]:
    """Name → its file, of those names that have one, in any known format.

    Raises:
        IngestError: two files for one name.
    """
    files: dict[str, SourceFile] = {}
    for file in sorted(folder.names()):
        match = _ENDING.search(file)
        name = file[: match.start()].lower() if match else ""
        if not match or name not in names or why_not_read(file):
            continue
        found = EXTENSIONS[match.group(1).lower()]
        if format not in ("auto", found):
            continue
        if name in files:
            shown = without_secrets(folder.path)
            raise IngestError(f"{shown} holds {files[name].name} and {file}; keep one file for {name}")
        files[name] = SourceFile(folder.child(file), found, file, options or ReadOptions())
    return files


def files_left_aside(folder: Location, read: Collection[str]) -> list[str]:
    """Sentences about files of a folder that look like splits and are not read."""
    found = []
    for file in sorted(folder.names() - set(read)):
        stem = re.split(r"[._-]", file.lower())[0]
        if stem in OTHER_SPLIT_NAMES and _ENDING.search(file):
            split = OTHER_SPLIT_NAMES[stem]
            found.append(f"{file} is not read; name it {split}{file[file.index('.') :]} if it is the {split} split")
        elif stem in SPLITS and re.fullmatch(rf"{stem}\.\w+(\.\w+)?", file.lower()):
            reason = why_not_read(file) or "its ending is no known one, or not that of --format"
            found.append(f"{file} is there, but is not read: {reason}")
    return found


def _in_folder(folder: Location, format: Format, shown: str, options: ReadOptions) -> dict[str, SourceFile]:
    files = files_in_folder(folder, SPLITS, format, options)
    if "train" not in files:
        wanted = ", ".join(f"train.{extension}" for extension in EXTENSIONS)
        aside = "".join(f". {sentence}" for sentence in files_left_aside(folder, []))
        raise IngestError(f"folder {shown} holds no train file ({wanted}, text also compressed){aside}{_hint(folder)}")
    return {split: files[split] for split in SPLITS if split in files}


def _hint(folder: Location) -> str:
    """What is there instead of a train file."""
    names = sorted(name for name in folder.names() if not name.startswith("."))
    if any(re.fullmatch(r"train2id\.txt", name, re.IGNORECASE) for name in names):
        return (
            ". train2id.txt is there: OpenKE's form, with a count in its first line and columns head, tail, relation. "
            "Give that file itself, with --columns 1,3,2"
        )
    return f". It holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else ". It is empty"
