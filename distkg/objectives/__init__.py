"""What a run minimises: objectives with sampled negatives, objectives over all entities, and penalties."""

from distkg.objectives.all_entities import ALL_ENTITIES, AllEntitiesObjective, Answers, Reduced
from distkg.objectives.regularizers import REGULARIZERS, Regularizer
from distkg.objectives.sampled import EXCLUDED, SAMPLED, SampledObjective

__all__ = [
    "ALL_ENTITIES",
    "EXCLUDED",
    "REGULARIZERS",
    "SAMPLED",
    "AllEntitiesObjective",
    "Answers",
    "Reduced",
    "Regularizer",
    "SampledObjective",
]
