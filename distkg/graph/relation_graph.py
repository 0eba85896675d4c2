"""Relation graph: relations connected by shared entities, which foundation models use instead of relation names.

Two relations meet in an entity that is the head or tail of a fact of each. With inverses among the relations, the four
kinds of meeting are one matrix read in four orders: the tails of r are the heads of r + R.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.graph.csr import row_of_each
from distkg.graph.directions import both_directions, query_keys

KINDS = ("head to head", "tail to tail", "head to tail", "tail to head")
MOST_RELATIONS = 20_000  # with inverses; their matrix has one byte per pair


class RelationEdges(NamedTuple):
    """Edges (i, kind, j): relation i meets relation j; int32 [E] each. Kinds are indices into ``KINDS``."""

    row: NDArray[np.int32]
    kind: NDArray[np.int32]
    column: NDArray[np.int32]


class TooManyRelationsError(ValueError):
    """The relation graph would not fit into memory."""


def relation_graph(triples: np.ndarray, entities: int, relations: int) -> RelationEdges:
    """Build the graph of the 2R relations of facts [m, 3] (ULTRA, Galkin et al. 2024, section 4.1).

    A relation with a fact meets itself.

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
    pairs = [np.nonzero(matrix) for matrix in matrices]
    kind = np.repeat(np.arange(4, dtype=np.int32), [len(row) for row, _ in pairs])
    row, column = (np.concatenate(side).astype(np.int32) for side in zip(*pairs, strict=True))
    return RelationEdges(row, kind, column)


def some_relations_of_entities(
    triples: np.ndarray, entities: int, relations: int, most_per_entity: int | None = None, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ``relations_of_entities``, of each entity at most ``most_per_entity`` chosen at random; None for all.

    They are the relation graphs of TRIX (Zhang et al. 2024, section 4.1), whose edges name the shared entity, without
    an edge for every two relations of an entity: an entity of k relations has k numbers and not k² edges.
    """
    offsets, own = relations_of_entities(triples, entities, relations)
    return (offsets, own) if most_per_entity is None else _thinned(offsets, own, most_per_entity, seed)


def _thinned(
    offsets: NDArray[np.int64], relations: NDArray[np.int64], most: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep at most ``most`` relations of each entity, chosen at random, in their order."""
    entity = row_of_each(offsets)
    order = np.lexsort((np.random.default_rng(seed).random(len(entity)), entity))
    selected = np.sort(order[np.arange(len(order)) - offsets[entity] < most])
    counts = np.bincount(entity[selected], minlength=len(offsets) - 1)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), relations[selected]


def relations_of_entities(
    triples: np.ndarray, entities: int, relations: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct relations in [0, 2R) of which each entity is a head: offsets [n + 1] and relations."""
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
