"""Discovery of the files of a graph: one file, or a folder with train, valid and test; and options of reading."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from distkg.data.errors import IngestError, check_choice
from distkg.data.readers.formats import AUTO, COMPRESSIONS, ending, extensions, formats
from distkg.data.readers.problems import OnError
from distkg.data.storage.location import Location, without_secrets

Literals = Literal["keep", "drop"]
SPLITS = ("train", "valid", "test")
OTHER_SPLIT_NAMES = {"training": "train", "dev": "valid", "val": "valid", "validation": "valid", "testing": "test"}
_COMPRESSED = re.compile(rf"\.({'|'.join(COMPRESSIONS)})$", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|7z|rar|tar\.\w+)$", re.IGNORECASE)
_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading files; a default means that the value is detected.

    Attributes:
        format: format of the files; ``auto`` goes by their extensions.
        on_error: ``fail`` raises at the first bad line; ``skip`` writes bad lines to rejects.tsv.
        columns: names or numbers (from 1) of the columns of head, relation and tail in tables; other columns are left
            out. Empty: by the header, else the first three.
        header: True if the first line of delimited text names the columns; None: if its names are known ones.
        delimiter: column delimiter of text, one character; empty: the one that gives most lines the same number of
            columns.
        encoding: encoding of text; empty: UTF-8, or UTF-16 or UTF-32 by the byte order mark.
        literals: ``keep`` or ``drop`` RDF facts whose object is a literal.

    Raises:
        IngestError: an unknown format or choice; the message lists the known ones.
    """

    format: str = AUTO
    on_error: OnError = "fail"
    columns: tuple[str, ...] = ()
    header: bool | None = None
    delimiter: str = ""
    encoding: str = ""
    literals: Literals = "keep"

    def __post_init__(self) -> None:
        if self.format not in formats():
            raise IngestError(f"--format {self.format!r} is unknown. Known: {', '.join(formats())}")
        check_choice("on_error", self.on_error, OnError)
        check_choice("literals", self.literals, Literals)


DETECTED = ReadOptions()
"""Options of files whose format and layout are detected."""


def read_options(
    *,
    format: str = AUTO,
    on_error: OnError = "fail",
    columns: str | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    literals: Literals = "keep",
) -> ReadOptions:
    """Parse options in the form of the command line: ``columns="head,relation,tail"``, ``delimiter="tab"``.

    Raises:
        IngestError: not three columns, a delimiter of several characters, an unknown encoding, or as ``ReadOptions``.
    """
    return ReadOptions(
        format, on_error, _columns(columns), header, _delimiter(delimiter), _encoding(encoding), literals
    )


def _columns(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if len(names) != 3 or not all(names) or len(set(names)) != 3:
        raise IngestError(
            f"--columns {text!r} must name three different columns, for head, relation and tail, such as "
            "subject,predicate,object or 2,3,4 (numbers count from 1)"
        )
    return names


def _delimiter(text: str | None) -> str:
    if text is None:
        return ""
    character = _DELIMITERS.get(text.lower(), text)
    if len(character) != 1 or not character.isascii() or character in '\r\n"\0' or character.isalnum():
        raise IngestError(
            f"--delimiter {text!r} must be one ASCII character that is not a letter, digit or quote, or one of tab, "
            "comma, semicolon, pipe, space"
        )
    return character


def _encoding(name: str | None) -> str:
    if name is None:
        return ""
    try:
        codecs.getincrementaldecoder(name)
        if "a\t\n".encode(name).decode(name) == "a\t\n":  # codecs that are not text encodings fail here
            return name
    except (LookupError, UnicodeError, ValueError):
        pass
    raise IngestError(
        f"--encoding {name!r} is not a text encoding that Python knows. Known, among others: utf-8, utf-16, latin-1, "
        "cp1252, gb18030, shift_jis"
    )


@dataclass(frozen=True)
class SourceFile:
    """File of triples.

    Attributes:
        location: filesystem and path.
        format: ``tsv`` (any delimiter), ``parquet``, an RDF format, or that of a plug-in.
        name: name in messages.
        options: options of reading.
    """

    location: Location
    format: str
    name: str
    options: ReadOptions = field(default_factory=ReadOptions)

    @property
    def unit(self) -> str:
        """Prefix of positions in this file, ``triple `` if they count triples instead of lines."""
        return "triple " if self.format in ("ttl", "trig", "rdf", "n3", "jsonld") else ""

    @property
    def extension(self) -> str:
        """Known extension in lower case, such as tsv, without the one of a compression; empty if there is none."""
        match = ending().search(self.location.name)
        return match.group(1).lower() if match else ""

    @property
    def compression(self) -> str | None:
        """Compression by the extension: gzip, bz2, xz, zstd, lz4 or None."""
        match = _COMPRESSED.search(self.location.name)
        return COMPRESSIONS[match.group(1).lower()] if match else None


def find_sources(
    source: str, options: ReadOptions, valid: str | None = None, test: str | None = None
) -> dict[str, SourceFile]:
    """Find the files of a graph by split; only ``train`` if a single file is to be split.

    Args:
        valid, test: files of these splits, if ``source`` does not hold them.

    Raises:
        IngestError: no such file, no train file in the folder, two files for one split, or an unknown extension.
    """
    location = Location.of(source)
    if location.is_folder():
        files = _in_folder(location, without_secrets(source), options)
    else:
        files = {"train": _one_file(source, options)}
    for split, address in (("valid", valid), ("test", test)):
        if address is None:
            continue
        if split in files:
            shown = without_secrets(address)
            raise IngestError(f"{files[split].name} and --{split} {shown} both name the {split} split; keep one")
        files[split] = _one_file(address, options)
    return files


def _one_file(address: str, options: ReadOptions) -> SourceFile:
    location = Location.of(address)
    shown = without_secrets(address)
    if location.is_folder():
        raise IngestError(f"{shown} is a folder where a file is expected")
    if not location.is_file():
        raise IngestError(f"there is no file or folder {shown}")
    return SourceFile(location, _format_of(location.name, options.format, shown), location.name, options)


def _format_of(name: str, format: str, shown: str) -> str:
    reason = why_not_read(name)
    if reason and (format == AUTO or _ARCHIVE.search(name)):
        raise IngestError(f"{shown}: {reason}")
    if format != AUTO:
        return format
    match = ending().search(name)
    if not match:
        known = ", ".join(f".{extension}" for extension in extensions())
        compressed = ", ".join(f".{ending}" for ending in COMPRESSIONS)
        raise IngestError(
            f"{shown}: the extension does not give the format ({known}; text also with {compressed}); use --format"
        )
    return extensions()[match.group(1).lower()]


def why_not_read(name: str) -> str:
    """Return why a file of this name cannot be read, and what to do; empty if the name is accepted."""
    if _ARCHIVE.search(name):
        return "archives are not read; unpack it, and give the file or folder that it holds"
    match = ending().search(name)
    if match and match.group(2) and match.group(1).lower() == "parquet":
        return f"Parquet is compressed inside; unpack the {match.group(2)}"
    if re.search(r"\.(xlsx?|ods|json|jsonl|feather|arrow|pkl|pickle|npz|db|sqlite)(\.\w+)?$", name, re.IGNORECASE):
        return "this format is not read; write it as TSV, CSV or Parquet"
    return ""


def files_in_folder(folder: Location, names: Sequence[str], options: ReadOptions) -> dict[str, SourceFile]:
    """Find files of a folder by name without extension: name → file, for the names that exist.

    Raises:
        IngestError: two files for one name.
    """
    files: dict[str, SourceFile] = {}
    for file in sorted(folder.names()):
        match = ending().search(file)
        name = file[: match.start()].lower() if match else ""
        if not match or name not in names or why_not_read(file):
            continue
        format_of_file = extensions()[match.group(1).lower()]
        if options.format not in (AUTO, format_of_file):
            continue
        if name in files:
            shown = without_secrets(folder.path)
            raise IngestError(f"{shown} holds {files[name].name} and {file}; keep one file for {name}")
        files[name] = SourceFile(folder.child(file), format_of_file, file, options)
    return files


def files_left_aside(folder: Location, read: Collection[str]) -> list[str]:
    """Return sentences about files of a folder that look like splits but are not read."""
    sentences = []
    for file in sorted(folder.names() - set(read)):
        stem = re.split(r"[._-]", file.lower())[0]
        if stem in OTHER_SPLIT_NAMES and ending().search(file):
            split = OTHER_SPLIT_NAMES[stem]
            sentences.append(f"{file} is not read; name it {split}{file[file.index('.') :]} if it is the {split} split")
        elif stem in SPLITS and re.fullmatch(rf"{stem}\.\w+(\.\w+)?", file.lower()):
            reason = why_not_read(file) or "its extension is unknown, or not that of --format"
            sentences.append(f"{file} is there, but is not read: {reason}")
    return sentences


def _in_folder(folder: Location, shown: str, options: ReadOptions) -> dict[str, SourceFile]:
    files = files_in_folder(folder, SPLITS, options)
    if "train" not in files:
        forms = ", ".join(f"train.{extension}" for extension in extensions())
        unread = "".join(f". {sentence}" for sentence in files_left_aside(folder, []))
        raise IngestError(f"folder {shown} holds no train file ({forms}, text also compressed){unread}{_hint(folder)}")
    return {split: files[split] for split in SPLITS if split in files}


def _hint(folder: Location) -> str:
    """Describe the contents of a folder without a train file, for the error."""
    names = sorted(name for name in folder.names() if not name.startswith("."))
    if any(re.fullmatch(r"train2id\.txt", name, re.IGNORECASE) for name in names):
        return (
            ". train2id.txt is there: OpenKE's form, with a count in its first line and columns head, tail, relation. "
            "Give that file itself, with --columns 1,3,2"
        )
    return f". It holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else ". It is empty"
