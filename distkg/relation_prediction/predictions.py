"""Relation prediction: the best relations between two entities, by a foundation model that ranks relations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import Known
from distkg.foundation.graph_scorer import GraphScorer
from distkg.foundation.models import FoundationModel
from distkg.relation_prediction.ranking import known_relations_of


@dataclass(frozen=True)
class RelationPrediction:
    """One predicted relation.

    Attributes:
        rank: from 1, among the predicted relations.
        relation: its label.
        score: higher is better; comparable within one model only.
        known: whether it is a fact of the store, in any split.
    """

    rank: int
    relation: str
    score: float
    known: bool


def predict_relations(
    model: FoundationModel, store: Store, head: int, tail: int, top: int = 10, known: Known = "exclude"
) -> list[RelationPrediction]:
    """Return the most likely relations from head to tail, best first, with the training facts of a store as the graph.

    Raises:
        UnsupportedQuestionError: the model ranks entities.
    """
    pair = np.array([[head, tail]])
    scores = GraphScorer(model, model.graph_of(store)).relation_scores(pair)[0].numpy()
    facts = known_relations_of(store, np.array([[head, 0, tail]])).mask(pair)[0]
    labels = store.relation_labels()
    order = [r for r in np.argsort(-scores, kind="stable").tolist() if known != "exclude" or not facts[r]]
    return [
        RelationPrediction(rank, labels[r].as_py(), float(scores[r]), bool(facts[r]))
        for rank, r in enumerate(order[:top], start=1)
    ]
