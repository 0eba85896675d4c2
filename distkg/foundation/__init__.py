"""Models that rank facts in graphs that they have never seen: no vector belongs to an entity or a relation.

Importing this package registers all of them.
"""

from distkg.foundation import compgcn, motif, nbfnet, rgcn, semma, tofu, trix, trix_relations, ultra
from distkg.foundation.base import MODELS, FoundationModel, GraphMismatchError, UnsupportedQuestionError
from distkg.foundation.files import ModelFileError, import_checkpoint, is_model, load_model, make_model, save_model
from distkg.foundation.graph import KnowledgeGraph

__all__ = [
    "MODELS",
    "FoundationModel",
    "GraphMismatchError",
    "KnowledgeGraph",
    "ModelFileError",
    "UnsupportedQuestionError",
    "compgcn",
    "import_checkpoint",
    "is_model",
    "load_model",
    "make_model",
    "motif",
    "nbfnet",
    "rgcn",
    "save_model",
    "semma",
    "tofu",
    "trix",
    "trix_relations",
    "ultra",
]
