"""Losses of short runs as literal numbers: a change of formula, seed or order shows here, on any processor.

Runs of one machine repeat bit for bit. Other instruction sets sum in another order and round products of three
numbers once or twice (with or without FMA), so their losses differ in the last digits, and training carries the
difference on. ``make test-isa`` runs these under several instruction sets.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from distkg.config import parse_config
from distkg.sharding.ranks import Ranks
from distkg.training import run
from distkg.training.run import train_on_rank

TOLERANCE = 1e-4
"""Relative. Between AVX-512, AVX2 and SSE2 most losses of four epochs differ by less than 10⁻⁶, TransE's by 4·10⁻⁵: the
gradient of its L1 distance is a sign, which a last digit may turn."""

SAMPLED = {"negatives": {"count": 8, "chunk_size": 32}, "optimizer": {"name": "adam", "learning_rate": 0.01}}
CURVES: dict[str, tuple[dict[str, Any], list[float]]] = {
    # Products over all entities by oneDNN, and the exponentials of torch.
    "complex": (
        {"model": {"name": "complex"}, "objective": {"name": "one_vs_all"}},
        [4.989705, 4.436346, 3.471012, 2.968488],
    ),
    # Distances pair by pair, in compiled loops; sines and cosines.
    "rotate": (
        {"model": {"name": "rotate"}, "objective": {"name": "self_adversarial", "margin": 2.0}, **SAMPLED},
        [9.187494, 8.161687, 7.187072, 6.259827],
    ),
    "transe": (
        {"model": {"name": "transe"}, "objective": {"name": "self_adversarial"}, **SAMPLED},
        [3.439759, 2.624336, 2.300354, 2.118528],
    ),
    # A table in bfloat16, whose rounding is drawn.
    "bfloat16 table": (
        {
            "model": {"name": "distmult", "dtype": "bfloat16"},
            "objective": {"name": "self_adversarial"},
            **SAMPLED,
        },
        [9.003077, 8.999813, 8.994201, 8.973586],
    ),
    # Compiled exponentials and logarithms.
    "hale": (
        {
            "model": {"name": "rote"},
            "objective": {"name": "query_sampling", "query_share": 0.3, "activation": "hanon"},
            "optimizer": {"name": "adam", "learning_rate": 0.005},
        },
        [4.829757, 4.754045, 4.610565, 4.37279],
    ),
    # Message passing, layer updates and products over rows.
    "ultra": (
        {
            "model": {"name": "ultra", "options": {"width": 16, "layers": 2, "hidden": 16}},
            "objective": {"name": "self_adversarial", "margin": 0.0},
            "negatives": {"count": 6},
            "optimizer": {"name": "adam", "learning_rate": 0.005},
        },
        [1.362181, 1.251307, 1.151846, 1.079897],
    ),
}


def curve(store: str, folder: Path, sections: dict[str, Any]) -> list[float]:
    """Losses of the epochs of a run."""
    ultra = sections["model"]["name"] == "ultra"
    tree: dict[str, Any] = {
        "data": {"graphs": [store]} if ultra else {"store": store},
        "train": {"batch_size": 8, "steps_per_epoch": 5} if ultra else {"batch_size": 128},
        **sections,
    }
    tree["train"] |= {"seed": 5, "epochs": 4}
    tree["model"] = tree["model"] if ultra else {"dim": 16, **tree["model"]}
    train_on_rank(parse_config(tree, "test"), folder, Ranks.single())
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", CURVES)
def test_the_losses_are_those_recorded(
    name: str, small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "REPORT_SECONDS", math.inf)  # on a slow machine an epoch would have several lines
    sections, losses = CURVES[name]
    assert curve(small_store, tmp_path, sections) == pytest.approx(losses, rel=TOLERANCE)
