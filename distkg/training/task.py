"""The batches and the step that the configured objective needs."""

from __future__ import annotations

import torch

from distkg.config import ConfigError, RunConfig
from distkg.data.store import Store
from distkg.kernels.similarity import DOT
from distkg.negatives import TrainingGraph, depends_on_query, make_source
from distkg.objectives import ALL_ENTITIES, NON_NEGATIVE, QUERY_SAMPLING, SAMPLED
from distkg.registry import UnknownNameError
from distkg.scoring import make_scorer
from distkg.training.batches import AllEntitiesBatches, Batches, QuerySampledBatches, SampledBatches
from distkg.training.hardness import make_hardness
from distkg.training.live import ModelView
from distkg.training.model import Model
from distkg.training.steps import AllEntitiesStep, NonNegativeStep, QuerySamplingStep, SampledStep, Step


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
    if name in SAMPLED:
        depends_on_query(config.negatives.source, config.negatives.options)
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


def make_task(config: RunConfig, store: Store, model: Model) -> tuple[Batches, Step]:
    """Batches and step for ``objective.name``.

    Raises:
        UnknownNameError, ConfigError: as `check_objective`.
    """
    check_objective(config)
    ranks, train = model.ranks, config.train
    name = config.objective.name
    if name in SAMPLED:
        source = make_source(config.negatives.source, config.negatives.options, TrainingGraph.of_store(store))
        source.attach(ModelView(model))
        sampled = SampledBatches(store, source, config.negatives, train.batch_size, train.epochs, train.seed, ranks)
        return sampled, SampledStep(model, config)
    if name in ALL_ENTITIES:
        group = name == "k_vs_all" or config.objective.group_answers
        return AllEntitiesBatches(store, group, train.batch_size, train.seed, ranks), AllEntitiesStep(model, config)
    share = config.objective.query_share if name == QUERY_SAMPLING else 0.0
    queries = QuerySampledBatches(store, share, train.batch_size, train.seed, ranks)
    return queries, QuerySamplingStep(model, config) if share else NonNegativeStep(model, config)
