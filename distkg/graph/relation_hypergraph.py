"""Relation hypergraph of MOTIF (Huang et al. 2025, arXiv 2502.13339): pairs and paths of relations.

In addition to pairs of relations that meet in an entity it has paths of three: a fact of relation b leads from u to v,
u is in a fact of a, and v is in a fact of c. u and v can be head or tail of these facts, which gives four kinds of
paths. With inverses among the relations these are one set of paths, since the tails of r are the heads of r + R.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.graph.directions import both_directions
from distkg.graph.relation_graph import TooManyRelationsError, relation_graph, relations_of_entities

KINDS = ("hh", "tt", "ht", "tfh", "tft", "hft", "hfh")
PAIRS = 3  # number of kinds with two members; the others have three
MOST_HYPEREDGES = 200_000_000  # one byte each, since the kinds of paths share their arrays


class RelationHypergraph(NamedTuple):
    """Hyperedges among the 2R relations of a graph.

    Attributes:
        row, kind, column: int32 [P], pairs (i, kind, j), with the first ``PAIRS`` of ``KINDS``; ``ht`` also represents
            ``th``, which is the reversed pair.
        first, middle: int32 [runs], relations a and b; a run holds all paths with equal a and b, sorted by b.
        offsets: int64 [runs + 1]; the relations c of run i are ``last[offsets[i]:offsets[i + 1]]``.
        last: int32 [paths]. (a, b, c) is a path of ``hfh``; (a + R, b, c) is one of ``tfh``, (a, b, c + R) of ``hft``,
            and (a + R, b, c + R) of ``tft``, all modulo 2R.
    """

    row: NDArray[np.int32]
    kind: NDArray[np.int32]
    column: NDArray[np.int32]
    first: NDArray[np.int32]
    middle: NDArray[np.int32]
    offsets: NDArray[np.int64]
    last: NDArray[np.int32]


def relation_hypergraph(triples: np.ndarray, entities: int, relations: int) -> RelationHypergraph:
    """Build the hypergraph of facts [m, 3]; its size is checked before it is built.

    Raises:
        TooManyRelationsError: more than ``MOST_HYPEREDGES``, or too many relations for a relation graph; says how many
            of each kind, and what to use instead.
    """
    row, kind, column = relation_graph(triples, entities, relations)
    pairs = kind < PAIRS
    graph = (*_facts_by_relation(triples, relations), *relations_of_entities(triples, entities, relations))
    nothing = np.empty(0, np.int32)
    runs, paths = _walk(*graph, nothing, nothing, np.empty(0, np.int64), nothing)
    _refuse_too_many(np.bincount(kind[pairs], minlength=PAIRS), paths)
    first, middle, last = (np.empty(size, np.int32) for size in (runs, runs, paths))
    offsets = np.zeros(runs + 1, np.int64)
    _walk(*graph, first, middle, offsets, last)
    return RelationHypergraph(row[pairs], kind[pairs], column[pairs], first, middle, offsets, last)


def _refuse_too_many(pairs: np.ndarray, paths: int) -> None:
    counts = [*pairs.tolist(), *[paths] * (len(KINDS) - PAIRS)]
    if sum(counts) > MOST_HYPEREDGES:
        by_kind = ", ".join(f"{count:,} {name}" for name, count in zip(KINDS, counts, strict=True))
        raise TooManyRelationsError(
            f"the hypergraph of relations would have {sum(counts):,} hyperedges ({by_kind}), {MOST_HYPEREDGES:,} at "
            "most are held: motif is for graphs with few relations. Use another model, such as ultra or trix"
        )


def _facts_by_relation(
    triples: np.ndarray, relations: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sort facts in both directions by relation and head: offsets [2R + 1], heads and tails."""
    heads, kind, tails = both_directions(*triples.T.astype(np.int64), num_relations=relations)
    order = np.lexsort((heads, kind))
    offsets = np.searchsorted(kind[order], np.arange(2 * relations + 1)).astype(np.int64)
    return offsets, heads[order], tails[order]


@njit(cache=True, nogil=True)
def _walk(
    facts: np.ndarray,
    heads: np.ndarray,
    tails: np.ndarray,
    own_offsets: np.ndarray,
    own: np.ndarray,
    first: np.ndarray,
    middle: np.ndarray,
    offsets: np.ndarray,
    last: np.ndarray,
) -> tuple[int, int]:
    """Count runs and paths, and store them if the arrays have room; every path is visited once."""
    n = facts.shape[0] - 1
    matrix = np.zeros((n, n), np.uint8)
    used, reached = np.zeros(n, np.bool_), np.zeros(n, np.uint8)
    runs = paths = 0
    for b in range(n):
        f = facts[b]
        while f < facts[b + 1]:
            # All relations reached from the facts of one head are stored with each relation of the head at once.
            u = heads[f]
            reached[:] = 0
            while f < facts[b + 1] and heads[f] == u:
                for i in range(own_offsets[tails[f]], own_offsets[tails[f] + 1]):
                    reached[own[i]] = 1
                f += 1
            for i in range(own_offsets[u], own_offsets[u + 1]):
                a = own[i]
                used[a] = True
                for c in range(n):
                    matrix[a, c] |= reached[c]
        for a in range(n):
            if not used[a]:
                continue
            used[a] = False
            for c in range(n):
                if matrix[a, c]:
                    matrix[a, c] = 0
                    if last.shape[0]:
                        last[paths] = c
                    paths += 1
            if last.shape[0]:
                first[runs], middle[runs], offsets[runs + 1] = a, b, paths
            runs += 1
    return runs, paths
