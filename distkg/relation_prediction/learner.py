"""Training of models that rank relations, (h, ?, t): the relation of a masked fact against all relations that are not
known between its entities.

Facts, graphs and steps are those of other foundation models. The section ``negatives`` has no effect: relations are
few, so every step scores all of them (as in the training of TRIX, Zhang et al. 2024).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distkg.config import RunConfig
from distkg.evaluation.filtered_triples import FilteredTriples
from distkg.evaluation.metrics import ranking_metrics, subsample
from distkg.evaluation.ranking import Ranking
from distkg.foundation.batches import FoundationBatch
from distkg.foundation.graph_scorer import GraphScorer
from distkg.foundation.graphs.training_graphs import LearnedGraph
from distkg.foundation.learner import FoundationLearner
from distkg.foundation.loop import FoundationLoop
from distkg.foundation.models import MODELS
from distkg.negatives import Queries, TrainingProgress
from distkg.objectives import EXCLUDED
from distkg.relation_prediction.ranking import known_relations_of, rank_relations


def ranks_relations(config: RunConfig) -> bool:
    """Return whether the configured model is a foundation model that ranks relations."""
    return config.model.name in MODELS and MODELS[config.model.name].ranks == "relations"


def as_triples(queries: Queries, relations: int) -> Tensor:
    """Return the facts of queries from either end: int64 [b, 3]."""
    from_head = queries.relation < relations
    head = torch.where(from_head, queries.anchor, queries.answer)
    tail = torch.where(from_head, queries.answer, queries.anchor)
    return torch.stack([head, queries.relation % relations, tail], dim=1)


class RelationLoop(FoundationLoop):
    """Training loop of a model that ranks relations."""

    def loss(self, asked: FoundationBatch, moment: TrainingProgress) -> Tensor:
        """Return the mean loss over the facts; other relations that are known between their entities are masked."""
        graph, device = asked.graph, self._ranks.device
        head, relation, tail = as_triples(asked.queries, graph.relations).unbind(1)
        scores = self._model.relation_scores(graph, head.to(device), tail.to(device), asked.weight(device))
        relation = relation.to(device)
        pairs = torch.stack([head, tail], dim=1).numpy()
        mask = torch.from_numpy(asked.learned.known_relations.mask(pairs)).to(scores.device)
        return self._objective(scores.gather(1, relation[:, None])[:, 0], scores.masked_fill(mask, EXCLUDED)).mean()


class RelationLearner(FoundationLearner):
    """``Learner`` of a model that ranks relations; metrics are filtered, with one query for each triple."""

    loop_kind = RelationLoop

    def _metrics(self, graph: LearnedGraph, split: str) -> dict[str, float]:
        limit, seed = self._config.evaluate.max_final_triples, self._config.train.seed
        return ranking_metrics(self._relation_ranking(graph, subsample(graph.store.triples(split), limit, seed)))

    def _ranking(self, graph: LearnedGraph, triples: FilteredTriples) -> Ranking:
        return self._relation_ranking(graph, triples.triples)

    def _relation_ranking(self, graph: LearnedGraph, triples: np.ndarray) -> Ranking:
        scorer = GraphScorer(self.model, graph.facts)
        size = self._config.evaluate.batch_size
        facts = known_relations_of(graph.store, triples)
        hurries = self._stop.hurries
        return rank_relations(
            scorer.relation_scores, triples, facts, batch_size=size, ranks=self._ranks, hurries=hurries
        )
