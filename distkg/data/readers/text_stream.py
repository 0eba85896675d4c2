"""Text files of any supported compression and encoding as a stream of UTF-8."""

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
SKIPPABLE = b"\x2a\x4d\x18"  # skippable frame, with which zstd and lz4 files may begin
OTHER_MAGIC = {b"PK\x03\x04": "a zip archive", b"PAR1": "a Parquet file", b"%PDF": "a PDF document"}
MARKS = (  # UTF-32 first: its mark begins with the mark of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
NEVER_UTF8 = "\udcff"  # surrogateescape encodes it as the byte FF
_INVALID = "distkg.invalid"
codecs.register_error(_INVALID, lambda error: (NEVER_UTF8, error.end))  # type: ignore[attr-defined]


def read_bytes(file: SourceFile, largest: int) -> bytes:
    """Read a whole file, decompressed but not decoded: for JSON, whose parser detects the encoding itself.

    Raises:
        IngestError: the file is unreadable, truncated, or larger than ``largest`` bytes when decompressed.
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
    """Build the error for a file that is larger than the limit."""
    return IngestError(
        f"{name} is larger than {largest >> 20:,} MiB when decompressed. Check that it is the right file"
    )


def utf8_pieces(file: SourceFile, piece_bytes: int) -> Iterator[bytes]:
    """Stream a file's text, decompressed, as UTF-8 in pieces of about ``piece_bytes``.

    Undecodable bytes are replaced by bytes that are not valid UTF-8, so that the reader rejects exactly their line.

    Raises:
        IngestError: an archive, or a file in UTF-16 without a mark.
        OSError, pa.ArrowException, lzma.LZMAError: an unreadable or truncated file.
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
    """Return the encoding of a file: by its byte order mark, else by its options, else UTF-8."""
    try:
        head = next(_decompressed(file, LOOK_BYTES), b"")
    except (OSError, pa.ArrowException, lzma.LZMAError):
        head = b""
    return next((name for mark, name in MARKS if head.startswith(mark)), file.options.encoding or "utf-8")


def undecodable(start: int, file: SourceFile) -> str:
    """Return the reason for rejecting a line with an undecodable byte.

    Args:
        start: offset of the byte in the line.
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
    """Decompress all concatenated streams of a file, at most ``piece_bytes`` at a time."""
    pending = stream.read(COMPRESSED_BYTES)
    while pending:
        decompressor = new()
        while not decompressor.eof:
            if decompressor.needs_input and not pending:
                pending = stream.read(COMPRESSED_BYTES)
                if not pending:
                    raise OSError("Truncated compressed stream")
            piece = decompressor.decompress(pending, piece_bytes)
            pending = b""
            if piece:
                yield piece
        pending = decompressor.unused_data.lstrip(b"\0") or stream.read(COMPRESSED_BYTES).lstrip(b"\0")


def _check_magic(head: bytes, compression: str | None, name: str, reason: str) -> None:
    """Raise IngestError if the first bytes contradict the compression in the file's name."""
    detected = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if detected == "bz2" and not (head[3:4].isdigit() and head[4:8] in (b"1AY&", b"\x17rE8")):
        detected = None
    other = next((kind for magic, kind in OTHER_MAGIC.items() if head.startswith(magic)), None)
    if other is not None and compression is None:
        raise IngestError(f"{name} is {other}, not a text file. {reason or 'Unpack or convert it'}".rstrip(". ") + ".")
    if detected == compression or not head or (compression in ("zstd", "lz4") and head[1:4] == SKIPPABLE):
        return
    endings = {kind: ending for ending, kind in COMPRESSIONS.items()}
    if detected is not None:
        raise IngestError(f"{name} is compressed with {detected}: let its name end in .{endings[detected]}")
    raise IngestError(
        f"{name}:1: the file cannot be read (not a {compression} file, although its extension says so). It is damaged "
        "or cut off, or plain text that should have another name"
    )


def _refuse_unmarked(head: bytes, encoding: str, file: SourceFile) -> None:
    """Raise IngestError for UTF-16 without a byte order mark: every other byte is NUL."""
    sample = head[: LOOK_BYTES & ~1]
    if codecs.lookup(encoding).name != "utf-8" or len(sample) < 8:
        return
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if sample[first::2].count(0) > 0.4 * len(sample) / 2 and not sample[1 - first :: 2].count(0):
            raise IngestError(f"{file.name} has a NUL in every other byte, as UTF-16 has: use --encoding {name}")
