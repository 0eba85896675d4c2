"""Selection of valid and test triples from one file, such that train keeps all their entities and relations."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.data.assemble import SplitPart
from distkg.data.readers.problems import Problems
from distkg.data.spool import Spool
from distkg.hashing import GAMMA, splitmix64

SPARE = 1.25


class Degrees(NamedTuple):
    """Occurrences of each entity (int64 [N]) and each relation (int64 [R])."""

    entities: NDArray[np.int64]
    relations: NDArray[np.int64]


def split_part(
    part: SplitPart,
    entities: int,
    relations: int,
    shares: tuple[float, float, float],
    seed: int,
    folder: Path,
    problems: Problems,
) -> dict[str, SplitPart]:
    """Split one part into train, valid and test by their shares; triples are selected by ``choose_held_out``.

    Args:
        entities, relations: N and R.
        folder: folder for the spools of valid and test.
        problems: receives the warning ``held_out_short``, the number of triples missing from the shares.
    """
    wanted_valid, wanted_test = round(len(part) * shares[1]), round(len(part) * shares[2])
    held_out_count = wanted_valid + wanted_test
    held_out = choose_held_out(part.spool, part.without, entities, relations, held_out_count, seed)
    problems.note("held_out_short", part.spool.name, held_out_count - len(held_out))
    first_test = round(len(held_out) * wanted_valid / max(held_out_count, 1))
    return {
        "train": SplitPart(part.spool, np.union1d(part.without, held_out)),
        "valid": _held_out_part(part, held_out[:first_test], folder / "held-out-valid"),
        "test": _held_out_part(part, held_out[first_test:], folder / "held-out-test"),
    }


def choose_held_out(
    spool: Spool, without: NDArray[np.int64], entities: int, relations: int, wanted: int, seed: int
) -> NDArray[np.int64]:
    """Choose rows to hold out, in random order: int64 [≤ wanted].

    Rows are visited in a random order that depends only on the seed. A row is held out only if both its entities and
    its relation still occur in another row of train. Fewer than ``wanted`` are returned if the graph is too sparse.

    Args:
        spool: all triples.
        without: sorted rows that are not part of the graph (duplicates).
    """
    degrees = _degrees(spool, without, entities, relations)
    total = len(spool) - len(without)
    share = min(1.0, SPARE * wanted / max(total, 1) + 1e-3)
    while True:
        rows, triples = _candidates(spool, without, share, seed)
        accepted = np.zeros(len(rows), dtype=np.bool_)
        _accept(triples, degrees.entities.copy(), degrees.relations.copy(), accepted, wanted)
        if share >= 1 or accepted.sum() == wanted:
            return rows[accepted]
        share = min(1.0, 4 * share)


def random_keys(rows: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Return a random number for each row, a function of row and seed only (SplitMix64)."""
    offset = np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    return splitmix64(rows.astype(np.uint64) * np.uint64(GAMMA) + offset)


def _held_out_part(part: SplitPart, rows: NDArray[np.int64], path: Path) -> SplitPart:
    spool = Spool(path)
    spool.append(part.spool.take(rows))
    spool.finish()
    return SplitPart(spool)


def _degrees(spool: Spool, without: NDArray[np.int64], entities: int, relations: int) -> Degrees:
    degrees = Degrees(np.zeros(entities, dtype=np.int64), np.zeros(relations, dtype=np.int64))
    for _, triples in spool.chunks(without):
        degrees.entities[:] += np.bincount(triples[:, [0, 2]].ravel(), minlength=entities)
        degrees.relations[:] += np.bincount(triples[:, 1], minlength=relations)
    return degrees


def _candidates(
    spool: Spool, without: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the rows with the smallest random keys, about ``share`` of all, in the order of their keys."""
    limit = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
    keys, rows, triples = [], [], []
    for chunk_rows, chunk in spool.chunks(without):
        chunk_keys = random_keys(chunk_rows, seed)
        chosen = chunk_keys <= limit
        keys.append(chunk_keys[chosen])
        rows.append(chunk_rows[chosen])
        triples.append(chunk[chosen])
    order = np.argsort(np.concatenate(keys), kind="stable")
    return np.concatenate(rows)[order], np.concatenate(triples)[order]


@njit(cache=True)
def _accept(
    triples: np.ndarray, entities: np.ndarray, relations: np.ndarray, accepted: np.ndarray, wanted: int
) -> None:
    count = 0
    for i in range(accepted.size):
        if count == wanted:
            return
        head, relation, tail = triples[i, 0], triples[i, 1], triples[i, 2]
        entities[head] -= 1
        entities[tail] -= 1
        if entities[head] > 0 and entities[tail] > 0 and relations[relation] > 1:
            relations[relation] -= 1
            accepted[i] = True
            count += 1
        else:
            entities[head] += 1
            entities[tail] += 1
