"""Before a run of a foundation model: what excludes each other, the model that it begins with, its graphs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distkg.config import ConfigError, RunConfig
from distkg.data.store.graph_store import Store
from distkg.data.store.manifest import Manifest
from distkg.foundation.files import load_model, make_model
from distkg.foundation.graphs.training_graphs import LearnedGraph, graphs_of
from distkg.foundation.models import MODELS, FoundationModel
from distkg.graph.partition import import_dgl
from distkg.negatives import SOURCES
from distkg.negatives.prefetch.prefetched_source import source_names
from distkg.objectives import SAMPLED


def check_settings(config: RunConfig) -> None:
    """Raise what settings say of themselves, without a look at graphs.

    Raises:
        ConfigError, UnknownNameError: settings that exclude each other, or wrong options.
    """
    if config.objective.name not in SAMPLED:
        raise ConfigError(
            f"objective.name: {config.objective.name} is for embeddings; {config.model.name} learns from negatives: "
            f"{', '.join(SAMPLED)}"
        )
    if config.model.keep_start and not config.model.start:
        raise ConfigError("model.keep_start: there is no model.start whose weights are to be kept")
    chosen, model = config.negatives, config.model.name
    for name in source_names(chosen.source, chosen.options):
        _check_vectors(config, name)
        if SOURCES[name].requires == "relations" and name != chosen.source:
            raise ConfigError(f"negatives.source: {name} cannot be part of a mixture of {model}")
    if config.data.fanouts and MODELS[model].knows_entities:
        raise ConfigError(f"data.fanouts: {model} has vectors for the entities of a whole graph. Leave fanouts empty")
    if config.data.fanouts and config.data.sampler == "dgl":
        import_dgl("data.sampler: compiled")
    graphs = len(set(graphs_of(config)))
    if chosen.pool.actors and SOURCES[chosen.source].hosted_reply != "similarities":
        raise ConfigError(
            f"negatives.pool.actors: {model} draws {chosen.source} negatives in the step in no time. Set it to 0, or "
            "choose negatives.source: kmas"
        )
    if chosen.pool.actors > graphs:
        raise ConfigError(
            f"negatives.pool.actors: an actor compares the relations of whole graphs, and there are {graphs}. "
            f"Set it to {graphs} at most"
        )


def _check_vectors(config: RunConfig, source: str) -> None:
    """Of entities, where a source looks at them."""
    chosen, kind = config.negatives, SOURCES[source]
    if kind.requires in ("nothing", "relations"):
        return
    if not chosen.vectors:
        raise ConfigError(
            f"negatives.source: {source} looks at vectors of entities, which {config.model.name} has none of. "
            "Name a run that was trained on the same store in negatives.vectors, or choose another source"
        )
    if len(graphs_of(config)) > 1:
        raise ConfigError(
            f"negatives.vectors: those of {chosen.vectors} belong to one store: give that one alone in data.graphs"
        )
    if kind.generates and chosen.options.get("negatives") == "embedding":
        raise ConfigError(
            f"negatives.options.negatives: {config.model.name} scores entities, not vectors. Set it to snap"
        )


def check_foundation(config: RunConfig) -> None:
    """Raise what a run of these settings would raise on its workers, before any starts.

    Raises:
        ConfigError, UnknownNameError: as ``check_settings`` and ``initial_model``.
        StoreError: a graph cannot be opened.
        SourceError: a graph lacks what the negative source needs.
        ModelFileError: there is no model to go on from.
    """
    check_settings(config)
    initial_model(config, [LearnedGraph.open(address, config).store.manifest for address in graphs_of(config)])


def made_graph(address: str, config: RunConfig) -> LearnedGraph:
    """A graph with all that training reads of it made; raises as ``LearnedGraph.open`` and ``initial_model``."""
    graph = LearnedGraph.open(address, config)
    graph.make_all(initial_model(config, [graph.store.manifest]))
    return graph


def initial_model(config: RunConfig, sizes: Sequence[Manifest]) -> FoundationModel:
    """The model that training begins with, on graphs of these sizes.

    Raises:
        ConfigError: wrong options, or a model to go on from that is another one, or that they do not fit; several
            graphs for a model whose relations are those of one.
        ModelFileError: there is none to go on from.
        StoreMismatchError: it has vectors for the entities or relations of another store.
    """
    name, options = config.model.name, dict(config.model.options)
    if MODELS[name].knows_relations:
        if len(sizes) > 1:
            raise ConfigError(f"data.graphs: {name} has vectors for the relations of one graph; {len(sizes)} are given")
        options["relations"] = sizes[0].relations
        if MODELS[name].knows_entities:
            options["entities"] = sizes[0].entities
    if not config.model.start:
        return make_model(name, options)
    start = load_model(Path(config.model.start))
    _check_start(start, config)
    if config.model.keep_start and start.name == name:
        raise ConfigError(
            f"model.keep_start: {config.model.start} is {name} itself, so that nothing would learn; it is for a model "
            "that grows from another one, such as tofu from ultra"
        )
    model = _warm_start(start, config, options)
    if config.model.keep_start:
        kept = start.state_dict()
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(key not in kept)
    return model


def _check_start(start: FoundationModel, config: RunConfig) -> None:
    """Refuse to go on from vectors of entities or relations on a store where their ids stand for others."""
    if start.trained_on is not None:
        for address in graphs_of(config):
            start.check_store(Store.open(address))


def _warm_start(start: FoundationModel, config: RunConfig, options: Mapping[str, Any]) -> FoundationModel:
    """A model with the weights of another one, of the same kind or of the one that it grows from; ``options`` are
    those that are to differ."""
    name = config.model.name
    kind = MODELS[name]
    if start.name not in (name, kind.grows_from):
        raise ConfigError(f"model.start: {config.model.start} is {start.name}, and model.name is {name}")
    model = make_model(name, {**start.options.model_dump(), **options})
    own, given = model.state_dict(), start.state_dict()
    kept = {key for key, tensor in given.items() if key in own and own[key].shape == tensor.shape}
    if kept != set(given) or (start.name == name and kept != set(own)):
        wrong = min(set(given) - kept, default=min(set(own) - kept, default=""))
        raise ConfigError(
            f"model.options: with {json.dumps(options)} the weights of {config.model.start} do not fit, first {wrong}. "
            "Take the options that it has, or begin without model.start"
        )
    model.load_state_dict(given, strict=False)
    return model
