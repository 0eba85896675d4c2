"""A mixture behind Ray actors of sources of every kind: what needs vectors of queries and answers, and what learns.

The losses of diffusion alone are held, to the last bit, by ``pool dans`` in ``tests/golden/``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.launch import run_on_workers
from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.training.run import train_on_rank

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

DANS = {"made": 2, "neighbours": 2, "refresh": 3.0, "diffusion": {"steps": 20}}
MIXTURE = {
    "parts": [
        {"source": "uniform"},
        {"source": "nearest_neighbour", "options": {"neighbours": 8}},
        {"source": "dans", "options": DANS},
    ]
}


def test_a_diffusion_model_learns_and_draws_in_actors(tmp_path: Path, kept_workers: KeptWorkers) -> None:
    store = tmp_path / "store"
    generate(str(store), entities=200, relations=4, triples=2000, seed=3)
    config = {
        "data": {"store": str(store)},
        "model": {"name": "rotate", "dim": 8},
        "objective": {"name": "self_adversarial", "temperature": 0},
        "negatives": {
            "source": "mixture",
            "options": MIXTURE,
            "count": 4,
            "filter": True,
            # Sync: what is delivered does not depend on how busy the machine is.
            "pool": {"actors": 2, "cpus_per_actor": 0.5, "sync": True},
        },
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "train": {"workers": 2, "epochs": 12, "batch_size": 200},
        "evaluate": {"every": 100},
        "checkpoint": {"every": 100},
    }
    result = run_on_workers(train_on_rank, RunConfig.model_validate(config), tmp_path / "run", kept=kept_workers)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    came = [line["negatives"] for line in lines]
    assert {each["delivered"] for each in came} == {1.0}
    assert {each["restarts"] for each in came} == {0}
    bands = came[-1]["band_scores"]
    assert any(score is not None and math.isfinite(score) for score in bands.values())
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert math.isfinite(result["metrics"]["test"]["mrr"])
