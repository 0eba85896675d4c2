from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distkg.data import spool as spool_module
from distkg.data.splits.holdout import choose_held_out
from distkg.data.spool import NO_ROWS, Spool


def spool_of(path: Path, triples: np.ndarray) -> Spool:
    spool = Spool(path)
    spool.append(triples.astype(np.int32))
    spool.finish()
    return spool


@given(seed=st.integers(0, 1000), rows=st.integers(1, 120), wanted=st.integers(0, 60))
def test_what_is_held_out_stays_known_to_train(
    seed: int, rows: int, wanted: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    triples = np.stack([rng.integers(0, 12, rows), rng.integers(0, 3, rows), rng.integers(0, 12, rows)], axis=1)
    without = np.flatnonzero(rng.random(rows) < 0.1)
    spool = spool_of(tmp_path_factory.mktemp("holdout") / "s", triples)
    held_out = choose_held_out(spool, without, 12, 3, wanted, seed)
    train = np.delete(triples, np.union1d(without, held_out), axis=0)
    assert len(set(held_out.tolist())) == len(held_out) <= wanted
    assert not set(held_out.tolist()) & set(without.tolist())
    assert set(triples[held_out][:, [0, 2]].ravel()) <= set(train[:, [0, 2]].ravel())
    assert set(triples[held_out][:, 1]) <= set(train[:, 1])


def test_a_star_can_spare_nothing_but_a_clique_can(tmp_path: Path) -> None:
    star = np.array([[0, 0, leaf] for leaf in range(1, 6)])
    assert len(choose_held_out(spool_of(tmp_path / "star", star), NO_ROWS, 6, 1, 3, seed=0)) == 0
    clique = np.array([[a, 0, b] for a in range(5) for b in range(5) if a != b])
    assert len(choose_held_out(spool_of(tmp_path / "clique", clique), NO_ROWS, 5, 1, 3, seed=0)) == 3


def test_a_loop_is_not_its_own_witness(tmp_path: Path) -> None:
    triples = np.array([[0, 0, 0], [1, 0, 2], [1, 0, 2], [2, 0, 1]])
    assert 0 not in choose_held_out(spool_of(tmp_path / "s", triples), NO_ROWS, 3, 1, 4, seed=0)


def test_the_choice_depends_on_the_seed_and_not_on_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    spool = spool_of(tmp_path / "s", rng.integers(0, 50, (5000, 3)))
    one = choose_held_out(spool, NO_ROWS, 50, 50, 500, seed=1)
    other = choose_held_out(spool, NO_ROWS, 50, 50, 500, seed=2)
    monkeypatch.setattr(spool_module, "CHUNK_ROWS", 77)
    again = choose_held_out(spool, NO_ROWS, 50, 50, 500, seed=1)
    assert len(one) == 500
    assert one.tolist() == again.tolist()
    assert len(set(one.tolist()) & set(other.tolist())) < 100  # 50 by chance
    # Random rows in random order: neither the rows nor their order may lean to one end of the file.
    assert 2300 < one.mean() < 2700
    assert 2200 < one[:250].mean() < 2800
