"""TOFU with tokens of texts and numbers beside ULTRA, which reads the graph alone, in equal time.

Quality, not speed: both begin with the weights of ``--model`` (ULTRA's), learn for ``--seconds`` from the training
facts of ``--store`` in one process of one thread, and rank test triples; of a store of two graphs, those of the second,
whose entities they have not met. The tokens of half of the entities, and of all, are then hidden. Without tokens TOFU
reads prompts (without these too it is ULTRA), with all it reads texts, numbers and prompts. ``--folder`` keeps what is
done: the same command goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Figures, begin, finish, graph_settings, rows_wanted
from benchmarks.kept_runs import KeptRun, outcomes
from benchmarks.zero_shot import columns_of, named, rank_test
from distkg.config import load_config
from distkg.data.store.graph_store import Store
from distkg.foundation.graphs.entity_tokens import EntityTokens
from distkg.foundation.model_files import load_model
from distkg.foundation.models import FoundationModel, KnowledgeGraph

WIDTHS = {"text": 384, "numeric": 48}
HIDDEN = {"all tokens": 0.0, "half hidden": 0.5, "all hidden": 1.0}
"""Column → share of the entities whose tokens are hidden."""
BATCH_SIZE = 16
TRIPLES = 500  # of the test split


def without_tokens(graph: KnowledgeGraph, share: float) -> KnowledgeGraph:
    """The graph with the tokens of so many of its entities hidden, the same at every call."""
    hidden = torch.from_numpy(np.random.default_rng(0).random(graph.entities) < share)
    tokens = {
        name: EntityTokens(own.ids.masked_fill(hidden[:, None], -1), own.vectors) for name, own in graph.tokens.items()
    }
    return replace(graph, tokens=tokens if share < 1 else {})


def asked(model: FoundationModel, address: str, triples: int) -> dict[str, dict[str, float]]:
    """Figures of the test split by how many tokens are hidden; of a model that reads none, with none hidden."""
    store = Store.open_inference(address)
    graph = KnowledgeGraph.of_store(store)
    shares = HIDDEN if model.reads else {"all tokens": 0.0}
    return {
        column: columns_of(rank_test(model, store, triples, without_tokens(graph, share)))
        for column, share in shares.items()
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every row with every seed (``--repetitions`` of them)."""
    session = begin(__file__, str(__doc__), arguments, "store", "model", "seconds", "folder", "variants", repetitions=3)
    typed, address = session.options, session.store
    stores = Store.open_all(address)
    name, start = named(address), load_model(Path(typed.model))
    ask = partial(asked, address=address, triples=4 if session.quick else TRIPLES)
    shared = [
        f"data.graphs=[{stores[0].address}]",
        f"model.start={typed.model}",
        "train.workers=1",
        f"train.batch_size={BATCH_SIZE}",
        f"train.time_limit_seconds={typed.seconds}",
        "train.epochs=1000",
        "train.steps_per_epoch=100",
        "evaluate.max_final_triples=250",
    ]
    variants = {
        "ULTRA": ["model.name=ultra", "model.options={}"],
        "TOFU, no tokens": ["model.options={modalities: {}, prompts: 5}"],
        **{f"TOFU, {kind}": [f"model.options={{modalities: {{{kind}: {width}}}}}"] for kind, width in WIDTHS.items()},
        "TOFU, text and numeric": [],
        "TOFU, all": ["model.options.prompts=5"],
    }
    rows = rows_wanted(session, variants)
    runs = {
        (row, seed): KeptRun(
            load_config("preset:tofu", [*shared, *variants[row], f"train.seed={seed}"]),
            Path(typed.folder) / f"{name}-{row.replace(' ', '_').replace(',', '')}-{seed}",
            ask,
        )
        for seed in session.repetitions
        for row in rows
    }
    figures = Figures()
    zero_shot = ask(start)["all tokens"]
    figures.add("ULTRA, not fine-tuned", {"MRR": zero_shot["MRR"], "Hits@10": zero_shot["Hits@10"]})
    for (row, _), found in zip(runs, outcomes(list(runs.values())), strict=True):
        whole = found["graphs"]["all tokens"]
        hidden = {f"MRR, {column}": figure["MRR"] for column, figure in found["graphs"].items() if column in HIDDEN}
        figures.add(row, {"MRR": whole["MRR"], "Hits@10": whole["Hits@10"], **hidden})
        figures.add(row, {key: found[key] for key in ("steps", "CPU ms/step", "peak MB")})
    settings = {
        "seconds": typed.seconds,
        "triples of the test split": ask.keywords["triples"],
        "configuration": next(iter(runs.values())).config.model_dump(),
        "variants": variants,
        "graphs": {
            named(store.address) if len(stores) == 1 else store.address: graph_settings(store) for store in stores
        },
    }
    return finish(session, settings, figures, part=name)


if __name__ == "__main__":
    main()
