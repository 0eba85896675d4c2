"""Training TOFU on stores with tokens: what it reads of them, with parts of graphs, KMAS and graphs without tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distkg.config import ConfigError, RunConfig
from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.data.tokens.token_store import write_modality
from distkg.embedding.build import check_objective
from distkg.foundation.graph_scorer import GraphScorer
from distkg.foundation.graphs.entity_tokens import LikenessScale
from distkg.foundation.graphs.sampling import SubgraphSampler
from distkg.foundation.graphs.training_graphs import LearnedGraph
from distkg.foundation.initial_model import made_graph
from distkg.foundation.learner import FoundationLearner
from distkg.foundation.model_files import load_model, make_model, save_model
from distkg.foundation.models import KnowledgeGraph
from distkg.foundation.models.tofu import Tofu
from distkg.foundation.plan import plan_foundation
from distkg.sharding.ranks import Ranks
from distkg.sharding.zero_copy import packed, unpacked
from distkg.training.run import train_on_rank
from distkg.training.schedule import Schedule

ENTITIES, VOCABULARY, WIDTH = 60, 30, 6


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One with tokens, and one without."""
    folder = tmp_path_factory.mktemp("graphs")
    for name, seed in (("told", 1), ("plain", 2)):
        generate(str(folder / name), entities=ENTITIES, relations=3, triples=400, seed=seed)
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(-1, VOCABULARY, (ENTITIES, 4)).astype(np.int32), axis=1)[:, ::-1]
    codebook = rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    write_modality(Store.open(str(folder / "told")), "text", [np.ascontiguousarray(ids)], 4, codebook, "drawn")
    return [str(folder / "told"), str(folder / "plain")]


def config(stores: list[str], **sections: dict[str, Any]) -> RunConfig:
    options = {"width": 8, "layers": 2, "hidden": 8, "modalities": {"text": WIDTH}, "dropout": 0.0}
    tree: dict[str, Any] = {
        "data": {"graphs": stores},
        "model": {"name": "tofu", "options": options},
        "objective": {"name": "self_adversarial", "margin": 0.0},
        "negatives": {"count": 6},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "train": {"batch_size": 8, "epochs": 2, "steps_per_epoch": 10},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return RunConfig.model_validate(tree)


@pytest.mark.parametrize("source", ["uniform", "kmas"])
def test_it_learns_from_graphs_with_tokens_and_without(stores: list[str], tmp_path: Path, source: str) -> None:
    result = train_on_rank(config(stores, negatives={"source": source}), tmp_path / "run", Ranks.single())
    assert [row["graph"].split("/")[-1] for row in result["by_graph"]] == ["told", "plain"]
    model = load_model(tmp_path / "run")
    assert all(bool((weight != 0).any()) for name, weight in model.named_parameters() if "like_anchor" in name)
    graph, asked = KnowledgeGraph.of_store(Store.open(stores[0])), np.array([[0, 0], [5, 4]])
    assert list(graph.tokens) == ["text"]
    untold = KnowledgeGraph(graph.triples, graph.entities, graph.relations)
    assert not torch.allclose(GraphScorer(model, graph).scores(asked), GraphScorer(model, untold).scores(asked))


def test_gates_stay_even_where_balance_is_asked_for(stores: list[str], tmp_path: Path) -> None:
    found = []
    for balance in (0.0, 100.0):
        options = {"width": 8, "layers": 2, "hidden": 8, "modalities": {"text": WIDTH}, "dropout": 0.0}
        settings = config(stores[:1], model={"name": "tofu", "options": {**options, "balance": balance}})
        train_on_rank(settings, tmp_path / str(balance), Ranks.single())
        model, graph = load_model(tmp_path / str(balance)), KnowledgeGraph.of_store(Store.open(stores[0]))
        assert isinstance(model, Tofu)
        relation = torch.arange(6)
        states = model.relation_states(graph, torch.zeros(6, dtype=torch.int64), relation)
        layers = model.entity_model.layers
        found.append(max(layer.imbalance(states, states[relation, relation], ["text"]).item() for layer in layers))
    assert found[1] < 0.1 * found[0]


def test_without_tokens_it_learns_what_ultra_learns(stores: list[str], tmp_path: Path) -> None:
    save_model(make_model("ultra", {"width": 8, "layers": 2, "hidden": 8}), tmp_path / "start")
    start, plain = str(tmp_path / "start"), stores[1:]
    found = []
    for name, options in (("ultra", {}), ("tofu", {"modalities": {"text": WIDTH}})):
        settings = config(plain, model={"name": name, "start": start, "options": options})
        found.append(train_on_rank(settings, tmp_path / name, Ranks.single())["metrics"])
    assert found[0] == found[1]


@pytest.mark.parametrize("graphs", [slice(None), slice(1, None)], ids=["some with tokens", "none with tokens"])
def test_what_it_grew_from_can_be_kept(stores: list[str], tmp_path: Path, graphs: slice) -> None:
    save_model(make_model("ultra", {"width": 8, "layers": 2, "hidden": 8}), tmp_path / "start")
    kept = {"name": "tofu", "start": str(tmp_path / "start"), "keep_start": True}
    settings = config(stores[graphs], model={**kept, "options": {"modalities": {"text": WIDTH}, "dropout": 0.3}})
    train_on_rank(settings, tmp_path / "run", Ranks.single())
    start, model = load_model(tmp_path / "start"), load_model(tmp_path / "run")
    found = model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in start.state_dict().items())
    learned = any(bool(weight.any()) for name, weight in found.items() if "like_anchor" in name)
    assert learned == (graphs.start is None)
    plain, asked = KnowledgeGraph.of_store(Store.open(stores[1])), np.array([[0, 0], [5, 4]])
    assert torch.equal(GraphScorer(model, plain).scores(asked), GraphScorer(start, plain).scores(asked))


def test_a_plan_knows_what_does_not_learn(stores: list[str], tmp_path: Path) -> None:
    ultra = make_model("ultra", {"width": 8, "layers": 2, "hidden": 8})
    save_model(ultra, tmp_path / "start")
    model: dict[str, Any] = {"name": "tofu", "start": str(tmp_path / "start"), "options": {"modalities": {"text": 6}}}
    free, kept = (plan_foundation(config(stores, model={**model, "keep_start": keep}), None) for keep in (False, True))
    assert (free.kept, kept.kept) == (0, sum(parameter.numel() for parameter in ultra.parameters()))
    assert free.parameters == kept.parameters
    # A gradient, and the two moments of Adam in memory and in a checkpoint that is being written.
    assert free.memory["model and optimizer"] - kept.memory["model and optimizer"] == 4 * 5 * kept.kept


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("tofu", "", r"model.keep_start: model.start names no model whose weights could be frozen"),
        ("ultra", "start", r"model.keep_start: .*start is ultra itself, so that nothing would learn"),
    ],
)
def test_keeping_what_is_not_there_is_refused(
    stores: list[str], tmp_path: Path, name: str, start: str, message: str
) -> None:
    save_model(make_model("ultra", {"width": 8, "layers": 2, "hidden": 8}), tmp_path / "start")
    address = str(tmp_path / start) if start else ""
    settings = config(stores, model={"name": name, "start": address, "keep_start": True, "options": {}})
    with pytest.raises(ConfigError, match=message):
        train_on_rank(settings, tmp_path / "run", Ranks.single())


def test_an_embedding_goes_on_from_no_foundation_model(stores: list[str]) -> None:
    settings = RunConfig.model_validate({"data": {"store": stores[0]}, "model": {"start": "models/ultra_3g"}})
    with pytest.raises(ConfigError, match=r"model\.start .* are for foundation models; complex embeds"):
        check_objective(settings)


def test_a_part_with_room_for_all_facts_gives_the_scores_of_the_whole(stores: list[str]) -> None:
    settings = config(stores[:1])
    learner = FoundationLearner(settings, Ranks.single(), Schedule(settings.optimizer, settings.train.epochs))
    model, graph = learner.model.eval(), learner.graphs[0].facts
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter)))
    asked = np.array([[0, 0], [5, 4], [9, 2]])
    whole = GraphScorer(model, graph).scores(asked)
    part = GraphScorer(model, graph, SubgraphSampler(graph, [1000] * 4)).scores(asked)
    reached = (part - part.median()).abs() > 0  # those outside the part have the score of a node without facts
    assert float(reached.float().mean()) > 0.8
    torch.testing.assert_close(part[reached], whole[reached], rtol=1e-4, atol=1e-4)


def test_what_workers_share_holds_the_tokens(stores: list[str]) -> None:
    settings = config(stores[:1])
    graph = unpacked(packed(made_graph(stores[0], settings)))
    assert isinstance(graph, LearnedGraph)
    assert graph.facts.tokens["text"].ids.shape == (ENTITIES, 4)
    alone = packed(LearnedGraph.open(stores[0], settings).facts.tokens).nbytes
    assert packed(graph.facts.tokens).nbytes - alone >= 4 * ENTITIES * 4  # they were read before they were shared


def test_workers_do_not_make_again_what_likeness_is_measured_by(
    stores: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = KnowledgeGraph.of_store(Store.open(stores[0])).tokens["text"].likeness(torch.tensor([3]))
    shared = {
        fanouts: packed(made_graph(stores[0], config(stores[:1], data={"fanouts": fanouts})))
        for fanouts in ((), (5, 5))
    }
    monkeypatch.delattr(LikenessScale, "of")
    whole, sampled = (unpacked(graph).facts.tokens["text"] for graph in shared.values())
    torch.testing.assert_close(sampled.part(torch.arange(ENTITIES)).likeness(torch.tensor([3])), expected)
    monkeypatch.delattr(LikenessScale, "profiles")
    torch.testing.assert_close(whole.likeness(torch.tensor([3])), expected)


def test_a_plan_counts_what_tokens_take(stores: list[str]) -> None:
    told = plan_foundation(config(stores[:1]), None).memory["states of a batch"]
    options = {"width": 8, "layers": 2, "hidden": 8, "modalities": {}}
    untold = plan_foundation(config(stores[:1], model={"name": "tofu", "options": options}), None)
    assert told > 1.2 * untold.memory["states of a batch"]


def test_a_plan_says_which_graphs_have_what_the_model_reads(stores: list[str]) -> None:
    found = plan_foundation(config(stores), None)
    assert found.reads == ("text",)
    assert [graph.tokens for graph in found.graphs] == [("text",), ()]
