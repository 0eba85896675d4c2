"""What a run minimises: objectives with sampled negatives, objectives over all entities, and penalties."""

from distkg.objectives.all_entities import ALL_ENTITIES, AllEntitiesObjective, Answers, OneVsAll, Reduced
from distkg.objectives.regularizers import REGULARIZERS, Regularizer
from distkg.objectives.sampled import EXCLUDED, SAMPLED, SampledObjective
from distkg.objectives.spread import spread

QUERY_SAMPLING = "query_sampling"
"""The objective of HaLE: answers for all queries, all entities for some of them (``training.steps``)."""

NON_NEGATIVE = "non_negative"
"""Answers only, and a global spread of the entities: NonNeg, with which HaLE compares itself (``training.steps``)."""

__all__ = [
    "ALL_ENTITIES",
    "EXCLUDED",
    "NON_NEGATIVE",
    "QUERY_SAMPLING",
    "REGULARIZERS",
    "SAMPLED",
    "AllEntitiesObjective",
    "Answers",
    "OneVsAll",
    "Reduced",
    "Regularizer",
    "SampledObjective",
    "spread",
]
