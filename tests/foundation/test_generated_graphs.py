"""Training on generated graphs: what a step asks, which graph it has, what is refused, planned and learned."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import run_ranks
from two_stores import two_stores

from distkg.config import ConfigError, GeneratedConfig, RunConfig
from distkg.data.rules.growing import GraphSizes
from distkg.data.rules.rule_graph import rule_graph
from distkg.data.rules.rule_store import generate_rules
from distkg.foundation.batches import FoundationBatch, FoundationBatches, negatives_for
from distkg.foundation.graphs.generated_graphs import GeneratedGraph, GeneratedGraphs, largest_graph, sizes_at
from distkg.foundation.graphs.training_graphs import LearnedGraph, make_indexes
from distkg.foundation.initial_model import check_foundation, initial_model
from distkg.foundation.learner import FoundationLearner
from distkg.foundation.plan import GENERATED, HELD_GENERATED, plan_foundation
from distkg.negatives import SOURCES, TrainingProgress
from distkg.relation_prediction.learner import RelationLearner, as_triples
from distkg.sharding.ranks import Ranks
from distkg.sharding.zero_copy import packed
from distkg.training.run import train_on_rank
from distkg.training.schedule import Schedule
from tests.test_cli import run_cli

SIZES = {"entities": [20, 60], "relations": [3, 8]}
SMALL = {"width": 8, "layers": 2, "hidden": 8}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return two_stores(tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def with_classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store whose entities have classes."""
    return generate_rules(str(tmp_path_factory.mktemp("graphs") / "rules"), seed=1)[0].store


def config(stores: list[str], share: float = 1.0, **sections: dict[str, Any]) -> RunConfig:
    generated = {**SIZES, "share": share} | sections.pop("generated", {})
    tree: dict[str, Any] = {
        "data": {"graphs": stores, "generated": generated},
        "model": {"name": "ultra", "options": SMALL},
        "objective": {"name": "self_adversarial", "margin": 0.0},
        "negatives": {"count": 6},
        "optimizer": {"name": "adam", "learning_rate": 0.005},
        "train": {"batch_size": 8, "epochs": 2, "steps_per_epoch": 5},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return RunConfig.model_validate(tree)


def batches(settings: RunConfig, ranks: Ranks | None = None) -> FoundationBatches:
    graphs = [LearnedGraph.open(store, settings) for store in settings.data.graphs]
    return FoundationBatches(graphs, settings, ranks or Ranks.single())


def facts_of(asked: FoundationBatch) -> bytes:
    return bytes(asked.graph.triples.numpy().tobytes())


@pytest.mark.parametrize("source", [name for name in SOURCES if SOURCES[name].requires in ("nothing", "relations")])
def test_a_step_asks_what_is_held_out_and_calls_nothing_known_wrong(with_classes: str, source: str) -> None:
    options = {"kmas": {"schedule": "constant"}, "mixture": {"parts": [{"source": "typed"}, {"source": "degree"}]}}
    settings = config([with_classes], negatives={"source": source, "options": options.get(source, {})})
    check_foundation(settings)
    made = batches(settings)
    for step in range(6):
        asked = made.batch(0, step)
        assert isinstance(asked.learned, GeneratedGraph)
        graph, queries, relations = asked.learned.made, asked.queries, asked.graph.relations
        held_out = set(map(tuple, graph.held_out.tolist()))
        every = held_out | set(map(tuple, graph.train.tolist()))
        assert set(map(tuple, as_triples(queries, relations).tolist())) <= held_out
        assert bool(asked.weight(torch.device("cpu")).all()), "nothing of it is shown"
        states = torch.randn(len(queries), 2 * relations, 4)
        negatives = negatives_for(asked, states, 20, TrainingProgress())
        assert negatives.mask is not None
        for row, (anchor, relation) in enumerate(zip(queries.anchor.tolist(), queries.relation.tolist(), strict=True)):
            for wrong in negatives.entities[row][~negatives.mask[row]].tolist():
                head, tail = (anchor, wrong) if relation < relations else (wrong, anchor)
                assert (head, relation % relations, tail) not in every


def test_a_graph_is_a_function_of_seed_block_and_rank(stores: list[str]) -> None:
    settings = config(stores, generated={"steps_per_graph": 3}, train={"epochs": 4})
    made = batches(settings)
    forwards = [facts_of(made.batch(step // 5, step % 5)) for step in range(12)]
    assert [forwards.index(graph) // 3 for graph in forwards] == [step // 3 for step in range(12)]
    again = batches(settings)
    assert [facts_of(again.batch(step // 5, step % 5)) for step in reversed(range(12))] == forwards[::-1]
    other_rank = batches(settings, Ranks(1, 2))
    other_seed = batches(config(stores, generated={"steps_per_graph": 3}, train={"epochs": 4, "seed": 1}))
    assert facts_of(other_rank.batch(0, 0)) not in forwards
    assert facts_of(other_seed.batch(0, 0)) not in forwards


def test_the_share_of_generated_graphs_is_that_of_the_configuration(stores: list[str]) -> None:
    made = batches(config(stores, 0.3))
    drawn = [isinstance(made.batch(0, step).learned, GeneratedGraph) for step in range(300)]
    assert sum(drawn) / 300 == pytest.approx(0.3, abs=0.07)


def test_the_curriculum_raises_the_largest_sizes() -> None:
    settings = GeneratedConfig(share=1.0, entities=[50, 800], relations=[4, 16], curriculum=0.5)
    ends = [(sizes_at(settings, at).entities, sizes_at(settings, at).relations) for at in (0.0, 0.25, 0.5, 1.0)]
    assert ends == [((50, 50), (4, 4)), ((50, 200), (4, 8)), ((50, 800), (4, 16)), ((50, 800), (4, 16))]
    at_once = GeneratedConfig(share=1.0, entities=[50, 800], relations=[4, 16])
    assert sizes_at(at_once, 0.0) == GraphSizes((50, 800), (4, 16), (2.0, 8.0))


def test_steps_follow_the_curriculum(stores: list[str]) -> None:
    settings = config(stores, generated={"entities": [12, 3000], "curriculum": 1.0}, train={"epochs": 10})
    graphs = GeneratedGraphs(settings, 0)
    first = [graphs.of_step(step, 1000).made.entities for step in range(20)]
    last = [graphs.of_step(980 + step, 1000).made.entities for step in range(20)]
    assert max(first) <= 14
    assert max(last) > 300


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]


def test_a_resumed_run_equals_an_undisturbed_one(stores: list[str], tmp_path: Path) -> None:
    for name, epochs in (("whole", 3), ("parts", 1), ("parts", 3)):
        settings = config(stores, 0.5, train={"epochs": epochs})
        train_on_rank(settings, tmp_path / name, Ranks.single(), resume=epochs == 3 and name == "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def first_step(ranks: Ranks, settings: RunConfig) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of the first step."""
    learner: Any = FoundationLearner(settings, ranks, Schedule(settings.optimizer, 2))
    learner.loop._dense.step = lambda factor: None
    learner.loop.run(0, 0, 1, lambda step: True)
    return learner.loop.pop_mean_loss(), [each.grad.clone() for each in learner.model.parameters()]


def test_the_gradient_of_a_step_is_the_mean_over_the_generated_graphs_of_all_workers(stores: list[str]) -> None:
    settings = config(stores)
    learner: Any = FoundationLearner(settings, Ranks.single(), Schedule(settings.optimizer, 2))
    learner.model.train()
    parts = [FoundationBatches(learner.graphs, settings, Ranks(rank, 2)).batch(0, 0) for rank in range(2)]
    assert parts[0].graph.triples.shape != parts[1].graph.triples.shape
    mean = sum(learner.loop.loss(part, learner.loop._moment(0, 0)) for part in parts) / 2
    mean.backward()
    for loss, gradients in run_ranks(2, first_step, settings):
        assert loss == pytest.approx(mean.item(), rel=1e-5)
        for gradient, parameter in zip(gradients, learner.model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_what_belongs_to_a_store_is_refused(stores: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.generated\.share: nbfnet has vectors for the relations of one"):
        check_foundation(config(stores[:1], model={"name": "nbfnet", "options": {}}))
    dans = {"source": "dans", "vectors": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"data\.generated\.share: dans reads vectors of the entities of one store"):
        check_foundation(config(stores[:1], negatives=dans))


def test_neighbourhoods_of_generated_graphs_are_sampled_too(stores: list[str]) -> None:
    settings = config(stores)
    settings.data.fanouts = [1000] * 8
    whole, part = (
        FoundationLearner(each, Ranks.single(), Schedule(each.optimizer, 2)) for each in (config(stores), settings)
    )
    found = [
        float(learner.loop.loss(batches(each).batch(0, 0), TrainingProgress()).detach())
        for learner, each in ((whole, config(stores)), (part, settings))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_relations_between_two_entities_are_learned_from_generated_graphs(stores: list[str]) -> None:
    options = {"width": 8, "rounds": 1, "layers": 1}
    settings = config(stores, model={"name": "trix_relations", "options": options})
    learner = RelationLearner(settings, Ranks.single(), Schedule(settings.optimizer, 2))
    asked = batches(settings).batch(0, 0)
    learner.loop.loss(asked, TrainingProgress()).backward()
    assert any(bool((weight.grad != 0).any()) for weight in learner.model.parameters() if weight.grad is not None)
    assert isinstance(asked.learned, GeneratedGraph)
    every = np.concatenate([asked.learned.made.train, asked.learned.made.held_out])
    mask = asked.learned.known_relations.mask(every[:, [0, 2]])
    assert mask[np.arange(len(every)), every[:, 1]].all()
    assert mask.sum(1).max() < asked.graph.relations


def test_a_plan_counts_the_largest_graphs(stores: list[str]) -> None:
    generated = {"entities": [20, 2000], "relations": [3, 20], "steps_per_graph": 2}
    none, half = (
        plan_foundation(config(stores, 0.0), None),
        plan_foundation(config(stores, 0.5, generated=generated), None),
    )
    assert GENERATED not in none.memory
    assert [(graph.address, graph.generated_share) for graph in half.graphs[2:]] == [("generated, at most", 0.5)]
    assert half.memory["states of a batch"] > 10 * none.memory["states of a batch"]
    settings = config(stores, 0.5, generated=generated)
    model, sizes = initial_model(settings, []), GraphSizes((2000, 2000), (20, 20), (8.0, 8.0))
    held = []
    for seed in range(12):
        graph = GeneratedGraph.of(rule_graph(seed, sizes), settings)
        make_indexes(graph, model)
        held.append(packed(graph).nbytes)
    # Two at once.
    assert 2 * max(held) <= half.memory[GENERATED] == HELD_GENERATED * half.graphs[2].bytes
    assert half.graphs[2].facts == len(largest_graph(settings).made.train)


def test_a_plan_has_the_seconds_of_both_kinds_of_steps(stores: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes by a second when it is looked at, so that a step, or to make a graph, takes one."""
    clock = itertools.count(1.0)
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    generated = {"entities": [20, 160], "steps_per_graph": 4}
    seconds = {
        share: plan_foundation(config(stores, share, generated=generated), None, slowdown=2.0).seconds_per_epoch
        for share in (0.0, 0.25, 1.0)
    }
    # Five steps, by two; entities on a logarithmic scale have the mean 140 / ln 8.
    assert seconds[1.0] == pytest.approx(2 * 5 * (1 + 1 / 4) * 140 / math.log(8) / 160)
    assert seconds[0.0] is not None
    assert seconds[0.25] == pytest.approx(0.75 * seconds[0.0] + 0.25 * seconds[1.0])


def test_what_is_learned_from_generated_graphs_alone_ranks_the_facts_of_other_graphs(
    stores: list[str], tmp_path: Path
) -> None:
    settings = config(stores, train={"epochs": 2, "steps_per_epoch": 60}, evaluate={"every": 2})
    untrained = FoundationLearner(settings, Ranks.single(), Schedule(settings.optimizer, 2)).evaluate()
    result = train_on_rank(settings, tmp_path / "run", Ranks.single())
    assert result["metrics"]["test"]["mrr"] > 1.3 * untrained["test"]["metrics"]["mrr"]


def test_on_the_command_line(stores: list[str], tmp_path: Path) -> None:
    changes = [
        f"data.graphs=[{', '.join(stores)}]", "data.generated.share=0.3", "data.generated.entities=[20, 50]",
        "data.generated.curriculum=0.5", "model.options={width: 8, layers: 2, hidden: 8}", "train.workers=1",
        "train.epochs=1", "train.steps_per_epoch=4", "negatives.count=8",
    ]  # fmt: skip
    options = [part for change in changes for part in ("--set", change)]
    result = run_cli("train", "preset:ultra", "--run", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    assert len(losses(tmp_path / "run")) == 1
