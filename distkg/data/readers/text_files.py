"""The one reader of the lines of text files that users give: classes, texts, numbers, descriptions, queries.

Triples come through the same blocks (``distkg.data.readers.text_blocks``). Lines
end with ``\\n`` or ``\\r\\n``, and with ``\\r`` in
files that have nothing else (old Macs); no other character ends a line.
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
    """A text file beside the triples, to be read by ``read_lines`` or ``read_rows``.

    Args:
        name: how messages call it; default: its own name.

    Raises:
        IngestError: there is no such file.
    """
    location = place if isinstance(place, Location) else Location.of(str(place))
    shown = without_secrets(location.path if isinstance(place, Location) else str(place))
    if not location.is_file():
        raise IngestError(f"there is no file {shown}")
    return SourceFile(location, "tsv", name or location.name, ReadOptions(encoding=encoding))


def compressed_forms(name: str) -> tuple[str, ...]:
    """A file's name, and those that it has when it is compressed."""
    return name, *(f"{name}.{ending}" for ending in COMPRESSIONS)


def find_text_file(folder: Location, names: Collection[str], name: str, encoding: str = "") -> SourceFile | None:
    """The file of that name in a folder, compressed or not; None where there is none.

    Raises:
        IngestError: there are several.
    """
    found = [form for form in compressed_forms(name) if form in names]
    if len(found) > 1:
        raise IngestError(f"{without_secrets(folder.path)} holds {' and '.join(found)}; keep one")
    return text_file(folder.child(found[0]), encoding=encoding) if found else None


def read_lines(file: SourceFile) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank.

    Raises:
        IngestError: unreadable, truncated, or a line that cannot be decoded; names file and line.
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
    """Number and tab-separated fields of each line; blank lines and comments (``#`` and other columns) are passed over.

    Args:
        columns: fields that a line has.
        expected: what they are, for messages.

    Raises:
        IngestError: as ``read_lines``, or a line of other columns.
    """
    for line, text in read_lines(file):
        fields = text.split("\t")
        if len(fields) == columns:
            yield line, fields
        elif not text.startswith("#"):
            count = f"{len(fields)} column{'s' * (len(fields) != 1)}"
            raise IngestError(f"{file.name}:{line}: {count} where {columns} are expected, tab-separated: {expected}")
