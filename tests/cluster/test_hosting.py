"""Which sources actors host, and which of the actors hosts each; Ray itself is not started here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distkg.cluster.sampling.hosting import hosted_sources, make_servers
from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.negatives.kmas.relation_miner import TableRequest
from distkg.negatives.kmas.relation_similarity import RelationTable


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("graph") / "store"
    generate(str(folder), entities=30, relations=4, triples=100, seed=1)
    return str(folder)


def config(store: str, source: str, options: dict[str, Any] | None = None, actors: int = 2) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"store": store},
            "model": {"name": "distmult", "dim": 8},
            "negatives": {"source": source, "options": options or {}, "pool": {"actors": actors}},
        }
    )


def test_of_a_mixture_one_actor_compares_relations_and_all_draw(store: str) -> None:
    parts = [{"source": "near_miss"}, {"source": "kmas", "options": {"relations": 2}}]
    settings = config(store, "mixture", {"parts": parts})
    found = hosted_sources(settings, {})
    assert {key: (each.name, list(each.places)) for key, each in found.items()} == {
        "0.0": ("near_miss", [0, 1]),
        "0.1": ("kmas", [0]),
    }
    assert [list(make_servers(settings, {}, place)) for place in range(2)] == [["0.0", "0.1"], ["0.0"]]
    server = make_servers(settings, {}, 0)["0.1"]
    server.publish(7, 0, 1, 0, {"relations": np.eye(4, dtype=np.float32)})
    table = server.answer(TableRequest(7, 0))
    assert isinstance(table, RelationTable)
    assert table.version == 7
    assert table.relations.shape == (4, 2)
    assert make_servers(config(store, "uniform"), {}, 0) == {}


def test_graphs_are_shared_out_among_actors(store: str) -> None:
    graphs: dict[str, Any] = dict.fromkeys(("a", "b", "c"))
    found = hosted_sources(config(store, "kmas"), graphs)
    assert {key: list(each.places) for key, each in found.items()} == {"a": [0], "b": [1], "c": [0]}
