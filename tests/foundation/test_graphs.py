"""Graphs that several processes share: taken apart, mapped read-only, and learned from as from one's own."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from two_stores import two_stores

from distkg.config import RunConfig
from distkg.evaluation import filtered_triples
from distkg.foundation.graphs.training_graphs import LearnedGraph, graphs_of
from distkg.foundation.initial_model import made_graph
from distkg.foundation.learner import FoundationLearner
from distkg.foundation.models import KnowledgeGraph
from distkg.negatives import Queries
from distkg.sharding.ranks import Ranks
from distkg.sharding.zero_copy import Packed, packed, unpacked
from distkg.training.run import train_on_rank
from distkg.training.schedule import Schedule
from distkg.training.services import Services

MODELS = {"ultra": {"width": 8, "layers": 2, "hidden": 8}, "trix": {"width": 8, "hidden": 8}, "nbfnet": {"width": 8}}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return two_stores(tmp_path_factory.mktemp("graphs"))


def config(stores: list[str], model: str = "ultra", **negatives: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"graphs": stores},
            "model": {"name": model, "options": MODELS[model]},
            "objective": {"name": "self_adversarial", "margin": 0.0},
            "negatives": {"count": 6, **negatives},
            "optimizer": {"name": "adam", "learning_rate": 0.005},
            "train": {"batch_size": 8, "epochs": 2, "steps_per_epoch": 5},
            "evaluate": {"every": 1, "max_valid_triples": 4},
        }
    )


def mapped(address: str, settings: RunConfig) -> LearnedGraph:
    """As a worker gets it from a store of objects."""
    parts = packed(made_graph(address, settings))
    arrays = [array.copy() for array in parts.arrays]
    for array in arrays:
        array.flags.writeable = False
    graph: LearnedGraph = unpacked(Packed(parts.head, arrays))
    return graph


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]


@pytest.mark.parametrize(
    ("model", "negatives"),
    [
        ("ultra", {"source": "uniform"}),
        ("ultra", {"source": "kmas", "options": {"schedule": "constant"}}),
        ("trix", {"source": "corrupt"}),
        ("nbfnet", {"source": "k_hop"}),
    ],
)
def test_training_with_shared_graphs_is_that_with_ones_own(
    stores: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, negatives: dict[str, Any]
) -> None:
    settings = config(stores[:1] if model == "nbfnet" else stores, model, **negatives)
    own = train_on_rank(settings, tmp_path / "own", Ranks.single())
    graphs = {address: mapped(address, settings) for address in graphs_of(settings)}

    def refuse(*_: object) -> None:
        raise AssertionError("a graph is made that was there")

    monkeypatch.setattr(KnowledgeGraph, "of_store", refuse)
    monkeypatch.setattr(KnowledgeGraph, "_of_relations", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = train_on_rank(
            settings, tmp_path / "shared", Ranks.single(), services=Services(graph_of=graphs.__getitem__)
        )
    assert losses(tmp_path / "shared") == losses(tmp_path / "own")
    assert shared["metrics"] == own["metrics"]
    assert shared["by_graph"] == own["by_graph"]


@pytest.mark.parametrize("source", ["uniform", "degree", "bernoulli", "corrupt", "relational", "k_hop", "kmas"])
def test_every_source_of_a_shared_graph_draws_as_before(stores: list[str], source: str) -> None:
    settings = config(stores, source=source)
    local, shared = LearnedGraph.open(stores[0], settings), mapped(stores[0], settings)
    asked = Queries(*torch.from_numpy(local.source.graph.queries()[::7]).T.contiguous())
    drawn = []
    for graph in (local, shared):
        generator = torch.Generator().manual_seed(3)
        similar = torch.rand(len(asked), 3, generator=generator)
        drawn.append(graph.source.draw_by(lambda similar=similar: similar, asked, 5, generator))  # type: ignore[misc]
    assert torch.equal(drawn[0].entities, drawn[1].entities)


def test_a_packed_graph_holds_its_arrays_once(stores: list[str]) -> None:
    settings = config(stores)
    graph = made_graph(stores[1], settings)
    places = [array.ctypes.data for array in packed(graph).arrays if len(array)]
    assert len(places) == len(set(places))
    facts = graph.facts.facts
    for tensor in (graph.facts.triples, facts.dst, facts.src, facts.relation, graph.facts.meetings.src):
        assert tensor.data_ptr() in places
    assert graph.known.answers.ctypes.data in places
    head = len(packed(graph).head)
    assert head < 20_000, "numbers travel in the head"


def test_validation_triples_are_the_same_wherever_the_graph_was_made(stores: list[str]) -> None:
    settings = config(stores)
    first, second = LearnedGraph.open(stores[1], settings).validation, mapped(stores[1], settings).validation
    assert first is not None
    assert second is not None
    assert len(first.triples) == 4
    assert np.array_equal(first.triples, second.triples)


def test_a_validation_in_parts_has_the_metrics_of_one_at_once(
    stores: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(stores)

    def learner() -> Any:
        return FoundationLearner(settings, Ranks.single(), Schedule(settings.optimizer, 2))

    expected = learner().validate()
    assert expected["queries"] == 16
    monkeypatch.setattr(filtered_triples, "HELD_AT_ONCE", 1)
    parts, bounded = [], learner()
    rank = bounded._rank
    bounded._rank = lambda graph, triples, known: parts.append(len(triples)) or rank(graph, triples, known)
    for _ in range(2):  # answers that were too many are not kept for the second time
        assert bounded.validate() == expected
    assert parts == [1] * 16
