"""View of the model in training for negative sources."""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.embedding.model import Model
from distkg.evaluation.score_blocks import evaluating


class ShardedModelView:
    """``ModelView`` of a sharded model: current vectors, without dropout and without gradients."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.ranks = model.ranks
        self.similarity = model.scorer.similarity
        self.entities = model.num_entities
        self.first = model.entities.shards.range(model.ranks.rank)[0]

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        with evaluating(self._model):
            rows = self._model.entities.gather(anchor.to(self.ranks.device))
            return self._model.query(rows, relation.to(self.ranks.device))

    def candidates(self, entities: Tensor) -> Tensor:
        with torch.no_grad():
            return self._model.scorer.candidates(self._model.entities.gather(entities.to(self.ranks.device)))

    def relations(self) -> Tensor:
        return self._model.relations.detach()[: self._model.num_relations]

    def own_candidates(self) -> Tensor:
        with torch.no_grad():
            return self._model.candidates()
