"""Models that predict facts in knowledge graphs; the foundation models among them apply to graphs that they have never
seen, because no vector belongs to an entity or a relation.

Importing this package registers all models.
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
