"""Short runs of every scorer, objective, source of negatives, optimizer and foundation model, on one rank or two."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from distkg.config import parse_config
from distkg.embedding.scorers import SCORERS
from distkg.objectives import ALL_ENTITIES, SAMPLED
from distkg.sharding.ranks import Ranks
from distkg.training import run
from distkg.training.run import train_on_rank

Sections = dict[str, Any]

ADAM = {"optimizer": {"name": "adam", "learning_rate": 0.01}}
NEGATIVES = {"negatives": {"count": 8, "chunk_size": 32}}
LOGISTIC: Sections = {"objective": {"name": "logistic"}, **NEGATIVES, **ADAM}
SMALL = {"width": 8, "layers": 2, "hidden": 8}

EMBEDDINGS: dict[str, Sections] = {
    **{f"scorer {name}": {"model": {"name": name}, **LOGISTIC} for name in SCORERS},
    **{
        f"objective {name}": {"model": {"name": "complex"}, **LOGISTIC, "objective": {"name": name}}
        for name in SAMPLED
    },
    **{
        f"objective {name}": {"model": {"name": "complex"}, "objective": {"name": name, "label_smoothing": smoothing}}
        for name, smoothing in zip(sorted(ALL_ENTITIES), (0.1, 0.0), strict=True)
    },
    "objective query_sampling": {
        "model": {"name": "rote"},
        "objective": {"name": "query_sampling", "query_share": 0.3, "activation": "hanon"},
        **ADAM,
    },
    "objective non_negative": {"model": {"name": "rote"}, "objective": {"name": "non_negative"}, **ADAM},
    **{
        f"activation {name}": {
            "model": {"name": "rotate", "options": {"distance": "squared_l2"}},
            "objective": {"name": "query_sampling", "query_share": 0.5, "activation": name},
            **ADAM,
        }
        for name in ("halin", "x_exp", "double", "artanh")
    },
    **{
        f"regularizer {name}": {
            "model": {"name": "complex"}, "objective": {"name": "one_vs_all"},
            "regularizer": {"name": name, "weight": 0.01},
        }
        for name in ("n3", "l2")
    },
    **{
        f"optimizer {name}": {**LOGISTIC, "model": {"name": "complex"}, "optimizer": {"name": name}}
        for name in ("rowwise_adagrad", "adagrad")
    },
    **{
        f"source {name}": {"model": {"name": "distmult"}, **LOGISTIC, "negatives": {"source": name, "count": 8}}
        for name in (
            "bernoulli", "cached", "corrupt", "dans", "degree", "k_hop", "kmas", "near_miss", "nearest_neighbour",
            "relational",
        )
    },
    "source mixture": {
        "model": {"name": "distmult"}, **LOGISTIC,
        "negatives": {
            "source": "mixture", "count": 8, "filter": True,
            "options": {"parts": [{"source": "uniform", "weight": 0.5}, {"source": "k_hop"}]},
        },
    },
    "not shared, filtered": {
        "model": {"name": "rotate"}, **LOGISTIC, "negatives": {"count": 8, "shared": False, "filter": True}
    },
    "tied, dropout, bfloat16": {
        "model": {"name": "complex", "inverse": "tied", "dropout": 0.2, "dtype": "bfloat16"}, **LOGISTIC
    },
    "entities nodepiece": {
        "model": {
            "name": "distmult", "entities": "nodepiece",
            "nodepiece": {"anchors": 20, "nearest": 5, "encoder": "mlp"},
        },
        **LOGISTIC,
    },
    "cosine, clipped": {
        "model": {"name": "transe"}, **LOGISTIC,
        "optimizer": {
            "name": "adam", "learning_rate": 0.05, "schedule": "cosine", "warmup_epochs": 2, "clip_norm": 1.0,
            "weight_decay": 0.1,
        },
    },
}  # fmt: skip

FOUNDATION: dict[str, Sections] = {
    f"foundation {name}": {
        "model": {"name": name, "options": options},
        "objective": {"name": "self_adversarial", "margin": 0.0},
        "negatives": {"count": 6},
        "optimizer": {"name": "adam", "learning_rate": 0.005},
    }
    for name, options in {
        "compgcn": {"width": 8, "layers": 2},
        "motif": SMALL,
        "nbfnet": {"width": 8, "layers": 2},
        "rgcn": {"width": 8, "layers": 2},
        "semma": SMALL,
        "tofu": SMALL,
        "trix": {"width": 8, "layers": 2},
        "trix_relations": {"width": 8, "layers": 2},
        "ultra": SMALL,
    }.items()
}
CASES = EMBEDDINGS | FOUNDATION
STEPS = 20


def tree_of(name: str, store: str) -> Sections:
    """The configuration of a case: an epoch of one step each."""
    foundation = name in FOUNDATION
    tree: Sections = {
        "data": {"graphs": [store]} if foundation else {"store": store},
        "train": {"batch_size": 8, "steps_per_epoch": 1} if foundation else {"batch_size": 100_000},
        "evaluate": {"every": 10, "max_final_triples": 40},
        **CASES[name],
    }
    tree["train"] |= {"seed": 5, "epochs": STEPS}
    tree["model"] = tree["model"] if foundation else {"dim": 16, **tree["model"]}
    return tree


def figures_of(ranks: Ranks, name: str, store: str, folder: str) -> Sections:
    """Losses of the steps, and what ranking the splits gave; collective.

    Returns:
        ``losses``: one per step. ``metrics``: those of ``result.json``.
    """
    run.REPORT_SECONDS = math.inf  # on a slow machine an epoch would have several lines
    result = train_on_rank(parse_config(tree_of(name, store), name, dead_keys_are="dropped"), Path(folder), ranks)
    if ranks.rank:
        return {}
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return {"losses": [line["loss"] for line in lines], "metrics": result["metrics"]}


def pooled(store: str, source: str) -> Sections:
    """A run whose source is drawn by an actor, each delivery waited for."""
    return {
        "data": {"store": store},
        "model": {"name": "distmult", "dim": 16},
        **LOGISTIC,
        "negatives": {"source": source, "count": 8, "pool": {"actors": 1, "cpus_per_actor": 0.5, "sync": True}},
        "train": {"batch_size": 100_000, "workers": 2, "epochs": STEPS, "seed": 5},
        "evaluate": {"every": 10, "max_final_triples": 40},
    }


POOLED = ("near_miss", "dans", "kmas")
