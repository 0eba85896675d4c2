"""Cardinality categories of relations: 1-1, 1-n, n-1 and n-n."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 1.5


def relation_categories(triples: np.ndarray, num_relations: int) -> list[str]:
    """Return the category of each relation, from distinct triples [n, 3].

    Bordes et al. 2013 (Translating Embeddings for Modeling Multi-relational Data, section 4.3): a side counts as
    n where an average of 1.5 or more entities of that side share the other entity. "1-n" thus means: a head has
    many tails, a tail has one head. A relation without triples is "1-1".
    """
    tails_per_head, heads_per_tail = answers_per_query(triples, num_relations)
    head_side = np.where(heads_per_tail < THRESHOLD, "1", "n")
    tail_side = np.where(tails_per_head < THRESHOLD, "1", "n")
    return [f"{head}-{tail}" for head, tail in zip(head_side, tail_side, strict=True)]


def answers_per_query(triples: np.ndarray, num_relations: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean number of tails per head and of heads per tail of each relation, from distinct triples [n, 3]:
    float64 [R] each, 0 for a relation without triples."""
    count = np.bincount(triples[:, 1], minlength=num_relations)
    heads, tails = (_distinct(triples[:, 1], triples[:, side], num_relations) for side in (0, 2))
    return count / np.maximum(heads, 1), count / np.maximum(tails, 1)


def _distinct(relations: np.ndarray, entities: np.ndarray, num_relations: int) -> NDArray[np.int64]:
    """Count the distinct entities of each relation: int64 [R]."""
    pairs = np.unique(entities.astype(np.int64) * num_relations + relations)
    return np.bincount(pairs % num_relations, minlength=num_relations)
