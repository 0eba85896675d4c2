from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distkg.data.errors import IngestError
from distkg.data.readers import text_blocks as blocks
from distkg.data.readers.sources import SourceFile
from distkg.data.readers.text_blocks import Block, read_blocks
from distkg.data.storage.location import Location

WriteSource = Callable[..., SourceFile]


def test_a_block_counts_its_lines() -> None:
    assert Block(b"a\nb\n", 1).line_count == 2
    assert Block(b"a\nb", 1).line_count == 2
    assert list(Block(b"a\r\n\nb", 7).lines()) == [(7, b"a"), (8, b""), (9, b"b")]


@pytest.mark.parametrize("name", ["x.tsv", "x.tsv.gz"])
def test_blocks_hold_whole_lines(source: WriteSource, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(blocks, "PIECE_BYTES", 3)
    found = list(read_blocks(source(name, "aaa\nb\n\ncccccccc\ndd"), block_bytes=5))
    assert b"".join(block.text for block in found) == b"aaa\nb\n\ncccccccc\ndd"
    assert all(block.text.endswith(b"\n") for block in found[:-1])
    assert [line for block in found for line in block.lines()] == [
        (1, b"aaa"),
        (2, b"b"),
        (3, b""),
        (4, b"cccccccc"),
        (5, b"dd"),
    ]


@given(lines=st.lists(st.text("ab", max_size=9), max_size=12), piece=st.integers(1, 8), block=st.integers(1, 30))
def test_no_size_of_block_loses_or_misnumbers_a_line(
    lines: list[str], piece: int, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("blocks") / "x.tsv"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    file = SourceFile(Location.of(str(path)), "tsv", "x.tsv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "PIECE_BYTES", piece)
        found = [line for block_ in read_blocks(file, block) for line in block_.lines()]
    assert found == [(number, line.encode()) for number, line in enumerate(lines, 1)]


def test_a_byte_order_mark_is_not_part_of_the_first_label(source: WriteSource) -> None:
    assert next(read_blocks(source("x.tsv", b"\xef\xbb\xbfa\tb\tc\n"))).text == b"a\tb\tc\n"


def test_an_endless_line_is_refused(source: WriteSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LONGEST_LINE", 1 << 20)
    file = source("x.tsv", b"a\tb\tc\n" + b"x" * (3 << 20))
    with pytest.raises(IngestError, match=r"x\.tsv:2: a line longer than 1 MiB"):
        list(read_blocks(file, block_bytes=1 << 10))
