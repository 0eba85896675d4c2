"""Embeddings behind the seam of families."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from distkg.cli import app
from distkg.config import parse_config
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank


def test_evaluate_ranks_the_triples_that_the_run_ranked_at_its_end(small_store: str, tmp_path: Path) -> None:
    """A run whose seed is not the default draws other triples; the same number of them gives its own metrics."""
    tree = {
        "data": {"store": small_store},
        "model": {"name": "distmult", "dim": 8},
        "objective": {"name": "one_vs_all"},
        "train": {"batch_size": 256, "seed": 5, "epochs": 1},
        "evaluate": {"max_final_triples": 20},
    }
    result = train_on_rank(parse_config(tree, "test"), tmp_path / "run", Ranks.single())
    metrics = []
    for subset in (["--triples", "20"], []):
        answer = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), *subset, "--json"])
        assert answer.exit_code == 0, answer.output
        metrics.append(json.loads(answer.stdout)["metrics"])
    assert metrics[0] == result["metrics"]["test"]
    assert metrics[1] != metrics[0]
