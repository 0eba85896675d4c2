"""Text files as a stream of UTF-8, whatever they are compressed with and encoded in."""

from __future__ import annotations

import bz2
import codecs
import lzma
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from distkg.data.errors import IngestError
from distkg.data.readers.sources import COMPRESSIONS, SourceFile, why_not_read

COMPRESSED_BYTES = 1 << 18
LOOK_BYTES = 1 << 12
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
SKIPPABLE = b"\x2a\x4d\x18"  # a frame without content, which zstd and lz4 files may begin with
OTHER_MAGIC = {b"PK\x03\x04": "a zip archive", b"PAR1": "a Parquet file", b"%PDF": "a PDF document"}
MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
NEVER_UTF8 = "\udcff"  # written with surrogateescape it is the byte FF
_INVALID = "distkg.invalid"
codecs.register_error(_INVALID, lambda error: (NEVER_UTF8, error.end))  # type: ignore[attr-defined]


def read_bytes(file: SourceFile, largest: int) -> bytes:
    """A whole file, decompressed, in its own encoding: for JSON, whose library finds the encoding itself.

    Raises:
        IngestError: unreadable, truncated, or of more than ``largest`` bytes when decompressed.
    """
    content = bytearray()
    try:
        for piece in _decompressed(file, 1 << 20):
            content += piece
            if len(content) > largest:
                raise too_large(file.name, largest)
        return bytes(content)
    except (OSError, pa.ArrowException, lzma.LZMAError, EOFError) as error:
        raise IngestError(f"{file.name} cannot be read ({error}). It is damaged or cut off; fetch it again") from None


def too_large(name: str, largest: int) -> IngestError:
    """The error of a file that holds more than is read at once."""
    return IngestError(f"{name} is larger than {largest >> 20:,} MiB when decompressed; is it the right file?")


def utf8_pieces(file: SourceFile, piece_bytes: int) -> Iterator[bytes]:
    """A file's text as UTF-8, decompressed as it streams by; pieces of about ``piece_bytes``.

    What cannot be decoded comes through as bytes that are no UTF-8 either, so that the line is refused by whoever reads
    it, and no other.

    Raises:
        IngestError: an archive, or a file in UTF-16 without a mark.
        OSError, pa.ArrowException, lzma.LZMAError: unreadable or truncated.
    """
    pieces = _decompressed(file, piece_bytes)
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= LOOK_BYTES or len(piece) >= LOOK_BYTES:
            break
    mark, marked = next(((mark, name) for mark, name in MARKS if head.startswith(mark)), (b"", ""))
    encoding = marked or file.options.encoding or "utf-8"
    _refuse_unmarked(head, encoding, file)
    if codecs.lookup(encoding).name == "utf-8":
        yield from _cut(head.removeprefix(mark), piece_bytes)
        yield from pieces
        return
    decoder = codecs.getincrementaldecoder(encoding)(errors=_INVALID)
    try:
        yield decoder.decode(head.removeprefix(mark)).encode("utf-8", "surrogateescape")
        for piece in pieces:
            yield decoder.decode(piece).encode("utf-8", "surrogateescape")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")
    except UnicodeError as error:
        raise IngestError(f"{file.name} cannot be read as {encoding}: {error}") from None


def encoding_of(file: SourceFile) -> str:
    """What a file is read as: by its byte order mark, else by its options, else UTF-8."""
    try:
        head = next(_decompressed(file, LOOK_BYTES), b"")
    except (OSError, pa.ArrowException, lzma.LZMAError):
        head = b""
    return next((name for mark, name in MARKS if head.startswith(mark)), file.options.encoding or "utf-8")


def undecodable(start: int, file: SourceFile) -> str:
    """What is wrong with a line of which a byte cannot be decoded.

    Args:
        start: bytes of the line before that one.
    """
    encoding = encoding_of(file)
    if codecs.lookup(encoding).name != "utf-8":
        return f"bytes that are not {encoding}"
    return f"bytes that are not UTF-8 (byte {start + 1} of the line)"


def _cut(text: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


def _decompressed(file: SourceFile, piece_bytes: int) -> Iterator[bytes]:
    reason = why_not_read(file.location.name) if file.format != "jsonld" else ""
    filesystem, path = file.location.filesystem, file.location.path
    with filesystem.open_input_stream(path, compression=None) as stream:
        head = stream.read(8)
    compression = file.compression
    _check_magic(head, compression, file.name, reason)
    if compression in ("bz2", "xz"):
        # pyarrow's bz2 stops at the end of the first stream; DBpedia's and Wikidata's dumps have many.
        new = bz2.BZ2Decompressor if compression == "bz2" else lzma.LZMADecompressor
        with filesystem.open_input_stream(path, compression=None, buffer_size=1 << 20) as stream:
            yield from _inflated(stream, new, piece_bytes)
        return
    with filesystem.open_input_stream(path, compression=compression, buffer_size=1 << 20) as stream:
        while piece := stream.read(piece_bytes):
            yield piece


def _inflated(stream: Any, new: Callable[[], Any], piece_bytes: int) -> Iterator[bytes]:
    """All streams of a file one after the other; never more than a piece at once, whatever it expands to."""
    pending = stream.read(COMPRESSED_BYTES)
    while pending:
        machine = new()
        while not machine.eof:
            if machine.needs_input and not pending:
                pending = stream.read(COMPRESSED_BYTES)
                if not pending:
                    raise OSError("Truncated compressed stream")
            piece = machine.decompress(pending, piece_bytes)
            pending = b""
            if piece:
                yield piece
        pending = machine.unused_data.lstrip(b"\0") or stream.read(COMPRESSED_BYTES).lstrip(b"\0")


def _check_magic(head: bytes, compression: str | None, name: str, reason: str) -> None:
    """Raise where the first bytes say something else than the name."""
    found = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if found == "bz2" and not (head[3:4].isdigit() and head[4:8] in (b"1AY&", b"\x17rE8")):
        found = None
    other = next((kind for magic, kind in OTHER_MAGIC.items() if head.startswith(magic)), None)
    if other is not None and compression is None:
        raise IngestError(f"{name} is {other}, not a text file. {reason or 'Unpack or convert it'}".rstrip(". ") + ".")
    if found == compression or not head or (compression in ("zstd", "lz4") and head[1:4] == SKIPPABLE):
        return
    endings = {kind: ending for ending, kind in COMPRESSIONS.items()}
    if found is not None:
        raise IngestError(f"{name} is compressed with {found}: let its name end in .{endings[found]}")
    raise IngestError(
        f"{name}:1: the file cannot be read (no {compression} file, as its ending says). It is damaged or cut off, "
        "or plain text that should have another name"
    )


def _refuse_unmarked(head: bytes, encoding: str, file: SourceFile) -> None:
    """Raise where text is UTF-16 without a mark: every other byte is NUL."""
    sample = head[: LOOK_BYTES & ~1]
    if codecs.lookup(encoding).name != "utf-8" or len(sample) < 8:
        return
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if sample[first::2].count(0) > 0.4 * len(sample) / 2 and not sample[1 - first :: 2].count(0):
            raise IngestError(f"{file.name} has a NUL in every other byte, as UTF-16 has: use --encoding {name}")
