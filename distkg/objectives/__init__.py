"""What a run minimises: objectives with sampled negatives, objectives over all entities, and penalties."""

from distkg.objectives.all_entities import ALL_ENTITIES, AllEntitiesObjective, Answers, OneVsAll, Reduced
from distkg.objectives.regularizers import REGULARIZERS, Regularizer
from distkg.objectives.sampled import EXCLUDED, SAMPLED, SampledObjective

QUERY_SAMPLING = "query_sampling"
"""The objective of HaLE: answers for all queries, all entities for some of them (``training.steps``)."""

__all__ = [
    "ALL_ENTITIES",
    "EXCLUDED",
    "QUERY_SAMPLING",
    "REGULARIZERS",
    "SAMPLED",
    "AllEntitiesObjective",
    "Answers",
    "OneVsAll",
    "Reduced",
    "Regularizer",
    "SampledObjective",
]
