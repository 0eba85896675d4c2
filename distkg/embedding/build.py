"""The batches and the step that the configured objective needs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from distkg.config import ConfigError, NegativesConfig, RunConfig
from distkg.data.store.graph_store import Store
from distkg.embedding.activation import make_hardness
from distkg.embedding.batches import AllEntitiesBatches, Batches, QuerySampledBatches, SampledBatches
from distkg.embedding.model import Model
from distkg.embedding.scorers import make_scorer
from distkg.embedding.sharded_model_view import ShardedModelView
from distkg.embedding.steps import AllEntitiesStep, NonNegativeStep, QuerySamplingStep, SampledStep, Step
from distkg.kernels.scores.similarity import DOT
from distkg.negatives import SOURCES, NegativeSource, TrainingGraph, check_source, make_source
from distkg.negatives.mixture import Mixture
from distkg.negatives.prefetch.prefetched_source import hosted_parts, make_hosted_source
from distkg.objectives import ALL_ENTITIES, NON_NEGATIVE, QUERY_SAMPLING, SAMPLED
from distkg.registry import UnknownNameError
from distkg.training.services import LOCAL_SERVICES, Services


def check_objective(config: RunConfig) -> None:
    """Raise what a run of these settings would raise on its workers, before any starts.

    Raises:
        UnknownNameError: no such scorer, objective or negative source.
        ConfigError: settings that exclude each other, or wrong options.
    """
    objective, name = config.objective, config.objective.name
    known = [*SAMPLED, *ALL_ENTITIES, QUERY_SAMPLING, NON_NEGATIVE]
    if name not in known:
        raise UnknownNameError(f"objective.name: there is no objective named {name!r}. Known: {', '.join(known)}")
    if config.model.start or config.model.keep_start:
        raise ConfigError(
            f"model.start and model.keep_start are for foundation models; {config.model.name} embeds the entities of "
            "one graph. To go on with a run, use --resume"
        )
    _check_negatives(config)
    with torch.device("meta"):
        products = make_hardness(config, make_scorer(config.model), relations=1).similarity is DOT
    if name not in (*SAMPLED, NON_NEGATIVE) and objective.products != "float32" and not products:
        raise ConfigError(
            f"objective.products: {objective.products} is for inner products; {config.model.name} takes "
            "differences of large numbers, which would be lost. Use float32."
        )
    if name == QUERY_SAMPLING and objective.square_positives and products:
        raise ConfigError(
            f"objective.square_positives squares a distance, and {config.model.name} compares by inner products, "
            "whose squares would reward bad answers. Take a scorer with a distance, such as rote, or set "
            "objective.square_positives: false."
        )


def check_sources(config: RunConfig, store: Store) -> None:
    """Raise what making the negative sources of a run on this graph would raise on its workers, before any starts.

    Raises:
        UnknownNameError, ConfigError: as `check_objective`.
        SourceError: the graph lacks what a source needs.
    """
    chosen = config.negatives
    if config.objective.name not in SAMPLED:
        return
    graph = TrainingGraph.of_store(store)
    check_source(chosen.source, chosen.options, graph)
    if chosen.pool.actors:
        check_source(chosen.pool.fallback, {}, graph)


def _check_negatives(config: RunConfig) -> None:
    chosen, sampled = config.negatives, config.objective.name in SAMPLED
    hosted = hosted_parts(chosen.source, chosen.options)  # names a wrong source or option, also where none is asked
    if not chosen.pool.actors:
        return
    if not sampled:
        raise ConfigError(f"negatives.pool.actors: {config.objective.name} has no negatives to draw. Set it to 0.")
    if not hosted:
        raise ConfigError(
            f"negatives.pool.actors: {chosen.source} does not look at queries, so it is drawn in the step in no time. "
            "Set it to 0, or choose another negatives.source: `distkg negatives` lists them."
        )
    if chosen.pool.actors > 1 and all(SOURCES[name].hosted_reply == "similarities" for name, _ in hosted.values()):
        raise ConfigError(
            f"negatives.pool.actors: an actor compares all relations of a graph for kmas, and {chosen.pool.actors - 1} "
            "would have nothing to do. Set it to 1."
        )
    standing_in = chosen.pool.fallback
    if SOURCES[standing_in].requires != "nothing" or SOURCES[standing_in] is Mixture:
        raise ConfigError(
            f"negatives.pool.fallback: {standing_in} looks at the model; what stands in is drawn in the step and "
            "must be quick. Use uniform, or any source that needs only the graph."
        )


def build_objective(
    config: RunConfig,
    store: Store,
    model: Model,
    services: Services = LOCAL_SERVICES,
    time_gone: Callable[[], float] = lambda: 0.0,
) -> tuple[Batches, Step]:
    """Batches and step for ``objective.name``; ``services`` as in `train_on_rank`, ``time_gone`` in `SampledBatches`.

    Raises:
        UnknownNameError, ConfigError: as `check_objective`; or negatives are to be drawn by actors and there are none.
    """
    check_objective(config)
    ranks, train = model.ranks, config.train
    name = config.objective.name
    if name in SAMPLED:
        source = _make_source(config.negatives, TrainingGraph.of_store(store), services)
        source.attach(ShardedModelView(model))
        sampled = SampledBatches(
            store, source, config.negatives, train.batch_size, train.epochs, train.seed, ranks, time_gone
        )
        return sampled, SampledStep(model, config)
    if name in ALL_ENTITIES:
        group = name == "k_vs_all" or config.objective.group_answers
        return AllEntitiesBatches(store, group, train.batch_size, train.seed, ranks), AllEntitiesStep(model, config)
    share = config.objective.query_share if name == QUERY_SAMPLING else 0.0
    queries = QuerySampledBatches(store, share, train.batch_size, train.seed, ranks)
    return queries, QuerySamplingStep(model, config) if share else NonNegativeStep(model, config)


def _make_source(chosen: NegativesConfig, graph: TrainingGraph, services: Services) -> NegativeSource:
    if not chosen.pool.actors:
        return make_source(chosen.source, chosen.options, graph)
    if services.pool_of is None:
        raise ConfigError(
            "negatives.pool.actors asks for Ray actors, and this training runs without Ray: launch it with "
            "`distkg train` or launch_training, or set negatives.pool.actors: 0."
        )
    return make_hosted_source(chosen.source, chosen.options, graph, services.pool_of, chosen.pool)
