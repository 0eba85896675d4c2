"""What an actor that compares relations does; Ray itself is not started here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distkg.cluster.sampling.relation_miner import Remembered, mines_of
from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.negatives.kmas.relation_miner import Weights
from distkg.negatives.kmas.relation_similarity import RelationTable


def table(version: int) -> RelationTable:
    return RelationTable(version, np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32))


def test_what_several_workers_ask_for_is_compared_once() -> None:
    asked: list[int] = []

    def mine(version: int, weights: Weights) -> dict[str, RelationTable]:
        asked.append(version)
        return {"g": table(version)}

    remembered = Remembered(mine)
    ones, twos = {"w": np.ones(2, np.float32)}, {"w": np.full(2, 2, np.float32)}
    first = remembered(3, ones)
    assert remembered(3, {"w": np.ones(2, np.float32)}) is first
    assert asked == [3]
    remembered(4, ones)
    # A training that went back may come to the same step with other weights.
    remembered(4, twos)
    remembered(4, {"v": twos["w"]})
    assert asked == [3, 4, 4, 4]


def test_of_a_mixture_the_parts_that_compare_relations_are_mined(tmp_path: Path) -> None:
    generate(str(tmp_path / "store"), entities=30, relations=4, triples=100, seed=1)
    parts = [{"source": "near_miss"}, {"source": "kmas", "options": {"relations": 2}}]
    config = RunConfig.model_validate(
        {
            "data": {"store": str(tmp_path / "store")},
            "model": {"name": "distmult", "dim": 8},
            "negatives": {"source": "mixture", "options": {"parts": parts}, "pool": {"actors": 1}},
        }
    )
    mines = mines_of(config, {}, 0)
    assert list(mines) == ["0.1"]
    (found,) = mines["0.1"](7, {"relations": np.eye(4, dtype=np.float32)}).values()
    assert found.version == 7
    assert found.relations.shape == (4, 2)
    assert mines_of(config.model_copy(update={"negatives": RunConfig().negatives}), {}, 0) == {}
