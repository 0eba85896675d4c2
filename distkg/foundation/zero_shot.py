"""Foundation models on unseen graphs: ranks of triples, and the best answers to queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import KnownAnswers
from distkg.evaluation.metrics import evaluate_ranks
from distkg.evaluation.ranking import rank_by_scores
from distkg.evaluation.topk import TopAnswers, TopK
from distkg.foundation.base import FoundationModel
from distkg.foundation.graph_scorer import GraphScorer
from distkg.foundation.graphs.sampling import SubgraphSampler
from distkg.foundation.paths import edge_gradients, in_words, most_influential
from distkg.sharding.ranks import Ranks

BATCH_SIZE = 16  # queries; small, because a query reads the whole graph


def evaluate_zero_shot(
    model: FoundationModel,
    store: Store,
    split: str = "test",
    *,
    fanouts: Sequence[int] = (),
    triples: int | None = None,
    batch_size: int = BATCH_SIZE,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Return filtered metrics of a split of the store, with its training facts as the graph; as ``evaluate_ranks``.

    ``fanouts`` are those of ``reasoner_of``; ``triples`` is the number of triples to rank, None for all. ``ranks``
    share the queries; collective among them.
    """
    scorer = reasoner_of(model, store, fanouts)
    rank = partial(rank_by_scores, scorer.scores, num_relations=store.num_relations, batch_size=batch_size, ranks=ranks)
    return evaluate_ranks(store, split, rank, triples, ranks=ranks)


def reasoner_of(model: FoundationModel, store: Store, fanouts: Sequence[int] = ()) -> GraphScorer:
    """Return a scorer of the model on the training facts of a store.

    Args:
        fanouts: number of facts of an entity to follow at each step away from the anchors; empty for the whole graph.
    """
    graph = model.graph_of(store)
    return GraphScorer(model, graph, SubgraphSampler.where_wanted(graph, fanouts))


def best_zero_shot(
    model: FoundationModel,
    store: Store,
    *,
    fanouts: Sequence[int] = (),
    batch_size: int = BATCH_SIZE,
    ranks: Ranks | None = None,
) -> TopK:
    """Return the function that finds the best answers from the training facts of the store, for ``predict``.

    ``ranks`` share the queries; the function is collective among them.
    """
    scorer, ranks = reasoner_of(model, store, fanouts), ranks or Ranks.single()

    def best(queries: np.ndarray, top: int, hidden: KnownAnswers | None) -> TopAnswers:
        shape = len(queries), min(top, store.num_entities)
        answers = TopAnswers(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
        for low in range(ranks.rank * batch_size, len(queries), ranks.size * batch_size):
            part = slice(low, low + batch_size)
            found = _top(scorer.scores(queries[part]), queries[part], top, hidden)
            answers.entities[part], answers.scores[part] = found.entities, found.scores
        ranks.sum_array(answers.entities)
        ranks.sum_array(answers.scores)
        return answers

    return best


@dataclass(frozen=True)
class Reason:
    """Path of facts from the anchor to an answer, as an explanation.

    Attributes:
        importance: mean gradient of the score with respect to the weights of its facts.
        path: formatted path, with arrows in the direction of the facts.
    """

    importance: float
    path: str


def reasons_for(
    model: FoundationModel, store: Store, anchor: int, relation: int, answers: Sequence[int], top: int = 3
) -> list[list[Reason]]:
    """Return the most influential paths to each answer, best first; none if no path of the model's depth leads
    there."""
    graph = model.graph_of(store)
    relations = dict(enumerate(store.relation_labels().to_pylist()))
    reasons = []
    for answer in answers:
        gradients = edge_gradients(model, graph, anchor, relation, answer)
        paths = most_influential(gradients, graph.facts, anchor, answer, top)
        entities_of_paths = sorted(
            {anchor, *(entity for path in paths for head, _, tail in path.facts for entity in (head, tail))}
        )
        labels = dict(zip(entities_of_paths, store.entity_labels_of(np.array(entities_of_paths)), strict=True))
        reasons.append([Reason(path.importance, in_words(path, anchor, labels, relations)) for path in paths])
    return reasons


def _top(scores: Tensor, queries: np.ndarray, top: int, hidden: KnownAnswers | None) -> TopAnswers:
    if hidden is not None:
        for row, start, end in zip(scores, *hidden.rows(queries[:, 0], queries[:, 1]), strict=True):
            row[torch.from_numpy(hidden.answers[start:end]).long()] = -torch.inf
    # A stable sort, so that among equal scores the lower id comes first.
    order = scores.sort(dim=1, descending=True, stable=True)
    values, entities = order.values[:, :top].cpu(), order.indices[:, :top].cpu()
    return TopAnswers(entities.masked_fill(values == -torch.inf, -1).int().numpy(), values.numpy())
