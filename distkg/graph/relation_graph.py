"""Which relations meet: the graph of relations that foundation models read instead of relation names.

Two relations meet where one entity stands in a fact of each, as its head or as its tail. With inverses among the
relations, the four ways are one matrix read in four orders: the tails of r are the heads of r + R.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

KINDS = ("head to head", "tail to tail", "head to tail", "tail to head")
MOST_RELATIONS = 20_000  # with inverses; their matrix is bytes


class RelationEdges(NamedTuple):
    """Edges (i, kind, j): relation i meets relation j; int32 [E] each. Kinds are numbered as in ``KINDS``."""

    row: NDArray[np.int32]
    kind: NDArray[np.int32]
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


def relations_of_entities(
    triples: np.ndarray, entities: int, relations: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each entity the relations in [0, 2R) of which it is a head, each once: offsets [n + 1] and relations."""
    anchor = np.concatenate([triples[:, 0], triples[:, 2]]).astype(np.int64)
    relation = np.concatenate([triples[:, 1], triples[:, 1] + relations])
    pairs = np.unique(anchor * (2 * relations) + relation)
    offsets = np.searchsorted(pairs, np.arange(entities + 1) * (2 * relations))
    return offsets.astype(np.int64), pairs % (2 * relations)


@njit(cache=True, nogil=True)
def _mark_pairs(offsets: np.ndarray, relations: np.ndarray, matrix: np.ndarray) -> None:
    for e in range(offsets.shape[0] - 1):
        own = relations[offsets[e] : offsets[e + 1]]
        for i in own:
            for j in own:
                matrix[i, j] = True
