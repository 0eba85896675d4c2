"""Validation of a foundation-model configuration, and construction of its initial model and training graphs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distkg.config import ConfigError, RunConfig
from distkg.data.storage.working_copy import folder_at
from distkg.data.store.graph_store import Store
from distkg.data.store.manifest import Manifest
from distkg.foundation.graphs.generated_graphs import largest_graph
from distkg.foundation.graphs.training_graphs import LearnedGraph, graphs_of
from distkg.foundation.model_files import load_model, make_model
from distkg.foundation.models import MODELS, FoundationModel
from distkg.graph.partition import import_dgl
from distkg.negatives import SOURCES
from distkg.negatives.prefetch.prefetched_source import source_names
from distkg.objectives import SAMPLED
from distkg.training.learner import check_batch


def check_settings(config: RunConfig) -> None:
    """Validate a foundation-model configuration without opening any store.

    Raises:
        ConfigError, UnknownNameError: settings exclude each other, or options are wrong.
    """
    if config.objective.name not in SAMPLED:
        raise ConfigError(
            f"objective.name: {config.objective.name} is for embeddings; {config.model.name} needs an objective with "
            f"negatives: {', '.join(SAMPLED)}"
        )
    check_batch(config, config.train.workers)
    if config.model.keep_start and not config.model.start:
        raise ConfigError(
            "model.keep_start: model.start names no model whose weights could be frozen. Set model.start, or leave "
            "model.keep_start out"
        )
    chosen, model = config.negatives, config.model.name
    names = source_names(chosen.source, chosen.options)
    if chosen.vectors and not any(_reads_vectors(name) for name in names):
        readers = ", ".join(sorted(name for name in SOURCES if _reads_vectors(name)))
        raise ConfigError(
            f"negatives.vectors: {chosen.source} reads no entity vectors; those that do: {readers}. Leave "
            "negatives.vectors out, or choose another source"
        )
    for name in names:
        _check_vectors(config, name)
        if SOURCES[name].requires == "relations" and name != chosen.source:
            raise ConfigError(
                f"negatives.source: {name} cannot be part of a mixture for {model}. Set negatives.source: {name}"
            )
    _check_generated(config)
    if config.data.fanouts and MODELS[model].knows_entities:
        raise ConfigError(
            f"data.fanouts: {model} has a vector for each entity of the whole graph. Leave data.fanouts empty"
        )
    if config.data.fanouts and config.data.sampler == "dgl":
        import_dgl("data.sampler: compiled")
    graphs = len(set(graphs_of(config)))
    if chosen.pool.actors and SOURCES[chosen.source].hosted_reply != "similarities":
        raise ConfigError(
            f"negatives.pool.actors: {model} draws {chosen.source} negatives in the step, which is fast enough. Set "
            "negatives.pool.actors: 0, or choose negatives.source: kmas"
        )
    if chosen.pool.actors > graphs:
        raise ConfigError(
            f"negatives.pool.actors: each actor compares the relations of whole graphs, of which there are {graphs}. "
            f"Set it to {graphs} at most"
        )


def _check_generated(config: RunConfig) -> None:
    """Refuse generated graphs for what belongs to the entities or relations of a store."""
    if not config.data.generated.share:
        return
    if MODELS[config.model.name].knows_relations:
        raise ConfigError(
            f"data.generated.share: {config.model.name} has vectors for the relations of one graph, and generated "
            "graphs have others. Leave it out, or choose a model that reads any graph, such as ultra"
        )
    if config.negatives.vectors:
        raise ConfigError(
            f"data.generated.share: {config.negatives.source} reads vectors of the entities of one store, and "
            "generated graphs have others. Leave it out, or choose a negative source that reads none"
        )


def _reads_vectors(source: str) -> bool:
    """Return True if a source reads entity vectors."""
    return SOURCES[source].requires not in ("nothing", "relations")


def _check_vectors(config: RunConfig, source: str) -> None:
    """Validate ``negatives.vectors`` for a source that reads entity vectors."""
    chosen, kind = config.negatives, SOURCES[source]
    if not _reads_vectors(source):
        return
    if not chosen.vectors:
        raise ConfigError(
            f"negatives.source: {source} reads entity vectors, which {config.model.name} does not have. "
            "Name an embedding run on the same store in negatives.vectors, or choose another source"
        )
    if len(graphs_of(config)) > 1:
        raise ConfigError(
            f"negatives.vectors: the vectors of {chosen.vectors} belong to one store. List only that store in "
            "data.graphs"
        )
    if kind.generates and chosen.options.get("negatives") == "embedding":
        raise ConfigError(
            f"negatives.options.negatives: {config.model.name} scores entities, not vectors. Set "
            "negatives.options.negatives: snap"
        )


def check_foundation(config: RunConfig) -> None:
    """Validate a foundation-model configuration and its graphs before any worker starts.

    Raises:
        ConfigError, UnknownNameError: as for ``check_settings`` and ``initial_model``.
        StoreError: a graph cannot be opened.
        SourceError: a graph lacks what the negative source needs.
        ModelFileError: ``model.start`` holds no model.
    """
    check_settings(config)
    if config.data.generated.share:
        largest_graph(config)
    initial_model(config, [LearnedGraph.open(address, config).store.manifest for address in graphs_of(config)])


def made_graph(address: str, config: RunConfig) -> LearnedGraph:
    """Open a graph and build all indexes that training reads; raises as ``LearnedGraph.open`` and ``initial_model``."""
    graph = LearnedGraph.open(address, config)
    graph.make_all(initial_model(config, [graph.store.manifest]))
    return graph


def initial_model(config: RunConfig, sizes: Sequence[Manifest]) -> FoundationModel:
    """Create the initial model of training on graphs of these sizes.

    Raises:
        ConfigError: wrong options; ``model.start`` is of another kind or does not fit the options; several graphs for
            a model with vectors for the relations of one graph.
        ModelFileError: ``model.start`` holds no model.
        StoreMismatchError: ``model.start`` has vectors for the entities or relations of another store.
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
    with folder_at(config.model.start) as folder:
        start = load_model(folder)
    _check_start(start, config)
    if config.model.keep_start and start.name == name:
        raise ConfigError(
            f"model.keep_start: {config.model.start} is {name} itself, so that nothing would learn. Leave "
            "model.keep_start out, or train a model that extends another one, such as tofu from ultra"
        )
    model = _warm_start(start, config, options)
    if config.model.keep_start:
        kept = start.state_dict()
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(key not in kept)
    return model


def _check_start(start: FoundationModel, config: RunConfig) -> None:
    """Refuse a model with vectors of entities or relations on a store with other ids."""
    if start.trained_on is not None:
        for address in graphs_of(config):
            start.check_store(Store.open(address))


def _warm_start(start: FoundationModel, config: RunConfig, options: Mapping[str, Any]) -> FoundationModel:
    """Return a model initialised with the weights of ``start``, of the same kind or of the kind that it extends.

    ``options`` replace the options of ``start``.
    """
    name = config.model.name
    kind = MODELS[name]
    if start.name not in (name, kind.grows_from):
        raise ConfigError(f"model.start: {config.model.start} is {start.name}, and model.name is {name}")
    model = make_model(name, {**start.options.model_dump(), **options})
    own, loaded = model.state_dict(), start.state_dict()
    fitting = {key for key, tensor in loaded.items() if key in own and own[key].shape == tensor.shape}
    if fitting != set(loaded) or (start.name == name and fitting != set(own)):
        wrong = min(set(loaded) - fitting, default=min(set(own) - fitting, default=""))
        raise ConfigError(
            f"model.options: with {json.dumps(options)} the weights of {config.model.start} do not fit, first {wrong}. "
            "Use the options of that model, or leave model.start out"
        )
    model.load_state_dict(loaded, strict=False)
    return model
