"""Models that rank facts in graphs that they have never seen: no vector belongs to an entity or a relation.

Importing this package registers all of them.
"""

from distkg.foundation.base import MODELS, FoundationModel, GraphMismatchError, UnsupportedQuestionError
from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.foundation.models import compgcn, motif, nbfnet, rgcn, semma, tofu, trix, trix_relations, ultra

__all__ = [
    "MODELS",
    "FoundationModel",
    "GraphMismatchError",
    "KnowledgeGraph",
    "UnsupportedQuestionError",
    "compgcn",
    "motif",
    "nbfnet",
    "rgcn",
    "semma",
    "tofu",
    "trix",
    "trix_relations",
    "ultra",
]
