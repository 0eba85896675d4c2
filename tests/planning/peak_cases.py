"""Cases of measured peaks: one at least of every registered name, each a configuration and what is measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distkg.data.prepare import prepare
from distkg.embedding.scorers import SCORERS
from distkg.foundation.models import MODELS
from distkg.negatives import SOURCES, depends_on_query
from distkg.negatives.prefetch.prefetched_source import source_names
from distkg.objectives import ALL_ENTITIES, NON_NEGATIVE, QUERY_SAMPLING, REGULARIZERS, SAMPLED
from distkg.registry import Registry
from distkg.sharding.optimizers import OPTIMIZERS
from tests.planning.measured_peaks import Tree, Work

Size = Literal["tiny", "small", "large", "fewer", "few", "many"]
SIZES: dict[Size, tuple[int, int]] = {
    "tiny": (400, 2000),
    "small": (8000, 10_000),
    "large": (24_000, 30_000),
    "fewer": (1000, 4000),
    "few": (1500, 5500),
    "many": (4500, 15_000),
}
"""Numbers of entities and of training triples of the stores; few and many are for what costs much time."""
RELATIONS, CLASSES, RANKED = 6, 20, 30


@dataclass(frozen=True)
class Case:
    """Configuration whose peaks are measured.

    Attributes:
        tree: configuration, without its store.
        work: what is measured.
        fast: whether the case belongs to the fast tests, which have one of each kind.
        most_times: largest plan, in measured peaks of the larger size.
        spare: bytes of the interpreter's heap and of libraries' pools, which the base process has room for.
        stores: sizes of the two stores.
    """

    tree: Tree
    work: Work = "training"
    fast: bool = False
    most_times: float = 4.0
    spare: int = 24 << 20
    stores: tuple[Size, Size] = ("small", "large")


def own(registry: Mapping[str, Any] | Registry[Any]) -> list[str]:
    """Return the names that distkg registers, without those of other tests and of plug-ins."""
    return [name for name in registry if registry[name].__module__.startswith("distkg.")]


def make_store(folder: Path, size: Size) -> str:
    """Write a random graph, whose entities have classes and whose relations require some, and return its store."""
    entities, triples = SIZES[size]
    source, rng = folder / f"{size}-source", np.random.default_rng(0)
    source.mkdir()
    splits = {"train": triples, "valid": RANKED, "test": RANKED}
    for split, count in splits.items():
        rows = rng.integers(0, [entities, RELATIONS, entities], (count, 3))
        if split == "train":  # all entities are there
            rows[:entities, 0] = np.arange(entities)
        (source / f"{split}.tsv").write_text("".join(f"e{h}\tr{r}\te{t}\n" for h, r, t in rows))
    (source / "entity_types.tsv").write_text("".join(f"e{e}\tc{e % CLASSES}\n" for e in range(entities)))
    required = "".join(f"r{r}\tc{r}\tc{r + 1}\n" for r in range(RELATIONS))
    (source / "relation_domain_range.tsv").write_text(required)
    return prepare(str(source), str(folder / size)).store


def embedding(**sections: dict[str, Any]) -> Tree:
    """Return the configuration of an embedding model, with sections changed."""
    tree: Tree = {
        "model": {"name": "distmult", "dim": 128},
        "objective": {"name": "logistic"},
        "optimizer": {"name": "adagrad"},
        "negatives": {"count": 16},
        "train": {"batch_size": 4096, "epochs": 1},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return tree


def over_all_entities(name: str, **options: Any) -> Tree:
    tree = embedding(objective={"name": name, **options}, train={"batch_size": 256, "time_limit_seconds": 0.2})
    del tree["negatives"]
    return tree


def source(name: str, options: dict[str, Any] | None = None, **negatives: Any) -> Tree:
    return embedding(negatives={"source": name, "options": options or OPTIONS.get(name, {}), **negatives})


def pooled(name: str, options: dict[str, Any] | None = None, **pool: Any) -> Tree:
    return source(name, options, pool={"actors": 1, **pool})


def scorer(name: str) -> Tree:
    """Return the configuration of a scorer, with fewer queries where the transform of one takes much."""
    batch, dim = (256, 64) if name in ("conve", "rescal", "tucker") else (2048, 128)
    return embedding(model={"name": name, "dim": dim}, train={"batch_size": batch, "time_limit_seconds": 0.1})


def foundation(name: str, **negatives: Any) -> Tree:
    """Return the configuration of a small foundation model, with few queries a step: each reads the whole graph."""
    options = {key: value for key, value in SMALL.items() if key in MODELS[name].Options.model_fields}
    draws = {"negatives": {"count": 16} | negatives} if MODELS[name].ranks == "entities" else {}
    return {
        **draws,
        "model": {"name": name, "options": options},
        "objective": {"name": "logistic"},
        "optimizer": {"name": "adam"},
        "train": {"batch_size": 16, "epochs": 1, "steps_per_epoch": 2},
        "evaluate": {"batch_size": 16, "max_valid_triples": 8, "max_final_triples": 8},
    }


SMALL = {"width": 16, "layers": 2, "hidden": 16}
MIXTURE = {"parts": [{"source": "k_hop"}, {"source": "near_miss"}, {"source": "dans"}, {"source": "uniform"}]}
OPTIONS: dict[str, dict[str, Any]] = {"mixture": MIXTURE, "kmas": {"schedule": "constant"}, "dans": {"pivots": 8}}

OBJECTIVES = {name: embedding(objective={"name": name}) for name in SAMPLED}
OBJECTIVES |= {name: over_all_entities(name) for name in ALL_ENTITIES}
OBJECTIVES[QUERY_SAMPLING] = over_all_entities(QUERY_SAMPLING, square_positives=False)
OBJECTIVES[NON_NEGATIVE] = over_all_entities(NON_NEGATIVE)
GRAPH: tuple[Size, Size] = ("few", "many")
LARGE = ("nbfnet", "trix", "trix_relations")
"""Foundation models whose steps take much time and memory for each fact."""
HOSTED = [name for name in own(SOURCES) if depends_on_query(name, OPTIONS.get(name, {}))]

POOLED = list({(SOURCES[name].hosted_reply, SOURCES[name].requires): name for name in HOSTED}.values())
"""A source of each way in which workers and actors exchange vectors and replies."""


def _stores_of(source: str) -> tuple[Size, Size]:
    names = source_names(source, OPTIONS.get(source, {}))
    return ("small", "large") if all(SOURCES[name].requires == "nothing" for name in names) else GRAPH


CASES: dict[str, Case] = {
    **{f"objective {name}": Case(tree, fast=name in ("logistic", "one_vs_all")) for name, tree in OBJECTIVES.items()},
    **{f"optimizer {name}": Case(embedding(optimizer={"name": name})) for name in own(OPTIMIZERS)},
    "optimizer adam, table in bfloat16": Case(embedding(optimizer={"name": "adam"}, model={"dtype": "bfloat16"})),
    "objective one_vs_all, table in bfloat16": Case(
        over_all_entities("one_vs_all") | {"model": {"name": "distmult", "dim": 128, "dtype": "bfloat16"}}
    ),
    **{
        f"regularizer {name}": Case(embedding(regularizer={"name": name, "weight": 0.01})) for name in own(REGULARIZERS)
    },
    "regularizer dura, one_vs_all": Case(
        over_all_entities("one_vs_all") | {"regularizer": {"name": "dura", "weight": 0.01}}
    ),
    "regularizer dura, a matrix per relation": Case(
        scorer("rescal") | {"regularizer": {"name": "dura", "weight": 0.01}}
    ),
    **{f"scorer {name}": Case(scorer(name)) for name in own(SCORERS)},
    **{f"source {name}": Case(source(name), stores=_stores_of(name)) for name in own(SOURCES)},
    "relation prediction": Case(embedding(objective={"name": "logistic", "relation_prediction": 0.5})),
    "relation prediction, one query for each": Case(
        embedding(
            model={"name": "rotate"},
            objective={"name": "logistic", "relation_prediction": 0.5},
            train={"batch_size": 2048, "time_limit_seconds": 0.1},
        )
    ),
    "relation prediction, one_vs_all": Case(over_all_entities("one_vs_all", relation_prediction=0.5)),
    "negatives filtered": Case(embedding(negatives={"filter": True})),
    "negatives not shared": Case(embedding(negatives={"shared": False})),
    "source dans, vectors": Case(source("dans", {"negatives": "embedding", "pivots": 8}), stores=GRAPH),
    "entities nodepiece": Case(embedding(model={"entities": "nodepiece"})),
    "entities nodepiece, mlp": Case(embedding(model={"entities": "nodepiece", "nodepiece": {"encoder": "mlp"}})),
    "entities nodepiece, one_vs_all": Case(
        over_all_entities("one_vs_all") | {"model": {"name": "distmult", "dim": 128, "entities": "nodepiece"}}
    ),
    "table on disk": Case(embedding(train={"batch_size": 1024, "table_storage": "disk"})),
    "average of weights": Case(embedding(train={"average": "ema", "epochs": 2})),
    "overlap": Case(embedding(train={"overlap": True})),
    **{f"pool {name}": Case(pooled(name), stores=GRAPH) for name in POOLED},
    "pool near_miss, sync": Case(pooled("near_miss", sync=True), stores=GRAPH),
    **{f"actor {name}": Case(pooled(name), "actor", stores=GRAPH) for name in HOSTED},
    "actor near_miss, sync": Case(pooled("near_miss", sync=True), "actor", stores=GRAPH),
    **{
        f"foundation {name}": Case(foundation(name), stores=("tiny", "fewer") if name in LARGE else GRAPH)
        for name in own(MODELS)
    },
    "foundation ultra, average of weights": Case(
        foundation("ultra") | {"train": {"batch_size": 16, "epochs": 2, "steps_per_epoch": 1, "average": "mean"}},
        stores=GRAPH,
    ),
    "foundation ultra, source k_hop": Case(foundation("ultra", source="k_hop"), stores=GRAPH),
    "foundation ultra, generated graphs": Case(
        foundation("ultra") | {"data": {"generated": {"share": 1.0, "entities": [3000, 4500], "relations": [4, 6]}}},
        stores=GRAPH,
    ),
    "foundation ultra, source dans": Case(
        foundation("ultra", source="dans", vectors="made for the case", options={"pivots": 8}), stores=GRAPH
    ),
    "answers embedding": Case(embedding(), "answers", fast=True, spare=40 << 20),  # Arrow's writer of Parquet files
    "answers foundation": Case(foundation("ultra"), "answers", stores=GRAPH),
    # Its plan is that of a training, which takes many times the memory of ranking.
    "answers relation_prediction": Case(
        foundation("trix_relations"), "answers", most_times=20.0, stores=("tiny", "fewer")
    ),
    "pool of graphs": Case(foundation("ultra", source="kmas", pool={"actors": 1}), stores=GRAPH),
    "actor of graphs": Case(foundation("ultra", source="kmas", pool={"actors": 1}), "actor", stores=GRAPH),
}
