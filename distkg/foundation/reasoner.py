"""Asking a foundation model about a graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distkg.foundation.base import FoundationModel
from distkg.foundation.graph import KnowledgeGraph


class Reasoner:
    """A model in evaluation mode, and the graph that it reasons from."""

    def __init__(self, model: FoundationModel, graph: KnowledgeGraph) -> None:
        self.model, self.graph = model.eval(), graph

    @torch.no_grad()
    def scores(self, queries: np.ndarray) -> Tensor:
        """Scores of all entities, on the model's device: float32 [b, N] of queries int [b, 2], anchor and relation in
        [0, 2R)."""
        anchor, relation = torch.from_numpy(queries.astype(np.int64)).to(self.model.device).unbind(1)
        scores: Tensor = self.model(self.graph, anchor, relation)
        return scores
