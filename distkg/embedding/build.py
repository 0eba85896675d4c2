"""Construction of the batches and the training step of the configured objective."""

from __future__ import annotations

from collections.abc import Callable

import torch

from distkg.config import ConfigError, NegativesConfig, RunConfig
from distkg.data.store.graph_store import Store
from distkg.embedding.activation import make_hardness
from distkg.embedding.batches import AllEntitiesBatches, Batches, QuerySampledBatches, SampledBatches
from distkg.embedding.growth.settings import first_trained_fact
from distkg.embedding.model import TrainingModel
from distkg.embedding.scorers import SCORERS, make_scorer
from distkg.embedding.sharded_model_view import ShardedModelView
from distkg.embedding.steps.all_entities import AllEntitiesStep
from distkg.embedding.steps.captured import captured
from distkg.embedding.steps.query_sampling import NonNegativeStep, QuerySamplingStep
from distkg.embedding.steps.sampled import SampledStep
from distkg.embedding.steps.step import Step
from distkg.kernels.jit import on_cpu
from distkg.kernels.scores.similarity import DOT
from distkg.negatives import SOURCES, NegativeSource, TrainingGraph, check_source, make_source
from distkg.negatives.mixture import Mixture
from distkg.negatives.prefetch.prefetched_source import hosted_parts, make_hosted_source
from distkg.objectives import ALL_ENTITIES, NON_NEGATIVE, PENALISES_PRODUCTS, QUERY_SAMPLING, SAMPLED
from distkg.registry import UnknownNameError
from distkg.training.learner import check_batch
from distkg.training.services import LOCAL_SERVICES, Services


def check_objective(config: RunConfig) -> None:
    """Validate the objective, scorer and negatives of a configuration before any worker starts.

    Raises:
        UnknownNameError: no such scorer, objective or negative source.
        ConfigError: settings that exclude each other, wrong options, or fewer queries in a step than workers.
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
    check_batch(config, config.train.workers)
    _check_storage(config)
    _check_negatives(config)
    with torch.device("meta"):
        scorer = make_scorer(config.model)
        products = make_hardness(config, scorer, relations=1).similarity is DOT
    if config.regularizer.name in PENALISES_PRODUCTS and not scorer.bilinear:
        raise ConfigError(
            f"regularizer.name: {config.regularizer.name} penalises the products hR and tRᵀ of a score ⟨hR, t⟩, and "
            f"the score of {config.model.name}{_with_options(config)} is not bilinear. Use n3 or l2, or a bilinear "
            f"scorer: {', '.join(_bilinear_scorers())}."
        )
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


def _with_options(config: RunConfig) -> str:
    return f" with {config.model.options}" if config.model.options else ""


def _bilinear_scorers() -> list[str]:
    return [name for name in SCORERS if SCORERS[name].bilinear]


def check_sources(config: RunConfig, store: Store) -> None:
    """Validate the negative sources of a configuration on a graph before any worker starts.

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


def _check_storage(config: RunConfig) -> None:
    if config.train.table_storage == "disk" and config.cluster.gpus_per_worker > 0:
        raise ConfigError(
            "train.table_storage: disk is for workers on CPUs, whose memory can be mapped from a file. Set it to "
            "memory, or cluster.gpus_per_worker: 0"
        )


def _check_negatives(config: RunConfig) -> None:
    chosen, sampled = config.negatives, config.objective.name in SAMPLED
    hosted = hosted_parts(chosen.source, chosen.options)  # also validates source and options
    if not chosen.pool.actors:
        return
    if not sampled:
        raise ConfigError(f"negatives.pool.actors: {config.objective.name} draws no negatives. Set it to 0.")
    if not hosted:
        raise ConfigError(
            f"negatives.pool.actors: {chosen.source} needs no model and is fast enough to be drawn in the step. Set "
            "it to 0, or choose another negatives.source: `distkg negatives` lists all sources."
        )
    if chosen.pool.actors > 1 and all(SOURCES[name].hosted_reply == "similarities" for name, _ in hosted.values()):
        raise ConfigError(
            f"negatives.pool.actors: one actor compares all relations of a graph for kmas, so "
            f"{chosen.pool.actors - 1} would be idle. Set it to 1."
        )
    fallback = chosen.pool.fallback
    if SOURCES[fallback].requires != "nothing" or SOURCES[fallback] is Mixture:
        raise ConfigError(
            f"negatives.pool.fallback: {fallback} needs the model. Use a source that needs only the graph, such as "
            "uniform, degree, bernoulli, corrupt, typed, classes, relational or k_hop."
        )


def build_objective(
    config: RunConfig,
    store: Store,
    model: TrainingModel,
    services: Services = LOCAL_SERVICES,
    time_gone: Callable[[], float] = lambda: 0.0,
) -> tuple[Batches, Step]:
    """Build the batches and the step of ``objective.name``.

    Args:
        services: as in `train_on_rank`.
        time_gone: as in `SampledBatches`.

    Raises:
        UnknownNameError, ConfigError: as `check_objective`, or ``negatives.pool.actors`` is set without Ray.
    """
    check_objective(config)
    check_batch(config, model.ranks.size)
    name, train, ranks = config.objective.name, config.train, model.ranks
    first = first_trained_fact(config, store.manifest)
    if name in SAMPLED:
        source = build_source(config.negatives, TrainingGraph.of_store(store), services)
        source.attach(ShardedModelView(model))
        on_host = config.negatives.pool.actors or train.resident_share < 1 or source.on_tensors() is None
        sampled = SampledBatches(
            store,
            source,
            config.negatives,
            train.batch_size,
            train.epochs,
            train.seed,
            ranks,
            time_gone,
            first,
            train.resident_share,
            on_device=not (on_host or on_cpu(model.relations)),
        )
        return sampled, captured(SampledStep(model, config), model, config)
    if name in ALL_ENTITIES:
        group = name == "k_vs_all" or config.objective.group_answers
        every = AllEntitiesBatches(store, group, train.batch_size, train.seed, ranks, first)
        return every, AllEntitiesStep(model, config)
    share = config.objective.query_share if name == QUERY_SAMPLING else 0.0
    queries = QuerySampledBatches(store, share, train.batch_size, train.seed, ranks, first)
    return queries, QuerySamplingStep(model, config) if share else NonNegativeStep(model, config)


def build_source(chosen: NegativesConfig, graph: TrainingGraph, services: Services) -> NegativeSource:
    if not chosen.pool.actors:
        return make_source(chosen.source, chosen.options, graph)
    if services.pool_of is None:
        raise ConfigError(
            "negatives.pool.actors needs Ray actors, but this training runs without Ray: launch it with "
            "`distkg train` or launch_training, or set negatives.pool.actors: 0."
        )
    return make_hosted_source(chosen.source, chosen.options, graph, services.pool_of, chosen.pool)
