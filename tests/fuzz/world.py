"""One valid input of each kind, which fuzz tests mutate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from distkg.config import load_config
from distkg.data.generate import generate
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store

SOURCE = {
    "train.tsv": "".join(f"e{i % 20}\tr{i % 3}\te{(i * 7 + 1) % 20}\n" for i in range(60)),
    "valid.tsv": "e1\tr1\te3\ne2\tr2\te5\n",
    "test.tsv": "e3\tr0\te4\n",
    "entity_types.tsv": "".join(f"e{i}\tkind{i % 2}\n" for i in range(20)),
    "relation_domain_range.tsv": "r0\tkind0\tkind1\nr1\t-\tkind1\n",
    "metadata/entity_classes.json": json.dumps({"e1": ["kind0"], "e2": ["kind1", "kind0"]}),
    "metadata/relation_domain_range.json": json.dumps({"r2": {"domain": "kind0", "range": "kind1"}}),
}
SAID = {
    "texts.tsv": "".join(f"e{i}\tthe thing number {i}\n" for i in range(20)),
    "numeric.tsv": "".join(f"e{i}\theight\t{i / 3}\n" for i in range(20)),
    "tokens.json": json.dumps({f"e{i}": [i % 4, 1] for i in range(20)}),
    "ids.tsv": "20\n" + "".join(f"e{i}\te{i}\n" for i in range(20)),
    "descriptions.tsv": "r0\tis near\tis near to\nr1\tlikes\tis liked by\nr2\tholds\tis held by\n",
    "new.tsv": "late\tr1\te3\ne2\tr2\tlater\nlate\tnovel\tlater\n",
    "queries.tsv": "e1\tr1\tforward\ne2\tr2\tinverse\n",
}


class World:
    """Folder with one valid input of each kind; nothing in it is written to by a case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source, self.said = folder / "source", folder / "said"
        self.store, self.run, self.model = folder / "store", folder / "run", folder / "model"
        self.search, self.checkpoint = folder / "search", folder / "published.pth"
        self.head, self.relation, self.tail = "e1", "r1", "e3"
        self.config, self.space = folder / "run.yaml", folder / "space.yaml"

    def copy(self, name: str, to: Path) -> Path:
        """A fresh copy of a part, in a folder of its own."""
        shutil.rmtree(to, ignore_errors=True)
        original = self.folder / name
        if original.is_dir():
            shutil.copytree(original, to)
        else:
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(original, to)
        return to


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def _train(world: World) -> None:
    from distkg.sharding.ranks import Ranks
    from distkg.training.run import train_on_rank

    keys = ["model.name=distmult", "model.dim=8", "train.epochs=2", "train.batch_size=32", f"data.store={world.store}"]
    train_on_rank(load_config("preset:demo", keys), world.run, Ranks.single())
    (world.run / "failures.jsonl").write_text(
        json.dumps({"time": 0.0, "rank": 0, "error": "its process died", "restart": True}) + "\n"
    )


def _search(world: World) -> None:
    from distkg.search.search_folder import SearchFolder
    from distkg.search.space import read_space
    from distkg.search.trials import Trial

    world.space.write_text("model.dim: {choice: [8, 16]}\noptimizer.learning_rate: {log_uniform: [1e-3, 1e-1]}\n")
    folder = SearchFolder(world.search)
    world.search.mkdir()
    folder.start(load_config("preset:demo", [f"data.store={world.store}"]), read_space(str(world.space)))
    for number in (1, 2):
        parameters: dict[str, Any] = {"model.dim": 8, "optimizer.learning_rate": 0.01 * number}
        assert folder.begin(parameters) == number
        shutil.copy(world.run / "metrics.jsonl", folder.trial(number) / "metrics.jsonl")
        folder.append(Trial(number, parameters, "finished", 0.1 * number, 2.0, 3.0))


def _models(world: World) -> None:
    from distkg.foundation.model_files import make_model, save_model

    torch.manual_seed(0)
    save_model(make_model("ultra", {"width": 4, "layers": 2, "hidden": 4}), world.model)
    torch.save({"model": make_model("ultra", {}).state_dict()}, world.checkpoint)


def make_world(folder: Path) -> World:
    """Write everything into a folder."""
    made = World(folder)
    _write(made.source, SOURCE)
    _write(made.said, SAID)
    prepare(str(made.source), str(made.store))
    assert Store.open(str(made.store)).num_entities == 20
    generate(str(made.folder / "generated"), entities=40, relations=6, triples=400, seed=1)
    np.save(made.said / "codebook.npy", np.eye(4, dtype=np.float32))
    save_file({"vectors": np.eye(4, dtype=np.float32)}, made.said / "codebook.safetensors")
    torch.save(torch.eye(4), made.said / "codebook.pth")
    made.config.write_text(
        "# a run\nmodel: {name: distmult, dim: 16}\nobjective: {name: self_adversarial, margin: 2.0}\n"
        f"data:\n  store: {made.store}\noptimizer: {{name: adagrad, learning_rate: 1e-1}}\n"
        "train: {workers: 1, epochs: 4, batch_size: 64}\nevaluate:\n  every: 2\n"
        "negatives: {source: mixture, options: {parts: [{source: uniform, weight: 0.5}, {source: k_hop}]}}\n"
    )
    _train(made)
    _search(made)
    _models(made)
    return made
