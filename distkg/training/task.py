"""The batches and the step that the configured objective needs."""

from __future__ import annotations

from distkg.config import RunConfig
from distkg.data.store import Store
from distkg.negatives import SOURCES
from distkg.objectives import ALL_ENTITIES, QUERY_SAMPLING, SAMPLED
from distkg.registry import UnknownNameError
from distkg.training.batches import AllEntitiesBatches, Batches, QuerySampledBatches, SampledBatches
from distkg.training.model import Model
from distkg.training.steps import AllEntitiesStep, QuerySamplingStep, SampledStep, Step


def make_task(config: RunConfig, store: Store, model: Model) -> tuple[Batches, Step]:
    """Batches and step for ``objective.name``.

    Raises:
        UnknownNameError: no such objective or negative source.
    """
    ranks, train = model.ranks, config.train
    name = config.objective.name
    if name in SAMPLED:
        source = SOURCES[config.negatives.source](store.num_entities, store.degrees())
        sampled = SampledBatches(store, source, config.negatives, train.batch_size, train.seed, ranks)
        return sampled, SampledStep(model, config)
    if name in ALL_ENTITIES:
        group = name == "k_vs_all" or config.objective.group_answers
        return AllEntitiesBatches(store, group, train.batch_size, train.seed, ranks), AllEntitiesStep(model, config)
    if name == QUERY_SAMPLING:
        sampled_queries = QuerySampledBatches(store, config.objective.query_share, train.batch_size, train.seed, ranks)
        return sampled_queries, QuerySamplingStep(model, config)
    known = ", ".join([*SAMPLED, *ALL_ENTITIES, QUERY_SAMPLING])
    raise UnknownNameError(f"there is no objective named {name!r}. Known: {known}")
