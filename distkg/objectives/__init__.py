"""Training objectives: with sampled negatives, over all entities, and regularizers."""

from distkg.objectives.all_entities import ALL_ENTITIES, AllEntitiesObjective, Answers, OneVsAll, Reduced
from distkg.objectives.regularizers import (
    PENALISES_PRODUCTS,
    REGULARIZERS,
    Regularizer,
    add_row_penalty,
    has_compiled_form,
)
from distkg.objectives.sampled import EXCLUDED, SAMPLED, SampledObjective
from distkg.objectives.spread import spread

QUERY_SAMPLING = "query_sampling"
"""HaLE's objective: answers of all queries, and all entities for a sample of queries (``embedding.steps``)."""

NON_NEGATIVE = "non_negative"
"""NonNeg, HaLE's baseline: answers only, and a global spread of the entities (``embedding.steps``)."""

__all__ = [
    "ALL_ENTITIES",
    "EXCLUDED",
    "NON_NEGATIVE",
    "PENALISES_PRODUCTS",
    "QUERY_SAMPLING",
    "REGULARIZERS",
    "SAMPLED",
    "AllEntitiesObjective",
    "Answers",
    "OneVsAll",
    "Reduced",
    "Regularizer",
    "SampledObjective",
    "add_row_penalty",
    "has_compiled_form",
    "spread",
]
