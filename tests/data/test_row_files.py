"""Rows in safetensors files: what one library writes the other reads, and ranges are what slices are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from distkg.data.errors import StoreError
from distkg.data.storage.location import Location
from distkg.data.storage.row_files import RowFile, rows_header, write_rows

ROWS = np.arange(14, dtype=np.int32).reshape(7, 2) - 1


def at(path: Path) -> Location:
    return Location.of(str(path))


def test_the_safetensors_library_reads_what_is_written(tmp_path: Path) -> None:
    entry = write_rows(at(tmp_path / "x"), [ROWS[:3], ROWS[3:3], ROWS[3:]], 7, 2)
    assert load_file(tmp_path / "x")["ids"].tolist() == ROWS.tolist()
    assert (entry.rows, entry.bytes) == (7, (tmp_path / "x").stat().st_size)
    assert entry.sha256 == at(tmp_path / "x").sha256()


def test_header_of_two_rows() -> None:
    header = rows_header("ids", "I32", 2, 3)
    assert int.from_bytes(header[:8], "little") == len(header) - 8 == 64
    assert header[8:].rstrip() == b'{"ids":{"dtype":"I32","shape":[2,3],"data_offsets":[0,24]}}'


@given(rows=st.integers(0, 9), width=st.integers(1, 3), data=st.data())
def test_ranges_are_slices(
    rows: int, width: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    matrix = np.arange(rows * width, dtype=np.int32).reshape(rows, width)
    file = tmp_path_factory.mktemp("rows") / "x"
    save_file({"ids": matrix}, file)
    low = data.draw(st.integers(0, rows))
    high = data.draw(st.integers(low, rows))
    opened = RowFile.open(at(file))
    assert (opened.rows, opened.width) == (rows, width)
    found = opened.read(low, high)
    assert found.dtype == np.int32
    assert found.shape == (high - low, width)
    assert found.tolist() == matrix[low:high].tolist()


def test_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    write_rows(at(tmp_path / "x"), [ROWS], 7, 2)
    for low, high in ((-1, 2), (3, 2), (0, 8)):
        with pytest.raises(ValueError, match=f"rows {low} to {high} of 7"):
            RowFile.open(at(tmp_path / "x")).read(low, high)


@pytest.mark.parametrize(("blocks", "message"), [([ROWS, ROWS], "14 rows"), ([ROWS[:, :1]], "a block of 1 columns")])
def test_a_file_that_cannot_be_whole_is_not_left(tmp_path: Path, blocks: list[np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_rows(at(tmp_path / "x"), blocks, 7, 2)
    assert list(tmp_path.iterdir()) == []


def test_damage_is_said(tmp_path: Path) -> None:
    file = tmp_path / "x"
    with pytest.raises(StoreError, match="cannot be read"):
        RowFile.open(at(file))
    write_rows(at(file), [ROWS], 7, 2)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(StoreError, match=r"bytes instead of .* of int32"):
        RowFile.open(at(file))
    save_file({"ids": ROWS.astype(np.int64)}, file)
    with pytest.raises(StoreError, match="of int32"):
        RowFile.open(at(file))
    file.write_bytes(b"not a header at all")
    with pytest.raises(StoreError, match="its header is too long"):
        RowFile.open(at(file))


def test_on_s3_a_range_is_all_that_is_read(bucket: Callable[[str], str]) -> None:
    file = Location.of(bucket("x"))
    write_rows(file, [ROWS], 7, 2)
    assert RowFile.open(file).read(5, 7).tolist() == [[9, 10], [11, 12]]
