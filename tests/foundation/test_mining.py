"""Relations compared by a relation encoder away from the training, and training by what comes of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process_pool import InProcessPool, in_process
from two_stores import two_stores

from distkg.config import ConfigError, RunConfig
from distkg.embedding.build import check_objective
from distkg.foundation.graphs.training_graphs import LearnedGraph
from distkg.foundation.initial_model import check_foundation, initial_model, made_graph
from distkg.foundation.mining import encoder_parameters, relation_miners, some_head, weights_of
from distkg.foundation.models import MODELS
from distkg.negatives.kmas.relation_miner import RelationMiner, TableRequest
from distkg.negatives.kmas.relation_similarity import RelationTable
from distkg.negatives.prefetch.pool_events import NegativePoolError
from distkg.negatives.prefetch.source_server import SourceServer
from distkg.randomness import mixed_seed
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from distkg.training.services import Services

SIZES = {"ultra": {"width": 8, "layers": 2, "hidden": 8}, "trix": {"width": 8, "hidden": 8}, "nbfnet": {"width": 8}}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return two_stores(tmp_path_factory.mktemp("graphs"), relations=4)


def config(stores: list[str], kind: str = "ultra", **sections: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"graphs": stores},
        "model": {"name": kind, "options": SIZES.get(kind, {})},
        "objective": {"name": "self_adversarial", "margin": 0.0},
        "negatives": {
            "source": "kmas",
            "options": {"schedule": "constant", "most": 0.5, "relations": 3, "refresh_steps": 4},
            "count": 6,
            "pool": {"actors": 1, "max_age": 20},
        },
        "optimizer": {"name": "adam", "learning_rate": 0.005},
        "train": {"batch_size": 8, "epochs": 2, "steps_per_epoch": 10},
        "evaluate": {"every": 2, "batch_size": 3},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return RunConfig.model_validate(tree)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


Pools = dict[str, InProcessPool]


def pools_for(settings: RunConfig, **faults: Any) -> Pools:
    """By graph."""
    miners = relation_miners(settings, [made_graph(store, settings) for store in settings.data.graphs])
    hosted = zip(settings.data.graphs, miners, strict=True)
    return {graph: InProcessPool(SourceServer(miner), **faults) for graph, miner in hosted}


def test_the_relation_encoder_of_ultra_is_what_is_sent(stores: list[str]) -> None:
    settings = config(stores, model={"options": {}})
    model = initial_model(settings, [4, 4])
    sent = weights_of(encoder_parameters(model, LearnedGraph.open(stores[0], settings)))
    assert {name.split(".")[0] for name in sent} == {"relation_model"}
    assert sum(values.size for values in sent.values()) == 51_840


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].ranks == "entities"])
def test_relation_states_depend_on_what_is_sent_and_on_nothing_else(stores: list[str], name: str) -> None:
    settings = config(stores[:1], name)
    graph = LearnedGraph.open(stores[0], settings)
    model = initial_model(settings, [graph.store.manifest]).eval()
    asked = graph.facts.triples[:2, 0], graph.facts.triples[:2, 1]
    sent = encoder_parameters(model, graph)
    assert sent
    with torch.no_grad():
        before = model.relation_states(graph.facts, *asked).clone()
        for own, parameter in model.named_parameters():
            if own not in sent and parameter.requires_grad:
                parameter.normal_()
        assert torch.equal(model.relation_states(graph.facts, *asked), before)
        for parameter in sent.values():
            parameter.add_(torch.randn_like(parameter))
        assert not torch.equal(model.relation_states(graph.facts, *asked), before)


@pytest.mark.parametrize("name", ["ultra", "trix", "nbfnet"])
def test_a_table_is_that_of_each_relations_own_state(stores: list[str], name: str) -> None:
    options = {"relations": 3, "self_share": 1.0, "temperature": 0.2}
    settings = config(stores[:1], name, negatives={"options": options})
    graph = made_graph(stores[0], settings)
    model = initial_model(settings, [graph.store.manifest]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    (miner,) = relation_miners(settings, [graph])
    miner.publish(12, 0, 1, 0, weights_of(encoder_parameters(model, graph)))
    table = miner.reply(TableRequest(12, 0))
    assert table is not None
    assert table.version == 12
    heads, own_states = some_head(graph.facts.triples, 4, mixed_seed(0, 12)), []
    for relation in range(4):
        with torch.no_grad():
            states = model.relation_states(graph.facts, heads[relation : relation + 1], torch.tensor([relation]))
        own_states.append(states[0, relation].tolist())
    for relation in range(4):
        cosines = [
            sum(x * y for x, y in zip(own_states[relation], other, strict=True))
            / (math.hypot(*own_states[relation]) * math.hypot(*other))
            for other in own_states
        ]
        best = sorted(range(4), key=cosines.__getitem__)[1:]
        whole = sum(math.exp(cosines[r] / 0.2) for r in best)
        found = dict(zip(table.relations[relation].tolist(), table.chances[relation].tolist(), strict=True))
        assert found == {r: pytest.approx(math.exp(cosines[r] / 0.2) / whole, abs=1e-4) for r in best}


def test_heads_are_of_facts_of_their_relations() -> None:
    triples = torch.tensor([[5, 0, 1], [6, 0, 1], [7, 2, 1]])
    found = {tuple(some_head(triples, 4, seed).tolist()) for seed in range(20)}
    assert found == {(5, 0, 7, 0), (6, 0, 7, 0)}


def train(settings: RunConfig, run: Path, pools: Pools | None) -> list[dict[str, Any]]:
    services = Services() if pools is None else Services(pools.__getitem__)
    train_on_rank(settings, run, Ranks.single(), services=services)
    return lines(run)


def test_a_training_by_tables_says_how_they_came_and_how_hard_negatives_were(stores: list[str], tmp_path: Path) -> None:
    settings = config(stores)
    pools = pools_for(settings)
    found = train(settings, tmp_path / "run", pools)
    for pool in pools.values():
        assert pool.published == [request.number for request in pool.requests] == [0, 4, 8, 12, 16]
        sent = {name for arrays in pool.arrays for name in arrays}
        assert {name.split(".")[0] for name in sent} == {"relation_model"}
        assert not np.array_equal(*(pool.arrays[place]["relation_model.layers.0.linear.bias"] for place in (0, 4)))
    # Steps since the latest of 0, 4, 8 … 19, and of these the medians of the first ten and of the last ten.
    assert [(line["negatives"]["age_median"], line["negatives"]["age_max"]) for line in found] == [(1, 3), (2, 3)]
    for line in (each["negatives"] for each in found):
        assert line["delivered"] == 1.0
        assert [line[name] for name in ("late", "old", "broken", "refused", "restarts")] == [0] * 5
        assert line["hard_share"] == 0.5
        assert line["rejected"] == pytest.approx(0.073, abs=0.03)  # 3 of 43, and 3 of 39
        assert line["hard_among_top"] == 0.5  # a query has six negatives, so that all are among its ten
        assert math.isfinite(line["score"])
        assert math.isfinite(line["uniform_score"])


def test_without_tables_a_training_is_that_with_similarities_of_the_step(stores: list[str], tmp_path: Path) -> None:
    settings = config(stores)
    never = train(settings, tmp_path / "never", pools_for(settings, late=None))
    alone = train(config(stores, negatives={"pool": {"actors": 0}}), tmp_path / "alone", None)
    assert [line["loss"] for line in never] == [line["loss"] for line in alone]
    assert {line["negatives"]["delivered"] for line in never} == {0.0}
    assert sum(line["negatives"]["late"] for line in never) == 2 * 10 * 8
    assert "delivered" not in alone[0]["negatives"]
    assert alone[0]["negatives"]["hard_share"] == 0.5
    # And tables change what is drawn.
    mined = train(settings, tmp_path / "mined", pools_for(settings))
    assert [line["loss"] for line in mined] != [line["loss"] for line in alone]


def test_broken_tables_are_counted_and_do_not_reach_the_loss(stores: list[str], tmp_path: Path) -> None:
    def spoil(table: RelationTable) -> RelationTable:
        return replace(table, chances=np.full_like(table.chances, np.nan))

    settings = config(stores)
    found = train(settings, tmp_path / "run", pools_for(settings, spoil=spoil))
    assert sum(line["negatives"]["broken"] for line in found) == 2 * 10 * 8
    assert all(math.isfinite(line["loss"]) for line in found)


def raise_from(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have comparisons raise from the weights of a step on."""
    reply = RelationMiner.reply

    def unlucky(self: RelationMiner, request: TableRequest) -> RelationTable | None:
        if request.number >= version:
            raise RuntimeError("no luck today")
        return reply(self, request)

    monkeypatch.setattr(RelationMiner, "reply", unlucky)


def test_a_comparison_that_raises_ends_the_run(
    stores: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(stores)
    raise_from(8, monkeypatch)
    with pytest.raises(NegativePoolError, match="comparing relations for step 8: RuntimeError: no luck today"):
        train(settings, tmp_path / "run", pools_for(settings))


def test_a_comparison_that_raises_is_counted_where_the_fallback_was_chosen(
    stores: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(stores, negatives={"pool": {"actors": 1, "max_age": 9, "fallback": "uniform"}})
    raise_from(8, monkeypatch)
    found = [line["negatives"] for line in train(settings, tmp_path / "run", pools_for(settings))]
    # Tables of step 4 serve until step 13; 16 queries a step.
    assert [line["failed"] for line in found] == [0, 6 * 8]
    assert [line["old"] + line["late"] for line in found] == [0, 0]
    assert [len(line.get("warnings", [])) for line in found] == [1, 0]
    assert "comparing relations for step 8: RuntimeError: no luck today" in found[0]["warnings"][0]


def test_a_resumed_run_has_relations_compared_at_once(stores: list[str], tmp_path: Path) -> None:
    settings = config(stores, train={"epochs": 1})
    train(settings, tmp_path / "run", pools_for(settings))
    longer = config(stores)
    pools = pools_for(longer)
    train_on_rank(longer, tmp_path / "run", Ranks.single(), resume=True, services=Services(pools.__getitem__))
    assert [pool.published for pool in pools.values()] == [[10, 14, 18]] * 2


@pytest.fixture
def embeddings(stores: list[str]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"store": stores[1]},
            "model": {"name": "distmult", "dim": 8},
            "objective": {"name": "logistic"},
            "negatives": {
                "source": "kmas",
                "options": {"schedule": "constant", "relations": 3, "refresh_steps": 8},
                "count": 4,
                "pool": {"actors": 1},
            },
            "train": {"epochs": 3, "batch_size": 50},
            "evaluate": {"every": 3},
        }
    )


def test_relations_of_embeddings_are_compared_by_their_vectors(embeddings: RunConfig, tmp_path: Path) -> None:
    graph = LearnedGraph.open(embeddings.data.store, embeddings).source.graph
    check_objective(embeddings)
    pool_of, pools = in_process(graph, "kmas", embeddings.negatives.options)
    train_on_rank(embeddings, tmp_path, Ranks.single(), services=Services(pool_of))
    (arrays, *_) = (each for pool in pools.values() for each in pool.arrays)
    assert list(arrays) == ["relations"]
    assert arrays["relations"].shape == (4, 8)
    for line in lines(tmp_path):
        assert line["negatives"]["delivered"] == 1.0
        assert line["negatives"]["hard_share"] == 0.5
        assert line["negatives"]["rejected"] > 0
        assert line["negatives"]["age_max"] < 16
        assert math.isfinite(line["negatives"]["score"])


def test_actors_that_would_have_nothing_to_do_are_refused(stores: list[str], embeddings: RunConfig) -> None:
    def with_pool(negatives: dict[str, Any]) -> RunConfig:
        return config(stores, negatives=negatives)

    check_foundation(with_pool({"pool": {"actors": 2}}))
    with pytest.raises(ConfigError, match=r"negatives\.pool\.actors: .* there are 2\. Set it to 2 at most"):
        check_foundation(with_pool({"pool": {"actors": 3}}))
    with pytest.raises(ConfigError, match=r"ultra draws corrupt negatives in the step, which is fast enough"):
        check_foundation(with_pool({"source": "corrupt", "options": {}, "pool": {"actors": 1}}))
    mixture = {"parts": [{"source": "uniform"}, {"source": "kmas"}]}
    with pytest.raises(ConfigError, match=r"kmas cannot be part of a mixture for ultra"):
        check_foundation(with_pool({"source": "mixture", "options": mixture, "pool": {"actors": 0}}))
    asking = {"parts": [{"source": "uniform"}, {"source": "near_miss"}]}
    with pytest.raises(ConfigError, match=r"near_miss reads entity vectors, which ultra does not have"):
        check_foundation(with_pool({"source": "mixture", "options": asking, "pool": {"actors": 0}}))
    embeddings.negatives.pool.actors = 3
    with pytest.raises(ConfigError, match=r"so 2 would be idle\. Set it to 1"):
        check_objective(embeddings)


def test_actors_without_ray_are_refused(stores: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"negatives\.pool\.actors .* without Ray.*distkg train"):
        train_on_rank(config(stores), tmp_path, Ranks.single())
