"""Relations that are alike by the relation encoder of a foundation model: compared away from the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from distkg.config import RunConfig
from distkg.foundation.graphs.training_graphs import LearnedGraph
from distkg.foundation.initial_model import initial_model
from distkg.foundation.models import FoundationModel
from distkg.negatives.base import parse_source_options
from distkg.negatives.kmas.relation_miner import RelationMiner
from distkg.negatives.kmas.relation_similarity import AlikeOptions
from distkg.negatives.prefetch.pool_client import Arrays
from distkg.randomness import mixed_seed


def encoder_parameters(model: FoundationModel, graph: LearnedGraph) -> dict[str, torch.nn.Parameter]:
    """Those of the model that its relation states are made of: what they have a gradient of."""
    head, relation, _ = graph.facts.triples[:1].T
    states = model.relation_states(graph.facts, head, relation)
    if not states.requires_grad:
        return {}
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(states.sum(), list(named.values()), allow_unused=True)
    return {
        name: parameter
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
        if gradient is not None
    }


def weights_of(parameters: Mapping[str, Tensor]) -> Arrays:
    """Copies of parameters, as they are sent."""
    return {name: parameter.detach().cpu().numpy().copy() for name, parameter in parameters.items()}


class RelationEncoder:
    """Computes the state that each relation of a graph has in the light of a query for it, by published weights.

    States may depend on the anchor of the query too: it is the head of one of the relation's facts, by lot.
    """

    def __init__(self, config: RunConfig, graphs: Sequence[LearnedGraph]) -> None:
        """``graphs`` are those whose states it will be asked for."""
        self._seed, self._batch = config.train.seed, config.evaluate.batch_size
        self._model = initial_model(config, [graph.store.manifest for graph in graphs]).eval()
        self._parameters = dict(self._model.named_parameters())

    def own_states(self, graph: LearnedGraph, version: int, weights: Arrays) -> Tensor:
        """Of each relation in the light of a query for it, with the weights of step ``version``: float32 [R, d]."""
        with torch.no_grad():
            for name, values in weights.items():
                self._parameters[name].copy_(torch.from_numpy(np.array(values)))
            relations = torch.arange(graph.store.num_relations)
            anchors = some_head(graph.facts.triples, len(relations), mixed_seed(self._seed, version))
            parts = []
            for own in relations.split(self._batch):
                states = self._model.relation_states(graph.facts, anchors[own], own)
                parts.append(states[torch.arange(len(own)), own])
            return torch.cat(parts)


def relation_miners(config: RunConfig, graphs: Sequence[LearnedGraph]) -> list[RelationMiner]:
    """For each of the graphs a source that compares its relations by their states; one encoder serves all."""
    chosen, encoder = config.negatives, RelationEncoder(config, graphs)
    options = parse_source_options(chosen.source, chosen.options)
    assert isinstance(options, AlikeOptions)
    return [RelationMiner(graph.source.graph, options, partial(encoder.own_states, graph)) for graph in graphs]


def some_head(triples: Tensor, relations: int, seed: int) -> Tensor:
    """For each relation the head of one of its facts [T, 3], by lot; 0 where it has none: int64 [relations]."""
    order = np.random.default_rng(seed).permutation(len(triples))
    heads = np.zeros(relations, dtype=np.int64)
    heads[triples[order, 1].numpy()] = triples[order, 0].numpy()  # the last of a relation's facts stays
    return torch.from_numpy(heads)
