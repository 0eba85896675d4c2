"""Bytes that every run takes, whatever it trains."""

from __future__ import annotations

from collections.abc import Mapping

from distkg.data.store.graph_store import BATCH_ROWS
from distkg.data.store.known_answers import HELD_AT_ONCE, KNOWN_BYTES
from distkg.data.store.relation_categories import PART_BYTES

FLOAT, INDEX = 4, 8
BASE_PROCESS = 700 << 20  # a Ray worker with torch, numba and pyarrow imported and its process group joined
READ_BATCH = BATCH_ROWS  # triples that are read from the store at once
READ_BYTES = 96  # of such a triple: both its queries as keys, sorted and looked up


def known_facts(triples: Mapping[str, int], candidates: int) -> int:
    """Return the bytes of known answers and categories of relations during an evaluation, from triples per split.

    Known answers are at most all facts in both directions: 4 bytes each, and 8 more while they are sorted. If they are
    many, they are held in parts, which may be as large as two queries that all ``candidates`` of a rank answer.
    Categories need the distinct queries of training facts, a part of them at a time, which is held twice while it
    grows.
    """
    everything = sum(triples.values())
    read = min(everything, READ_BATCH) * READ_BYTES
    counted = min(2 * 8 * triples.get("train", 0), PART_BYTES * 4 // 3)
    known = min(2 * everything * 12, (HELD_AT_ONCE + 2 * candidates) * KNOWN_BYTES)
    return known + read + 2 * counted
