"""Families of models, by ``model.name``: which keys exist, and who trains, depends on them."""

from __future__ import annotations

from typing import Literal

FamilyName = Literal["embedding", "foundation", "relation_prediction"]

FAMILIES: dict[FamilyName, str] = {
    "embedding": "embedding models",
    "foundation": "foundation models",
    "relation_prediction": "models that rank relations",
}
"""Name of a family → how messages call its models."""

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
"""Models that are no scorers. Kept here by name, as a configuration is read without importing any model."""


def family_of(model: str) -> FamilyName:
    """Return the family of ``model.name``; a name that is not listed is a scorer, of distkg or of a plug-in."""
    return FAMILY_OF_MODEL.get(model, "embedding")
