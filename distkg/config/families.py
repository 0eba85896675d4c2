"""Families of models, by ``model.name``; a family decides which keys act and which package trains."""

from __future__ import annotations

from typing import Literal

FamilyName = Literal["embedding", "foundation", "relation_prediction"]

FAMILIES: dict[FamilyName, str] = {
    "embedding": "embedding models",
    "foundation": "foundation models",
    "relation_prediction": "models that rank relations",
}
"""Name of a family → name of its models in messages."""

FAMILY_OF_MODEL: dict[str, FamilyName] = {
    "compgcn": "foundation",
    "motif": "foundation",
    "nbfnet": "foundation",
    "rgcn": "foundation",
    "semma": "foundation",
    "tofu": "foundation",
    "trix": "foundation",
    "trix_relations": "relation_prediction",
    "ultra": "foundation",
}
"""Family of each model that is not a scorer. Listed by name, so that configurations are read without importing models.
"""


def family_of(model: str) -> FamilyName:
    """Return the family of ``model.name``; a name that is not listed is a scorer, of distkg or of a plug-in."""
    return FAMILY_OF_MODEL.get(model, "embedding")
