"""Training a foundation model: what a batch asks and hides, its loss, and runs that resume, share and learn."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import run_ranks
from two_stores import two_stores

from distkg.config import ConfigError, RunConfig
from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.foundation.batches import FoundationBatches, negatives_for
from distkg.foundation.graphs.training_graphs import LearnedGraph, graphs_of
from distkg.foundation.initial_model import check_foundation
from distkg.foundation.learner import FoundationLearner
from distkg.graph.examples import ExampleSampler, Surrounding
from distkg.negatives import Negatives, NegativeSource, Queries, TrainingProgress
from distkg.negatives.base import GeneratedNegatives, SourceOptions
from distkg.objectives import SAMPLED
from distkg.planning.peak import peak_bytes
from distkg.reporting.report import write_report
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from distkg.training.schedule import Schedule
from tests.with_dgl import HAS_DGL

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return two_stores(tmp_path_factory.mktemp("graphs"))


def config(stores: list[str], **sections: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"graphs": stores},
        "model": {"name": "ultra", "options": {"width": 8, "layers": 2, "hidden": 8}},
        "objective": {"name": "self_adversarial", "margin": 0.0},
        "negatives": {"count": 6},
        "optimizer": {"name": "adam", "learning_rate": 0.005},
        "train": {"batch_size": 8, "epochs": 2, "steps_per_epoch": 5},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return RunConfig.model_validate(tree)


def batches(stores: list[str], settings: RunConfig) -> FoundationBatches:
    return FoundationBatches([LearnedGraph.open(store, settings) for store in stores], settings, Ranks.single())


@pytest.mark.parametrize("source", ["uniform", "kmas"])
def test_a_batch_hides_what_it_asks_and_never_calls_a_fact_wrong(stores: list[str], source: str) -> None:
    options = {"schedule": "constant", "most": 1.0} if source == "kmas" else {}
    made = batches(stores, config(stores, negatives={"source": source, "options": options}))
    for step in range(12):
        asked = made.batch(0, step)
        states = torch.randn(len(asked.queries), 2 * asked.graph.relations, 4)
        negatives = negatives_for(asked, states, 20, TrainingProgress())
        assert negatives.mask is not None
        graph, queries = asked.graph, asked.queries
        facts = {(h, r, t) for h, r, t in graph.triples.tolist()}
        facts |= {(t, r + graph.relations, h) for h, r, t in facts}
        kinds = graph.facts
        left = {
            (int(u), int(k), int(v))
            for u, k, v, weight in zip(kinds.dst, kinds.relation, kinds.src, asked.weight(CPU), strict=True)
            if weight
        }
        assert (queries.relation < graph.relations).tolist() == [True] * 4 + [False] * 4
        for row, (anchor, relation, answer) in enumerate(
            zip(queries.anchor.tolist(), queries.relation.tolist(), queries.answer.tolist(), strict=True)
        ):
            assert (anchor, relation, answer) in facts
            assert (anchor, relation, answer) not in left
            assert (answer, (relation + graph.relations) % (2 * graph.relations), anchor) not in left
            wrong = negatives.entities[row][~negatives.mask[row]].tolist()
            assert not any((anchor, relation, entity) in facts for entity in wrong)
        assert len(left) >= len(facts) - 2 * len(queries)


@pytest.mark.parametrize("source", ["uniform", "kmas"])
def test_negatives_take_no_memory_of_queries_times_entities(tmp_path: Path, source: str) -> None:
    generate(str(tmp_path / "wide"), entities=6000, relations=3, triples=40_000, seed=4)
    settings = config([str(tmp_path / "wide")], negatives={"source": source, "options": {}}, train={"batch_size": 32})
    asked = batches([str(tmp_path / "wide")], settings).batch(0, 0)
    states = torch.randn(32, 2 * asked.graph.relations, 4)

    def draw() -> None:
        negatives_for(asked, states, 16, TrainingProgress(progress=0.55))

    draw()  # makes what is made once
    tensors = peak_bytes(draw)
    tracemalloc.start()
    try:
        draw()
        arrays = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 32 × 16 negatives of 8 bytes, a few times; a mask of all entities would take 32 × 6,000.
    assert tensors + arrays < 32 * 6000 / 4


def test_graphs_are_drawn_by_their_facts(stores: list[str]) -> None:
    made = batches(stores, config(stores))
    large = sum(made.batch(0, step).graph.entities == 60 for step in range(400))
    facts = [LearnedGraph.open(store, config(stores)).store.manifest.triples["train"] for store in stores]
    assert large / 400 == pytest.approx(facts[1] / sum(facts), abs=0.06)


def test_the_loss_is_ultras_twice(stores: list[str]) -> None:
    settings = config(stores)
    learner = FoundationLearner(settings, Ranks.single(), Schedule(settings.optimizer, 2))
    made = batches(stores, settings)
    asked = made.batch(0, 0)
    negatives = negatives_for(made.batch(0, 0), torch.empty(0), 6, TrainingProgress())  # the same as in the loss
    assert negatives.mask is not None
    with torch.no_grad():
        scores = learner.model(asked.graph, asked.queries.anchor, asked.queries.relation, asked.weight(CPU))
        total = 0.0
        for row in range(8):
            positive = float(scores[row, asked.queries.answer[row]])
            wrong = scores[row, negatives.entities[row][~negatives.mask[row]]].tolist()
            shares = torch.softmax(torch.tensor(wrong), 0).tolist()
            positive_loss = -math.log(1 / (1 + math.exp(-positive)))
            negative_loss = sum(
                p * -math.log(1 - 1 / (1 + math.exp(-score))) for p, score in zip(shares, wrong, strict=True)
            )
            total += (positive_loss + negative_loss) / 8
        assert float(learner.loop.loss(asked, TrainingProgress())) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("model", ["ultra", "trix"])
def test_a_part_with_room_for_all_facts_gives_the_loss_of_the_whole(stores: list[str], model: str) -> None:
    sizes = {"model": {"name": model, "options": {"width": 8, "layers": 2, "hidden": 8}}}
    for sampler in ("compiled", "dgl") if HAS_DGL else ("compiled",):
        found = []
        for fanouts in ([], [1000] * 8):
            settings = config(stores, **sizes, data={"fanouts": fanouts, "sampler": sampler})
            learner = FoundationLearner(settings, Ranks.single(), Schedule(settings.optimizer, 2))
            loss = learner.loop.loss(batches(stores, settings).batch(0, 0), TrainingProgress())
            loss.backward()
            gradients = {name: weight.grad for name, weight in learner.model.named_parameters()}
            found.append((loss.detach(), {name: grad for name, grad in gradients.items() if grad is not None}))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fanouts", [[], [3, 3]])
def test_prompts_never_show_what_a_step_asks(
    stores: list[str], fanouts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: set[tuple[int, int, int]] = set()
    sample = ExampleSampler.surroundings

    def watched(self: ExampleSampler, *asked: Any) -> list[list[Surrounding]]:
        found = sample(self, *asked)
        for places in [around.facts for own in found for around in own]:
            sides = (side[places].tolist() for side in (self.head, self.relation, self.tail))
            shown.update(zip(*sides, strict=True))
        return found

    monkeypatch.setattr(ExampleSampler, "surroundings", watched)
    options = {"width": 8, "layers": 2, "hidden": 8, "prompts": 5, "prompt_fanout": 100}
    settings = config(stores, model={"name": "tofu", "options": options}, data={"fanouts": fanouts})
    learner = FoundationLearner(settings, Ranks.single(), Schedule(settings.optimizer, 2))
    for step in range(3):
        shown.clear()
        asked = batches(stores, settings).batch(0, step)
        learner.loop.loss(asked, TrainingProgress()).backward()
        facts, queries, half = set(map(tuple, asked.graph.triples.tolist())), asked.queries, len(asked.queries) // 2
        head = torch.cat([queries.anchor[:half], queries.answer[half:]])
        tail = torch.cat([queries.answer[:half], queries.anchor[half:]])
        hidden = set(zip(head.tolist(), (queries.relation % 3).tolist(), tail.tolist(), strict=True))
        assert hidden <= facts
        assert len(facts - hidden - shown) < len(facts) / 10, "nearly all others are"
        assert not hidden & shown


def test_few_facts_are_followed_where_few_are_wanted(stores: list[str]) -> None:
    settings = config(stores, data={"fanouts": [2]})
    learned = LearnedGraph.open(stores[1], settings)
    assert learned.surroundings is not None
    part = learned.surroundings.of(torch.tensor([3]), seed=0)
    assert len(part.facts) == 4  # two facts, in both directions


def test_parts_of_graphs_are_not_for_models_with_vectors_of_entities(stores: list[str]) -> None:
    settings = config(stores[:1], model={"name": "rgcn", "options": {"width": 8}}, data={"fanouts": [5]})
    with pytest.raises(ConfigError, match=r"data.fanouts: rgcn has a vector for each entity"):
        check_foundation(settings)


class MakesTwo(NegativeSource):
    """Draws entity 0, and makes entities 1 and 2, the second for every other query only."""

    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        size = len(queries)
        mask = torch.zeros(size, 2, dtype=torch.bool)
        mask[::2, 1] = True
        made = torch.tensor([1, 2]).repeat(size, 1)
        extra = GeneratedNegatives(made, None, mask, torch.zeros(size, dtype=torch.int64), torch.ones(size), weight=0.5)
        return Negatives(torch.zeros(size, 1, dtype=torch.int64), None, extra)

    def pool_sizes(self, queries: Queries) -> torch.Tensor:
        return torch.ones(len(queries), dtype=torch.int64)


def test_negatives_that_are_made_add_a_weighted_loss_of_their_own(stores: list[str]) -> None:
    settings = config(stores, objective={"name": "logistic"})
    learner = FoundationLearner(settings, Ranks.single(), Schedule(settings.optimizer, 2))
    asked = batches(stores, settings).batch(0, 0)
    source = MakesTwo(asked.learned.source.graph, SourceOptions())
    asked = replace(asked, learned=replace(asked.learned, source=source))
    first, second = (replace(asked, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    drawn = negatives_for(first, torch.empty(0), 1, TrainingProgress())
    assert drawn.mask is not None
    with torch.no_grad():
        scores = learner.model(asked.graph, asked.queries.anchor, asked.queries.relation, asked.weight(CPU))
        found = learner.loop.loss(second, TrainingProgress())
    objective = SAMPLED["logistic"](settings.objective)
    total = 0.0
    for row in range(8):
        positive = scores[row, asked.queries.answer[row]][None]
        made = scores[row, [1] if row % 2 == 0 else [1, 2]][None]
        total += 0.5 * float(objective(positive, made))
        total += float(objective(positive, scores[row, drawn.entities[row]][None]))
    assert not bool(drawn.mask.any())
    assert float(found) == pytest.approx(total / 8, rel=1e-4)


def test_dans_makes_negatives_with_the_vectors_of_another_run(stores: list[str], tmp_path: Path) -> None:
    small = {"model": {"name": "distmult", "dim": 8}, "negatives": {"count": 4}, "train": {"epochs": 1}}
    train(Ranks.single(), RunConfig.model_validate({"data": {"store": stores[0]}, **small}), str(tmp_path / "e"), False)
    options = {"source": "dans", "count": 4, "vectors": str(tmp_path / "e")}
    settings = config(stores[:1], negatives=options, train={"epochs": 1, "steps_per_epoch": 3})
    check_foundation(settings)
    learner = FoundationLearner(settings, Ranks.single(), Schedule(settings.optimizer, 1))
    made_of = FoundationBatches(learner.graphs, settings, Ranks.single())
    made = negatives_for(made_of.batch(0, 0), torch.empty(0), 4, TrainingProgress()).made
    assert made is not None
    assert made.entities is not None
    assert made.entities.shape == (8, 2)
    loss = learner.loop.loss(made_of.batch(0, 0), TrainingProgress())
    assert math.isfinite(loss.item())
    with pytest.raises(ConfigError, match=r"Set negatives\.options\.negatives: snap"):
        check_foundation(config(stores[:1], negatives={**options, "options": {"negatives": "embedding"}}))
    with pytest.raises(ConfigError, match=r"belong to one store"):
        check_foundation(config(stores, negatives=options))
    with pytest.raises(ConfigError, match=r"reads entity vectors.*negatives.vectors"):
        check_foundation(config(stores, negatives={"source": "dans"}))
    with pytest.raises(ConfigError, match=r"negatives\.vectors: uniform reads no entity vectors.*dans.*Leave"):
        check_foundation(config(stores[:1], negatives={"vectors": options["vectors"]}))


def train(ranks: Ranks, settings: RunConfig, run: str, resume: bool) -> dict[str, Any]:
    return train_on_rank(settings, Path(run), ranks, resume=resume)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]


def test_a_resumed_run_equals_an_undisturbed_one(stores: list[str], tmp_path: Path) -> None:
    train(Ranks.single(), config(stores, train={"epochs": 3}), str(tmp_path / "whole"), False)
    train(Ranks.single(), config(stores, train={"epochs": 1}), str(tmp_path / "parts"), False)
    train(Ranks.single(), config(stores, train={"epochs": 3}), str(tmp_path / "parts"), True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_it_learns_and_reports_each_graph(stores: list[str], tmp_path: Path) -> None:
    settings = config(stores, train={"epochs": 4, "steps_per_epoch": 40}, evaluate={"every": 4})
    result = train(Ranks.single(), settings, str(tmp_path), False)
    found = losses(tmp_path)
    assert found[-1] < 0.9 * found[0]
    untrained = FoundationLearner(settings, Ranks.single(), Schedule(settings.optimizer, 2)).evaluate()
    assert result["metrics"]["test"]["mrr"] > 1.3 * untrained["test"]["metrics"]["mrr"]
    by_graph = result["by_graph"]
    assert [Path(each["graph"]).name for each in by_graph] == ["small", "large"]
    assert result["metrics"]["test"]["mrr"] == pytest.approx(sum(each["mrr"] for each in by_graph) / 2)
    assert result["metrics"]["test"]["queries"] == sum(each["queries"] for each in by_graph)
    manifests = [Store.open(store).manifest for store in stores]
    assert [each["facts"] for each in result["graph"]["graphs"]] == [each.triples["train"] for each in manifests]
    page = write_report(tmp_path).read_text()
    assert all(title in page for title in ("By graph", "Loss by epoch", "Validation MRR by epoch"))


@pytest.mark.parametrize("workers", range(1, 9))
def test_a_step_has_the_queries_of_the_batch_on_any_number_of_workers(stores: list[str], workers: int) -> None:
    settings = config(stores)
    graphs = [LearnedGraph.open(store, settings) for store in stores]
    ranks = [FoundationBatches(graphs, settings, Ranks(rank, workers)) for rank in range(workers)]
    facts = sum(graph.store.manifest.triples["train"] for graph in graphs)
    tails = 0
    for step in range(20):
        queries = [rank.batch(0, step) for rank in ranks]
        sizes = [len(asked.queries) for asked in queries]
        assert sum(sizes) == 8
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1
        tails += sum(int((asked.queries.relation < asked.graph.relations).sum()) for asked in queries)
    assert tails == 20 * 8 / 2
    assert {(rank.steps, rank.triples) for rank in ranks} == {(5, 40)}
    whole = config(stores, train={"steps_per_epoch": None})
    assert FoundationBatches(graphs, whole, Ranks(0, workers)).steps == round(facts / 8)


def test_a_batch_that_leaves_workers_without_a_query_is_refused_before_the_start(stores: list[str]) -> None:
    message = r"train\.batch_size: 8 leaves some of 9 workers without a query. Set it to 9 at least"
    with pytest.raises(ConfigError, match=message):
        check_foundation(config(stores, train={"workers": 9}))
    check_foundation(config(stores, train={"workers": 8}))
    with pytest.raises(ConfigError, match=message):
        FoundationBatches([LearnedGraph.open(stores[0], config(stores))], config(stores), Ranks(8, 9))


def first_step(ranks: Ranks, settings: RunConfig) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of the first step."""
    learner: Any = FoundationLearner(settings, ranks, Schedule(settings.optimizer, 2))
    learner.loop._dense.step = lambda factor: None
    learner.loop.run(0, 0, 1, lambda step: True)
    return learner.loop.pop_mean_loss(), [each.grad.clone() for each in learner.model.parameters()]


def test_the_gradient_of_a_step_is_the_mean_over_the_queries_of_all_workers(stores: list[str]) -> None:
    """Three workers have 3, 3 and 2 of the 8 queries."""
    settings = config(stores)
    learner: Any = FoundationLearner(settings, Ranks.single(), Schedule(settings.optimizer, 2))
    learner.model.train()
    parts = [FoundationBatches(learner.graphs, settings, Ranks(rank, 3)).batch(0, 0) for rank in range(3)]
    losses = [learner.loop.loss(part, learner.loop._moment(0, 0)) for part in parts]
    mean = 3 / 8 * losses[0] + 3 / 8 * losses[1] + 2 / 8 * losses[2]
    mean.backward()
    for loss, gradients in run_ranks(3, first_step, settings):
        assert loss == pytest.approx(mean.item(), rel=1e-5)
        for gradient, parameter in zip(gradients, learner.model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def weights_after(ranks: Ranks, settings: RunConfig, run: str) -> tuple[float, dict[str, Any]]:
    result = train(ranks, settings, run, False)
    learner = FoundationLearner(settings, ranks, Schedule(settings.optimizer, 2))
    validated = learner.validate()
    return float(result["metrics"]["test"]["mrr"]), {"validated": validated}


@pytest.mark.slow
def test_ranks_share_the_work_and_agree(stores: list[str], tmp_path: Path) -> None:
    settings = config(stores, train={"batch_size": 8})
    found = run_ranks(2, weights_after, settings, str(tmp_path / "run"))
    assert found[0] == found[1]
    learner = FoundationLearner(settings, Ranks.single(), Schedule(settings.optimizer, 2))
    # Before training every number of ranks validates the same model.
    assert found[0][1]["validated"] == pytest.approx(learner.validate())


def test_without_graphs_it_is_said_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"data.graphs is empty.*--set 'data.graphs="):
        graphs_of(config([]))
