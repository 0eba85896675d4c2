"""Which relations meet: the graph of relations that foundation models read instead of relation names.

Two relations meet where one entity stands in a fact of each, as its head or as its tail. With inverses among the
relations, the four ways are one matrix read in four orders: the tails of r are the heads of r + R.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.graph.csr import row_of_each
from distkg.graph.directions import both_directions, query_keys

KINDS = ("head to head", "tail to tail", "head to tail", "tail to head")
MOST_RELATIONS = 20_000  # with inverses; their matrix is bytes
MOST_EDGES = 200_000_000  # of a graph that says in which entity relations meet: 12 bytes each


class RelationEdges(NamedTuple):
    """Edges (i, kind, j): relation i meets relation j; int32 [E] each. Kinds are numbered as in ``KINDS``."""

    row: NDArray[np.int32]
    kind: NDArray[np.int32]
    column: NDArray[np.int32]


class EntityEdges(NamedTuple):
    """Edges (i, v, j): relations i and j meet in entity v; int32 [E] each, for one way of meeting."""

    row: NDArray[np.int32]
    entity: NDArray[np.int32]
    column: NDArray[np.int32]


class TooManyRelationsError(ValueError):
    """The matrix of relations that meet would not fit."""


def relation_graph(triples: np.ndarray, entities: int, relations: int) -> RelationEdges:
    """The graph of the 2R relations of facts [m, 3] (ULTRA, Galkin et al. 2024, section 4.1).

    A relation meets itself where it has a fact.

    Raises:
        TooManyRelationsError: more than ``MOST_RELATIONS`` with inverses.
    """
    if 2 * relations > MOST_RELATIONS:
        raise TooManyRelationsError(
            f"{relations:,} relations, {2 * relations:,} with inverses, are too many for a graph of relations "
            f"({MOST_RELATIONS:,} at most): their matrix would take {4 * relations**2 / 2**30:.1f} GiB"
        )
    headed = np.zeros((2 * relations, 2 * relations), dtype=np.bool_)
    _mark_pairs(*relations_of_entities(triples, entities, relations), headed)
    inverse = np.roll(np.arange(2 * relations), relations)
    matrices = headed, headed[inverse][:, inverse], headed[:, inverse], headed[inverse]
    found = [np.nonzero(matrix) for matrix in matrices]
    kind = np.repeat(np.arange(4, dtype=np.int32), [len(row) for row, _ in found])
    row, column = (np.concatenate(side).astype(np.int32) for side in zip(*found, strict=True))
    return RelationEdges(row, kind, column)


def entity_relation_graphs(
    triples: np.ndarray, entities: int, relations: int, most_per_entity: int | None = None, seed: int = 0
) -> dict[str, EntityEdges]:
    """The graphs of the 2R relations whose edges say in which entity they meet, by way of ``KINDS`` (TRIX, Zhang et al.
    2024, section 4.1).

    An entity with k relations gives k² - k edges to each of the first two ways, where no relation meets itself, and k²
    to each of the others. ``most_per_entity`` keeps that many relations of an entity at most, chosen at random.

    Raises:
        TooManyRelationsError: so many edges that they would not fit; says how many, and what to do.
    """
    offsets, own = relations_of_entities(triples, entities, relations)
    if most_per_entity is not None:
        offsets, own = _thinned(offsets, own, most_per_entity, seed)
    counts = np.diff(offsets)
    total = int((counts**2).sum())
    if 4 * total > MOST_EDGES:
        raise TooManyRelationsError(
            f"relations meet {4 * total:,} times in single entities, {MOST_EDGES:,} at most are held: the entity with "
            f"most relations has {counts.max():,}. Train a model whose configuration bounds the relations of an entity "
            "(most_per_entity in model.options), or take ultra, which does not need this graph"
        )
    row, entity, column = (np.empty(total, np.int32) for _ in range(3))
    _fill_pairs(offsets, own, row, entity, column)
    inverse = np.roll(np.arange(2 * relations, dtype=np.int32), relations)
    apart = row != column
    return {
        "head to head": EntityEdges(row[apart], entity[apart], column[apart]),
        "tail to tail": EntityEdges(inverse[row[apart]], entity[apart], inverse[column[apart]]),
        "head to tail": EntityEdges(row, entity, inverse[column]),
        "tail to head": EntityEdges(inverse[row], entity, column),
    }


def _thinned(
    offsets: NDArray[np.int64], relations: NDArray[np.int64], most: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most so many relations of each entity, at random, in the order they had."""
    entity = row_of_each(offsets)
    order = np.lexsort((np.random.default_rng(seed).random(len(entity)), entity))
    kept = np.sort(order[np.arange(len(order)) - offsets[entity] < most])
    counts = np.bincount(entity[kept], minlength=len(offsets) - 1)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), relations[kept]


def relations_of_entities(
    triples: np.ndarray, entities: int, relations: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each entity the relations in [0, 2R) of which it is a head, each once: offsets [n + 1] and relations."""
    anchor, relation, _ = both_directions(*triples.T, num_relations=relations)
    pairs = np.unique(query_keys(anchor, relation, relations))
    offsets = np.searchsorted(pairs, np.arange(entities + 1) * (2 * relations))
    return offsets.astype(np.int64), pairs % (2 * relations)


@njit(cache=True, nogil=True)
def _mark_pairs(offsets: np.ndarray, relations: np.ndarray, matrix: np.ndarray) -> None:
    for e in range(offsets.shape[0] - 1):
        own = relations[offsets[e] : offsets[e + 1]]
        for i in own:
            for j in own:
                matrix[i, j] = True


@njit(cache=True, nogil=True)
def _fill_pairs(
    offsets: np.ndarray, relations: np.ndarray, row: np.ndarray, entity: np.ndarray, column: np.ndarray
) -> None:
    place = 0
    for e in range(offsets.shape[0] - 1):
        own = relations[offsets[e] : offsets[e + 1]]
        for i in own:
            for j in own:
                row[place], entity[place], column[place] = i, e, j
                place += 1
