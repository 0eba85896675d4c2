"""Detection of test leakage: held-out facts that train contains under a near-inverse or near-duplicate relation.

Akrami et al. 2020 (arXiv 2003.08001), after Toutanova and Chen 2015: two relations are near-duplicates if they share at
least ``THRESHOLD`` of the entity pairs of each, and near-inverses if they do so with head and tail exchanged. A
relation that is its own near-inverse is symmetric. Pairs are counted over all splits, since a random split leaves one
direction in train and the other in test.

All triples are compared in bounded memory, in buckets by entity pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distkg.data.assemble import SplitPart
from distkg.data.readers.problems import Problems

THRESHOLD = 0.8
BUCKET_ROWS = 1 << 21
SHOWN_PAIRS = 3
RECORD = np.dtype([("low", np.int32), ("high", np.int32), ("code", np.int32), ("split", np.int32)])
"""Triple: smaller and larger entity id, code 2 · relation + (head is the larger), and index of its split."""

KINDS = ("inverses", "symmetric", "duplicates_by_relation")


def report_leaks(
    parts: Mapping[str, SplitPart],
    relations: pa.Array,
    folder: Path,
    problems: Problems,
    bucket_rows: int = BUCKET_ROWS,
) -> None:
    """Count the facts of valid and test that train contains under a near-inverse or near-duplicate relation.

    ``train_test_inverses`` and ``train_test_duplicates_by_relation`` are warnings. For symmetric relations a note gives
    the number of facts whose reversal is in train: this is not an error in the data, but it makes these facts easy.

    Args:
        relations: labels by id.
        folder: folder for the temporary buckets.
    """
    splits = list(parts)
    if not sum(len(parts[split]) for split in splits[1:]):
        return
    paths = _write_buckets(parts, folder, bucket_rows)
    facts = np.zeros(len(relations), np.int64)
    shared: Counter[tuple[int, int]] = Counter()
    for records in map(_sort_bucket, paths):
        pair, code = _distinct(records)
        facts += np.bincount(code >> 1, minlength=len(relations))
        shared.update(_shared_codes(pair, code))
    near = _NearRelations.of(shared, facts)
    if len(near.inverses) or len(near.duplicates):
        _count_facts(paths, splits, near, relations, problems)
    for path in paths:
        path.unlink()


def _write_buckets(parts: Mapping[str, SplitPart], folder: Path, bucket_rows: int) -> list[Path]:
    count = -(-sum(map(len, parts.values())) // bucket_rows) or 1
    paths = [folder / f"pairs.{bucket}" for bucket in range(count)]
    files = [path.open("wb") for path in paths]
    for split, part in enumerate(parts.values()):
        for _, triples in part.chunks():
            head, relation, tail = triples.T
            records = np.empty(len(triples), RECORD)
            records["low"], records["high"] = np.minimum(head, tail), np.maximum(head, tail)
            records["code"], records["split"] = 2 * relation + (head > tail), split
            mixed = records["low"].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= records["high"].astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
            choice = (mixed >> np.uint64(40)) % np.uint64(count)
            for bucket, file in enumerate(files):
                file.write((records if count == 1 else records[choice == bucket]).tobytes())
    for file in files:
        file.close()
    return paths


def _sort_bucket(path: Path) -> NDArray[np.void]:
    """Sort the records of a bucket by entity pair and then code, in memory and in its file."""
    records = np.fromfile(path, RECORD)
    pair = _pair(records)
    order = np.argsort(pair, kind="stable")
    pair, records = pair[order], records[order]
    again = pair[1:] == pair[:-1]
    # Only entity pairs with several facts matter, and these are few.
    is_shared = np.zeros(len(pair), bool)
    is_shared[1:] |= again
    is_shared[:-1] |= again
    order = np.lexsort((records["code"][is_shared], pair[is_shared]))
    records[is_shared] = records[is_shared][order]
    records.tofile(path)
    return records


def _pair(records: NDArray[np.void]) -> NDArray[np.int64]:
    return records["low"].astype(np.int64) << 32 | records["high"].astype(np.int64)


def _distinct(records: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the distinct (pair, code) combinations of the records."""
    pair = _pair(records)
    code = np.ascontiguousarray(records["code"])
    new = np.ones(len(pair), bool)
    new[1:] = (pair[1:] != pair[:-1]) | (code[1:] != code[:-1])
    return pair[new], code[new]


def _shared_codes(pair: NDArray[np.int64], code: NDArray[np.int32]) -> Counter[tuple[int, int]]:
    """Count the entity pairs that each two codes have in common."""
    counts: Counter[tuple[int, int]] = Counter()
    place, step = np.arange(len(pair)), 1
    while len(place):
        place = place[place + step < len(pair)]
        place = place[pair[place] == pair[place + step]]
        loop = pair[place] >> 32 == pair[place] & 0xFFFFFFFF
        for (first, second), times in _pair_counts(code[place], code[place + step]):
            counts[first, second] += times
        for (first, second), times in _pair_counts(code[place[loop]], code[place[loop] + step]):
            counts[first, second ^ 1] += times  # a self-loop has both directions
        step += 1
    return counts


class _NearRelations(NamedTuple):
    """Near-inverse pairs of relations (including a relation with itself) and near-duplicate pairs.

    Attributes:
        inverses, duplicates: int64, sorted, relation · R + other relation.
        relations: number of relations R.
    """

    inverses: NDArray[np.int64]
    duplicates: NDArray[np.int64]
    relations: int

    @classmethod
    def of(cls, shared: Mapping[tuple[int, int], int], facts: NDArray[np.int64]) -> _NearRelations:
        """Find the pairs from the counts of shared codes and the number of facts [R] of each relation."""
        inverses: Counter[tuple[int, int]] = Counter()
        duplicates: Counter[tuple[int, int]] = Counter()
        for (first, second), times in shared.items():
            low, high = sorted((first >> 1, second >> 1))
            if (first ^ second) & 1:
                inverses[low, high] += times * (1 + (low == high))  # both facts of a symmetric pair
            elif low != high:
                duplicates[low, high] += times
        keys = [
            sorted(
                relation * len(facts) + other
                for (low, high), times in pairs.items()
                if times >= THRESHOLD * max(facts[low], facts[high])
                for relation, other in {(low, high), (high, low)}
            )
            for pairs in (inverses, duplicates)
        ]
        return cls(np.array(keys[0], np.int64), np.array(keys[1], np.int64), len(facts))

    def kinds(self, facts: NDArray[np.void], others: NDArray[np.void]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield each kind of leak and a mask [m] of the facts that ``others`` leak; both are records [m] of equal
        entity pairs."""
        codes, other_codes = facts["code"].astype(np.int64), others["code"].astype(np.int64)
        loop = facts["low"] == facts["high"]
        reversed_pair = (codes ^ other_codes) & 1 == 1
        same_relation = codes >> 1 == other_codes >> 1
        key = (codes >> 1) * self.relations + (other_codes >> 1)
        inverse = np.isin(key, self.inverses)
        yield "inverses", (reversed_pair | loop) & ~same_relation & inverse
        yield "symmetric", reversed_pair & same_relation & inverse
        yield "duplicates_by_relation", ~reversed_pair & ~same_relation & np.isin(key, self.duplicates)


def _count_facts(
    paths: list[Path], splits: list[str], near: _NearRelations, relations: pa.Array, problems: Problems
) -> None:
    totals: Counter[tuple[int, str]] = Counter()
    pairs: dict[tuple[int, str], Counter[tuple[int, int]]] = {}
    for path in paths:
        records = np.fromfile(path, RECORD)
        split = records["split"]
        leaked = {kind: np.zeros(len(records), bool) for kind in KINDS}
        for fact, other in _neighbours(records):
            of_train = (split[fact] != 0) & (split[other] == 0)
            fact, other = fact[of_train], other[of_train]
            for kind, chosen in near.kinds(records[fact], records[other]):
                leaked[kind][fact[chosen]] = True
                relation, other_relation = (records["code"][side[chosen]] >> 1 for side in (fact, other))
                for place in range(1, len(splits)):
                    in_split = split[fact[chosen]] == place
                    for (first, second), times in _pair_counts(relation[in_split], other_relation[in_split]):
                        pairs.setdefault((place, kind), Counter())[min(first, second), max(first, second)] += times
        for kind, rows in leaked.items():
            for place in range(1, len(splits)):
                totals[place, kind] += int((rows & (split == place)).sum())
    for (place, kind), total in totals.items():
        if not total:
            continue
        pairs_text = _format_pairs(pairs[place, kind], relations)
        if kind == "symmetric":
            problems.tell(
                f"{splits[place]}: {total:,} facts of symmetric relations are in train with head and tail exchanged "
                f"({pairs_text})"
            )
        else:
            problems.note(f"train_{splits[place]}_{kind}", pairs_text, total)


def _neighbours(records: NDArray[np.void]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield all ordered pairs of records with equal entity pairs, as indices [m] and [m]."""
    pair = _pair(records)
    place, step = np.arange(len(pair)), 1
    while len(place):
        place = place[place + step < len(pair)]
        place = place[pair[place] == pair[place + step]]
        yield place, place + step
        yield place + step, place
        step += 1


def _pair_counts(first: NDArray[np.int32], second: NDArray[np.int32]) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield the distinct pairs of two columns [m] and their counts."""
    keys, times = np.unique(first.astype(np.int64) << 32 | second.astype(np.int64), return_counts=True)
    for key, count in zip(keys.tolist(), times.tolist(), strict=True):
        yield (key >> 32, key & 0xFFFFFFFF), count


def _format_pairs(pairs: Counter[tuple[int, int]], relations: pa.Array) -> str:
    """Format the pairs with most facts for a message."""
    shown = []
    for (low, high), _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_PAIRS]:
        first, second = (
            label if label.isprintable() else ascii(label) for label in relations.take([low, high]).to_pylist()
        )
        shown.append(first if low == high else f"{first} and {second}")
    more = len(pairs) - len(shown)
    return "; ".join(shown) + (f"; and {more:,} more" if more else "")
