"""Score functions of knowledge-graph embeddings; importing this package registers all of them."""

from distkg.scoring import (
    complex,
    conve,
    cp,
    distmult,
    pairre,
    quate,
    rescal,
    rotate,
    rote,
    rotl,
    simple,
    transe,
    tucker,
)
from distkg.scoring.base import SCORERS, Options, Scorer, make_scorer

__all__ = [
    "SCORERS",
    "Options",
    "Scorer",
    "complex",
    "conve",
    "cp",
    "distmult",
    "make_scorer",
    "pairre",
    "quate",
    "rescal",
    "rotate",
    "rote",
    "rotl",
    "simple",
    "transe",
    "tucker",
]
