"""Queries about entities and relations that no training fact mentions, whose answers are meaningless."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distkg.data.store.graph_store import Store

SHOWN = 3

Ids = np.ndarray | Sequence[int]


def untrained(store: Store, entities: Ids, relations: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the entities [n] and relations [m] among the arguments that occur in no training triple; relation ids are
    in [0, 2R).

    The training triples are streamed until all have been seen, usually in the first batch.

    Returns:
        Entity ids, and relation ids in [0, R); both sorted.
    """
    missing_entities = np.unique(np.asarray(entities, np.int64))
    missing_relations = np.unique(np.asarray(relations, np.int64) % store.num_relations)
    for batch in store.iter_triples(["train"]):
        missing_entities = missing_entities[~np.isin(missing_entities, batch[:, [0, 2]])]
        missing_relations = missing_relations[~np.isin(missing_relations, batch[:, 1])]
        if not len(missing_entities) and not len(missing_relations):
            break
    return missing_entities, missing_relations


def untrained_warnings(store: Store, entities: Ids, relations: Ids) -> list[str]:
    """Return a warning for the relations, and one for the entities, that occur in no training triple; none if all
    occur."""
    strange_entities, strange_relations = untrained(store, entities, relations)
    labels = store.relation_labels()
    return [
        *_sentence("relation", len(strange_relations), [labels[int(r)].as_py() for r in strange_relations[:SHOWN]]),
        *_sentence("entity", len(strange_entities), store.entity_labels_of(strange_entities[:SHOWN])),
    ]


def _sentence(kind: str, count: int, labels: list[str]) -> list[str]:
    if not count:
        return []
    listed = ", ".join(map(repr, labels)) + (", …" if count > len(labels) else "")
    plural = {"relation": "relations", "entity": "entities"}[kind]
    subject = f"{kind} {listed} occurs" if count == 1 else f"{count:,} {plural} ({listed}) occur"
    return [f"{subject} in no training fact, so the model has not learned it: the answers are meaningless"]
