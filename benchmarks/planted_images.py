"""TOFU with images that say who is near whom, held-out facts included, and with the same images on other entities.

Shows that the path from tokens to ranks learns. Entities are parted into groups of about eight by all facts of a graph
(METIS, or its plain counterpart); an entity's image, in MyGO's form (196 tokens of 8,192), shows the eight tokens of
its group three times in four, other tokens else. Groups of the two graphs of ``--store`` have tokens by lot, so only
likeness can be learned, not which token means what. Trained and asked as in ``multimodal``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.common import Figures, begin, finish, graph_settings
from benchmarks.kept_runs import KeptRun, outcomes
from benchmarks.multimodal import BATCH_SIZE, TRIPLES, asked
from benchmarks.zero_shot import named
from distkg.config import load_config
from distkg.data.store.graph_store import Store
from distkg.data.tokens.make_tokens import make_tokens, token_list_source
from distkg.graph.partition import choose_partitioner

VOCABULARY, WIDTH, PATCHES, OF_GROUP = 8192, 32, 196, 8
SHOWN = 0.75  # of an image's tokens are its group's


def plant(store: Store, folder: Path, shuffled: bool, seed: int) -> None:
    """Write MyGO's two files for the store into the folder, and read them from there as tokens ``image``."""
    rng = np.random.default_rng(seed)
    edges = np.concatenate([store.triples(split)[:, [0, 2]] for split in ("train", "valid", "test")])
    groups = choose_partitioner()[1](edges, store.num_entities, -(-store.num_entities // OF_GROUP), 0)
    palettes = rng.integers(0, VOCABULARY, (groups.max() + 1, OF_GROUP))
    tokens = palettes[groups][:, rng.integers(0, OF_GROUP, PATCHES)]
    other = rng.random(tokens.shape) > SHOWN
    tokens[other] = rng.integers(0, VOCABULARY, int(other.sum()))
    if shuffled:
        tokens = tokens[rng.permutation(len(tokens))]
    folder.mkdir(parents=True, exist_ok=True)
    labels = store.entity_labels().to_pylist()
    (folder / "visual.json").write_text(json.dumps(dict(zip(labels, tokens.tolist(), strict=True))))
    codebook = np.random.default_rng(0).standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    np.save(folder / "visual.npy", codebook)
    source = token_list_source(store, str(folder / "visual.json"), folder / "visual.npy")
    make_tokens(store, "image", source, most=OF_GROUP)


def planted(address: str, folder: Path, shuffled: bool) -> str:
    """A copy of a folder of two stores whose entities have images."""
    copy = folder / f"{named(address)}-{'shuffled' if shuffled else 'planted'}"
    if not (copy / "visual").exists():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(address, copy)
        for seed, store in enumerate(Store.open_all(str(copy))):
            plant(store, copy / "visual", shuffled, seed)
    return str(copy)


def main(arguments: Sequence[str] | None = None) -> Path:
    """With images, and with shuffled ones, every seed (``--repetitions`` of them)."""
    session = begin(__file__, str(__doc__), arguments, "store", "model", "seconds", "folder", repetitions=3)
    typed, folder = session.options, Path(session.options.folder)
    triples = 4 if session.quick else TRIPLES
    stores = {row: planted(session.store, folder, row != "planted") for row in ("planted", "shuffled")}
    runs = {
        (row, seed): KeptRun(
            load_config(
                "preset:tofu",
                [
                    f"data.graphs=[{Store.open_all(address)[0].address}]",
                    f"model.start={typed.model}",
                    f"model.options={{modalities: {{image: {WIDTH}}}}}",
                    "train.workers=1",
                    f"train.batch_size={BATCH_SIZE}",
                    f"train.time_limit_seconds={typed.seconds}",
                    "train.epochs=1000",
                    "train.steps_per_epoch=200",
                    "evaluate.max_final_triples=250",
                    f"train.seed={seed}",
                ],
            ),
            folder / f"{named(session.store)}-{row}-{seed}",
            partial(asked, address=address, triples=triples),
        )
        for seed in session.repetitions
        for row, address in stores.items()
    }
    figures = Figures()
    for (row, _), found in zip(runs, outcomes(list(runs.values())), strict=True):
        whole = found["graphs"]["all tokens"]
        hidden = {f"MRR, {column}": figure["MRR"] for column, figure in found["graphs"].items()}
        figures.add(row, {"MRR": whole["MRR"], "Hits@10": whole["Hits@10"], **hidden, "steps": found["steps"]})
    settings = {
        "seconds": typed.seconds,
        "triples of the test split": triples,
        "configuration": next(iter(runs.values())).config.model_dump(),
        "graphs": {Path(store.address).name: graph_settings(store) for store in Store.open_all(stores["planted"])},
    }
    return finish(session, settings, figures, part=named(session.store))


if __name__ == "__main__":
    main()
