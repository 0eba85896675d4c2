import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from compressed import compress

from distkg.data.errors import IngestError
from distkg.data.readers.sources import SourceFile, read_options
from distkg.data.readers.text_blocks import read_blocks
from distkg.data.readers.text_files import text_file

TEXT = b"".join(b"e%d\tr\te%d\n" % (i, i * 7 % 1000) for i in range(2000))
ENDINGS = ["gz", "bz2", "xz", "zst", "lz4"]


def content(file: SourceFile) -> bytes:
    return b"".join(block.text for block in read_blocks(file))


@pytest.mark.parametrize("ending", ENDINGS)
def test_compressed_files_and_those_of_several_streams(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.tsv.{ending}"
    whole = compress(TEXT, path.name)
    path.write_bytes(whole)
    assert content(text_file(path)) == TEXT
    path.write_bytes(whole + compress(b"", path.name) + whole)
    assert content(text_file(path)) == TEXT + TEXT


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_truncated_file_is_said_to_be_one(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.tsv.{ending}"
    for lost in (1, 30):
        path.write_bytes(compress(TEXT, path.name)[:-lost])
        with pytest.raises(
            IngestError, match=rf"x\.tsv\.{ending}:\d+: the file cannot be read .*cut off; fetch it again"
        ):
            content(text_file(path))


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_ending_must_fit_the_bytes(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.tsv.{ending}"
    path.write_bytes(b"a\tr\tb\n")
    with pytest.raises(IngestError, match=rf"x\.tsv\.{ending}:1: .*not a \w+ file, although its extension says so"):
        content(text_file(path))
    path = tmp_path / "x.tsv"
    path.write_bytes(compress(TEXT, f"x.{ending}"))
    with pytest.raises(IngestError, match=rf"x\.tsv is compressed with \w+: let its name end in \.{ending}"):
        content(text_file(path))


@pytest.mark.parametrize("new", [bz2.compress, lzma.compress, gzip.compress])
def test_what_follows_a_stream_is_not_lost_in_silence(tmp_path: Path, new: Callable[[bytes], bytes]) -> None:
    ending = {bz2.compress: "bz2", lzma.compress: "xz", gzip.compress: "gz"}[new]
    path = tmp_path / f"x.tsv.{ending}"
    path.write_bytes(new(TEXT) + b"a damaged second stream")
    with pytest.raises(IngestError, match="cannot be read"):
        content(text_file(path))


def test_other_kinds_of_files_are_named(tmp_path: Path) -> None:
    for magic, kind in ((b"PK\x03\x04", "a zip archive"), (b"PAR1", "a Parquet file")):
        (tmp_path / "x.tsv").write_bytes(magic + b"\0" * 50)
        with pytest.raises(IngestError, match=f"x.tsv is {kind}, not a text file"):
            content(text_file(tmp_path / "x.tsv"))


def test_a_small_file_that_becomes_large_streams_by(tmp_path: Path) -> None:
    (tmp_path / "x.tsv.bz2").write_bytes(bz2.compress(b"a\tr\tb\n" * 3_000_000))
    sizes = [len(block.text) for block in read_blocks(text_file(tmp_path / "x.tsv.bz2"))]
    assert sum(sizes) == 18_000_000
    assert max(sizes) < 9_000_000


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_decide(tmp_path: Path, mark: str) -> None:
    (tmp_path / "x.tsv").write_bytes("a\tß\t€\n".encode(mark))
    assert content(text_file(tmp_path / "x.tsv", encoding="latin-1")).decode() == "a\tß\t€\n"


@pytest.mark.parametrize("name", ["rot13", "nonsense", "base64", "", "hex"])
def test_unknown_encodings_are_refused(name: str) -> None:
    with pytest.raises(IngestError, match=r"--encoding .* is not a text encoding"):
        read_options(encoding=name)
