"""Training a model that ranks relations: what it asks, its loss, runs, and rules that it learns for other graphs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store
from distkg.foundation.batches import both_ways
from distkg.foundation.model_files import load_model
from distkg.negatives import TrainingProgress
from distkg.relation_prediction.learner import RelationLearner, as_triples
from distkg.relation_prediction.ranking import evaluate_relations
from distkg.sharding.ranks import Ranks
from distkg.training.family import family_of
from distkg.training.run import train_on_rank
from distkg.training.schedule import Schedule
from distkg.training.services import LOCAL_SERVICES


def config(store: str, **sections: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"graphs": [store]},
        "model": {"name": "trix_relations", "options": {"width": 8, "rounds": 2, "layers": 1}},
        "objective": {"name": "sampled_softmax"},
        "optimizer": {"name": "adam", "learning_rate": 0.005},
        "train": {"batch_size": 8, "epochs": 2, "steps_per_epoch": 4},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return RunConfig.model_validate(tree)


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("graphs") / "small")
    generate(folder, entities=40, relations=4, triples=120, seed=1)
    return folder


def test_queries_from_either_end_are_the_facts_they_ask_about() -> None:
    triples = torch.tensor([[0, 1, 2], [3, 0, 4], [5, 2, 5], [1, 2, 0]])
    assert torch.equal(as_triples(both_ways(triples, 3, 2), 3), triples)


def learner(settings: RunConfig) -> RelationLearner:
    schedule = Schedule(settings.optimizer, 2)
    found = family_of(settings).learner(settings, Ranks.single(), schedule, LOCAL_SERVICES)
    assert isinstance(found, RelationLearner)
    return found


def test_the_loss_is_the_cross_entropy_among_relations_that_are_not_known(store: str) -> None:
    made = learner(config(store))
    loop: Any = made.loop
    asked, graph = loop._batches.batch(0, 0), made.graphs[0].facts
    facts, triples = {tuple(fact) for fact in graph.triples.tolist()}, as_triples(asked.queries, 4)
    with torch.no_grad():
        scores = made.model.relation_scores(graph, triples[:, 0], triples[:, 2], asked.weight(CPU))
        total = 0.0
        for row, (h, r, t) in zip(scores.tolist(), triples.tolist(), strict=True):
            competing = [row[other] for other in range(4) if other == r or (h, other, t) not in facts]
            total += math.log(sum(map(math.exp, competing))) - row[r]
        assert float(loop.loss(asked, TrainingProgress())) == pytest.approx(total / len(triples), rel=1e-4)


def test_a_resumed_run_equals_an_undisturbed_one_and_reports_ranks_of_relations(store: str, tmp_path: Path) -> None:
    whole = train_on_rank(config(store), tmp_path / "whole", Ranks.single())
    train_on_rank(config(store, train={"epochs": 1}), tmp_path / "parts", Ranks.single())
    train_on_rank(config(store), tmp_path / "parts", Ranks.single(), resume=True)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").open()] for run in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    opened = Store.open(store)
    found = evaluate_relations(load_model(tmp_path / "whole"), opened)["metrics"]
    assert whole["metrics"]["test"] == pytest.approx(found)
    assert found["queries"] == len(opened.triples("test"))


def rules(folder: Path, names: str, seed: int) -> str:
    """Three relations at random, each a permutation of 16 entities, and the three that follow one by the next."""
    generator = np.random.default_rng(seed)
    steps = [generator.permutation(16) for _ in range(3)]
    facts = [(x, i, y) for i, step in enumerate(steps) for x, y in enumerate(step)]
    follow = [(x, 3 + i, steps[(i + 1) % 3][y]) for i, step in enumerate(steps) for x, y in enumerate(step)]
    follow = [follow[place] for place in generator.permutation(48)]
    files = folder / "files"
    files.mkdir(parents=True)
    for split, part in (("train", facts + follow[16:]), ("test", follow[:16])):
        text = "".join(f"{names}{h}\t{names}{(seed * 7 + r) % 6}\t{names}{t}\n" for h, r, t in part)
        (files / f"{split}.tsv").write_text(text)
    prepare(str(files), str(folder / "store"))
    return str(folder / "store")


@pytest.mark.slow
def test_it_learns_which_relation_follows_from_others_in_any_graph(tmp_path: Path) -> None:
    learned, other = (rules(tmp_path / names, names, seed) for names, seed in (("a", 1), ("b", 2)))
    settings = config(
        learned,
        model={"options": {"width": 16, "rounds": 2, "layers": 1}},
        train={"batch_size": 16, "epochs": 2, "steps_per_epoch": 75},
    )
    untrained = evaluate_relations(learner(settings).model, Store.open(other))["metrics"]
    result = train_on_rank(settings, tmp_path / "run", Ranks.single())
    assert result["metrics"]["test"]["hits@1"] > 0.75
    # Other entities and other names of relations; by chance 1 in 6 is right.
    elsewhere = evaluate_relations(load_model(tmp_path / "run"), Store.open(other))["metrics"]
    assert untrained["hits@1"] < 0.5
    assert elsewhere["hits@1"] > 0.75
