"""Similarity of relations by the relation encoder of a foundation model, computed in actors during training."""

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
    """Return the parameters that the relation states of the model depend on, found by their gradients."""
    head, relation, _ = graph.facts.triples[:1].T
    states = model.relation_states(graph.facts, head, relation)
    if not states.requires_grad:
        return {}
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(states.sum(), list(named.values()), allow_unused=True)
    return {
        name: parameter
        for (name, parameter), gradient in zip(named.items(), gradients, strict=True)
        if gradient is not None
    }


def weights_of(parameters: Mapping[str, Tensor]) -> Arrays:
    """Return copies of parameters as NumPy arrays."""
    return {name: parameter.detach().cpu().numpy().copy() for name, parameter in parameters.items()}


class RelationEncoder:
    """Relation encoder with published weights: computes the state of each relation for a query with that relation.

    States may also depend on the anchor of the query, which is the head of a random fact of the relation.
    """

    def __init__(self, config: RunConfig, graphs: Sequence[LearnedGraph]) -> None:
        """``graphs`` are the graphs whose relation states are computed."""
        self._seed, self._batch = config.train.seed, config.evaluate.batch_size
        self._model = initial_model(config, [graph.store.manifest for graph in graphs]).eval()
        self._parameters = dict(self._model.named_parameters())

    def own_states(self, graph: LearnedGraph, version: int, weights: Arrays) -> Tensor:
        """Return the state of each relation for a query with that relation, with the weights of step ``version``:
        float32 [R, d]."""
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
    """Return for each graph a miner that compares its relations by their states; all share one encoder."""
    chosen, encoder = config.negatives, RelationEncoder(config, graphs)
    options = parse_source_options(chosen.source, chosen.options)
    assert isinstance(options, AlikeOptions)
    return [RelationMiner(graph.source.graph, options, partial(encoder.own_states, graph)) for graph in graphs]


def some_head(triples: Tensor, relations: int, seed: int) -> Tensor:
    """Return for each relation the head of a random one of its facts [T, 3], or 0 if it has none: int64 [relations]."""
    order = np.random.default_rng(seed).permutation(len(triples))
    heads = np.zeros(relations, dtype=np.int64)
    heads[triples[order, 1].numpy()] = triples[order, 0].numpy()  # the last assignment of a relation remains
    return torch.from_numpy(heads)
