"""Scores of a foundation model on a graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distkg.foundation.base import FoundationModel
from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.foundation.graphs.sampling import SubgraphSampler, sampled_scores


class GraphScorer:
    """Model in evaluation mode with the graph that it reasons from, whole or sampled around the anchors."""

    def __init__(
        self, model: FoundationModel, graph: KnowledgeGraph, surroundings: SubgraphSampler | None = None
    ) -> None:
        self.model, self.graph, self._surroundings = model.eval(), graph, surroundings

    @torch.no_grad()
    def scores(self, queries: np.ndarray) -> Tensor:
        """Return scores of all entities on the model's device: float32 [b, N] of queries int [b, 2], anchor and
        relation in [0, 2R)."""
        anchor, relation = torch.from_numpy(queries.astype(np.int64)).to(self.model.device).unbind(1)
        if self._surroundings is not None:
            return sampled_scores(self.model, self.graph, self._surroundings, anchor, relation)
        scores: Tensor = self.model(self.graph, anchor, relation)
        return scores

    @torch.no_grad()
    def relation_scores(self, pairs: np.ndarray) -> Tensor:
        """Return scores of all relations on the model's device: float32 [b, R] of pairs int [b, 2], head and tail.

        Raises:
            UnsupportedQuestionError: the model ranks entities.
        """
        head, tail = torch.from_numpy(pairs.astype(np.int64)).to(self.model.device).unbind(1)
        return self.model.relation_scores(self.graph, head, tail)
