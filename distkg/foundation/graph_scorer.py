"""Scores of a foundation model on a graph, with the relation states that queries share."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from distkg.foundation.base import FoundationModel
from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.foundation.graphs.sampling import SubgraphSampler, sampled_scores

CACHE_BYTES = 64 << 20
"""Largest size of the relation states that a scorer keeps."""


class RelationStateCache:
    """Relation states of a model on a graph, computed once for each key of ``FoundationModel.encoding_keys``.

    The states that were not used for longest are dropped where all would take more than ``limit`` bytes. A change of
    the model's weights drops all. In training mode nothing is kept, because dropout and examples differ at every call.

    Attributes:
        encoded: number of states that were computed.
    """

    def __init__(self, model: FoundationModel, graph: KnowledgeGraph, limit: int = CACHE_BYTES) -> None:
        self.encoded = 0
        self._model, self._graph, self._limit = model, graph, limit
        self._states: OrderedDict[int, Tensor] = OrderedDict()
        self._weights = b""

    @property
    def nbytes(self) -> int:
        """Bytes of the states that are kept."""
        return sum(states.nbytes for states in self._states.values())

    def states_of(self, anchor: Tensor, relation: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return relation states float32 [D, 2R, d] and the row of each query int64 [B], as ``FoundationModel.scores``
        takes them; equal to those of the model up to rounding.

        Args:
            anchor, relation: int64 [B] on CPU; the result is on the device of the model.
        """
        device = self._model.device
        keys = self._model.encoding_keys(self._graph, relation)
        if keys is None or self._model.training:
            return self._model.relation_states(self._graph, anchor.to(device), relation.to(device)), None
        distinct, first, place = np.unique(keys.numpy(), return_index=True, return_inverse=True)
        self._forget_if_changed()
        found = {int(key): self._states[int(key)] for key in distinct if int(key) in self._states}
        missing = [number for number, key in enumerate(distinct) if int(key) not in found]
        if missing:
            queries = torch.from_numpy(first[missing])
            sides = anchor[queries].to(device), relation[queries].to(device)
            states = self._model.relation_states(self._graph, *sides)
            found |= {int(distinct[number]): own for number, own in zip(missing, states, strict=True)}
            self.encoded += len(missing)
        for key in map(int, distinct):
            self._keep(key, found[key])
        return torch.stack([found[int(key)] for key in distinct]), torch.from_numpy(place).to(device)

    def _keep(self, key: int, states: Tensor) -> None:
        if key in self._states:
            self._states.move_to_end(key)
            return
        if states.nbytes > self._limit:
            return
        while (len(self._states) + 1) * states.nbytes > self._limit:
            self._states.popitem(last=False)
        self._states[key] = states.clone()  # not a view, which would keep the states of a whole batch

    def _forget_if_changed(self) -> None:
        """Drop all states if the weights are others than at the last call. Their contents are compared, since torch's
        counters of changes miss those that autograd does not see."""
        values = torch.cat([tensor.detach().flatten() for tensor in self._model.state_dict().values()])
        weights = hashlib.blake2b(values.cpu().numpy().data).digest()
        if weights != self._weights:
            self._states.clear()
            self._weights = weights


class GraphScorer:
    """Model in evaluation mode with the graph that it reasons from, whole or sampled around the anchors.

    Queries that occur more than once in a batch are computed once, and so are the relation states that queries share;
    these are kept from batch to batch.

    Attributes:
        cache: the relation states.
    """

    def __init__(
        self, model: FoundationModel, graph: KnowledgeGraph, surroundings: SubgraphSampler | None = None
    ) -> None:
        self.model, self.graph, self._surroundings = model.eval(), graph, surroundings
        self.cache = RelationStateCache(model, graph)

    @torch.no_grad()
    def scores(self, queries: np.ndarray) -> Tensor:
        """Return scores of all entities on the model's device: float32 [b, N] of queries int [b, 2], anchor and
        relation in [0, 2R)."""
        return self._once_each(queries, self._scores)

    @torch.no_grad()
    def relation_scores(self, pairs: np.ndarray) -> Tensor:
        """Return scores of all relations on the model's device: float32 [b, R] of pairs int [b, 2], head and tail.

        Raises:
            UnsupportedQuestionError: the model ranks entities.
        """
        device = self.model.device
        return self._once_each(
            pairs, lambda head, tail: self.model.relation_scores(self.graph, head.to(device), tail.to(device))
        )

    def _once_each(self, questions: np.ndarray, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the scores of questions int [b, 2], from those of the distinct ones, whose columns, int64 on CPU, are
        given to ``score``."""
        distinct, place = np.unique(questions, axis=0, return_inverse=True)
        repeated = len(distinct) < len(questions)
        scores = score(*torch.from_numpy((distinct if repeated else questions).astype(np.int64)).unbind(1))
        return scores[torch.from_numpy(place.reshape(-1)).to(scores.device)] if repeated else scores

    def _scores(self, anchor: Tensor, relation: Tensor) -> Tensor:
        states, place = self.cache.states_of(anchor, relation)
        anchor, relation = anchor.to(states.device), relation.to(states.device)
        if self._surroundings is None:
            return self.model.scores(self.graph, states, anchor, relation, place=place)
        return sampled_scores(self.model, self.graph, self._surroundings, anchor, relation, states=(states, place))
