"""Reader of user text files other than triples: classes, texts, numbers, descriptions, queries.

Lines end with ``\\n`` or ``\\r\\n``, and with ``\\r`` in files that have no other line end (old Macs); no other
character ends a line. Blocks are those of ``distkg.data.readers.text_blocks``, as for triples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from distkg.data.errors import IngestError
from distkg.data.readers.sources import COMPRESSIONS, ReadOptions, SourceFile
from distkg.data.readers.text_blocks import read_blocks
from distkg.data.readers.text_stream import undecodable
from distkg.data.storage.location import Location, without_secrets


def text_file(place: str | Path | Location, name: str = "", encoding: str = "") -> SourceFile:
    """Return a text file to be read by ``read_lines`` or ``read_rows``.

    Args:
        name: name of the file in messages; default: its own name.

    Raises:
        IngestError: there is no such file.
    """
    location = place if isinstance(place, Location) else Location.of(str(place))
    shown = without_secrets(location.path if isinstance(place, Location) else str(place))
    if not location.is_file():
        raise IngestError(f"there is no file {shown}")
    return SourceFile(location, "tsv", name or location.name, ReadOptions(encoding=encoding))


def compressed_forms(name: str) -> tuple[str, ...]:
    """Return a file's name, followed by its names with each compression extension."""
    return name, *(f"{name}.{ending}" for ending in COMPRESSIONS)


def find_text_file(folder: Location, names: Collection[str], name: str, encoding: str = "") -> SourceFile | None:
    """Find a file by name in a folder, compressed or not; None if there is none.

    Raises:
        IngestError: several forms of the file exist.
    """
    forms = [form for form in compressed_forms(name) if form in names]
    if len(forms) > 1:
        raise IngestError(f"{without_secrets(folder.path)} holds {' and '.join(forms)}; keep one")
    return text_file(folder.child(forms[0]), encoding=encoding) if forms else None


def read_lines(file: SourceFile) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank.

    Raises:
        IngestError: an unreadable or truncated file, or a line that cannot be decoded; names file and line.
    """
    for block in read_blocks(file):
        for line, text in block.lines():
            if not text.strip():
                continue
            try:
                yield line, text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise IngestError(
                    f"{file.name}:{line}: {undecodable(error.start, file)}. Convert the file, such as with "
                    "iconv --from-code=CP1252 --to-code=UTF-8"
                ) from None


def read_rows(file: SourceFile, columns: int, expected: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and tab-separated fields of each line; skip blank lines and comments.

    A comment begins with ``#`` and has another number of columns.

    Args:
        columns: number of fields per line.
        expected: names of the fields, for messages.

    Raises:
        IngestError: as ``read_lines``, or a line with another number of columns.
    """
    for line, text in read_lines(file):
        fields = text.split("\t")
        if len(fields) == columns:
            yield line, fields
        elif not text.startswith("#"):
            count = f"{len(fields)} column{'s' * (len(fields) != 1)}"
            raise IngestError(f"{file.name}:{line}: {count} where {columns} are expected, tab-separated: {expected}")
