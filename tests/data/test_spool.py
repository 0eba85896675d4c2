from pathlib import Path

import numpy as np
import pytest

from distkg.data import spool as spool_module
from distkg.data.spool import Spool, shuffled


def numbered(path: Path, rows: int) -> Spool:
    spool = Spool(path, "x.tsv")
    spool.append(np.arange(3 * rows, dtype=np.int32).reshape(rows, 3))
    spool.finish()
    return spool


def test_chunks_give_rows_and_triples_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "CHUNK_ROWS", 4)
    chunks = list(numbered(tmp_path / "s", 10).chunks())
    assert [rows.tolist() for rows, _ in chunks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert chunks[1][1].tolist() == [[12, 13, 14], [15, 16, 17], [18, 19, 20], [21, 22, 23]]


def test_rows_can_be_left_out_and_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "CHUNK_ROWS", 4)
    spool = numbered(tmp_path / "s", 10)
    chunks = list(spool.chunks(without=np.array([0, 3, 4, 9])))
    assert [rows.tolist() for rows, _ in chunks] == [[1, 2], [5, 6, 7], [8]]
    assert chunks[0][1].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert spool.take(np.array([9, 0])).tolist() == [[27, 28, 29], [0, 1, 2]]
    assert spool.take(np.array([], dtype=np.int64)).shape == (0, 3)


def test_rows_know_the_lines_they_came_from(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", "x.tsv")
    for lines in ([1, 2, 5], [], [6, 7], [100]):
        spool.append(np.zeros((len(lines), 3), dtype=np.int32), np.array(lines, dtype=np.int64))
    spool.finish()
    assert [spool.where(row) for row in range(6)] == [f"x.tsv:{line}" for line in (1, 2, 5, 6, 7, 100)]


def test_a_shuffle_keeps_every_triple_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "CHUNK_ROWS", 16)
    source = numbered(tmp_path / "s", 500)
    result = shuffled(source, tmp_path / "t", np.array([0, 499]), np.random.default_rng(0))
    heads = np.concatenate([triples[:, 0] for _, triples in result.chunks()])
    assert sorted(heads.tolist()) == list(range(3, 1497, 3))
    assert abs(np.corrcoef(heads, np.arange(498))[0, 1]) < 0.2  # 0.045 is one standard deviation of a fair shuffle
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "t"]
