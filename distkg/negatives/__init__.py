"""Where wrong answers come from; importing this package registers all sources."""

from distkg.negatives import dans, everywhere, kmas, mixture, neighbourhood, pools, remembered
from distkg.negatives.base import (
    SOURCES,
    Coming,
    Made,
    Moment,
    Negatives,
    NegativeSource,
    Queries,
    SourceError,
    check_source,
    depends_on_query,
    make_source,
    source_memory,
)
from distkg.negatives.known_facts import known_facts
from distkg.negatives.live import LiveModel
from distkg.negatives.training_graph import TrainingGraph

__all__ = [
    "SOURCES",
    "Coming",
    "LiveModel",
    "Made",
    "Moment",
    "NegativeSource",
    "Negatives",
    "Queries",
    "SourceError",
    "TrainingGraph",
    "check_source",
    "dans",
    "depends_on_query",
    "everywhere",
    "kmas",
    "known_facts",
    "make_source",
    "mixture",
    "neighbourhood",
    "pools",
    "remembered",
    "source_memory",
]
