"""Negative sampling; importing this package registers all sources."""

from distkg.negatives import dans, mixture
from distkg.negatives.base import (
    SOURCES,
    DrawRequest,
    GeneratedNegatives,
    Negatives,
    NegativeSource,
    Queries,
    RunSizes,
    SourceError,
    TrainingProgress,
    check_source,
    depends_on_query,
    draws_on_tensors,
    generated_bytes,
    make_source,
    source_memory,
)
from distkg.negatives.kmas import source as kmas
from distkg.negatives.known_facts import FactKeys, known_facts
from distkg.negatives.model_based import cached as model_based
from distkg.negatives.model_view import ModelView
from distkg.negatives.static import candidate_sets as pools
from distkg.negatives.static import global_samplers, neighbourhood
from distkg.negatives.training_graph import TrainingGraph

__all__ = [
    "SOURCES",
    "DrawRequest",
    "FactKeys",
    "GeneratedNegatives",
    "ModelView",
    "NegativeSource",
    "Negatives",
    "Queries",
    "RunSizes",
    "SourceError",
    "TrainingGraph",
    "TrainingProgress",
    "check_source",
    "dans",
    "depends_on_query",
    "draws_on_tensors",
    "generated_bytes",
    "global_samplers",
    "kmas",
    "known_facts",
    "make_source",
    "mixture",
    "model_based",
    "neighbourhood",
    "pools",
    "source_memory",
]
