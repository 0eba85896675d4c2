"""A step of a foundation model on another device than its graph, drawn negatives and counters: torch's meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.foundation.learner import FoundationLearner
from distkg.sharding.ranks import Ranks
from distkg.training.schedule import Schedule


def test_a_step_moves_what_the_model_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_they_are(values: torch.Tensor, return_inverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return values, torch.arange(len(values), device=values.device)

    monkeypatch.setattr(torch, "unique", as_they_are)  # tensors there have no numbers to tell apart
    generate(str(tmp_path / "graph"), entities=40, relations=3, triples=150, seed=1)
    tree = {
        "data": {"graphs": [str(tmp_path / "graph")]},
        "model": {"name": "ultra", "options": {"width": 8, "layers": 2, "hidden": 8}},
        "objective": {"name": "self_adversarial", "margin": 0.0},
        "negatives": {"count": 6},
        "optimizer": {"name": "adam", "learning_rate": 0.005},
        "train": {"batch_size": 8, "epochs": 1, "steps_per_epoch": 2},
    }
    settings = RunConfig.model_validate(tree)
    learner = FoundationLearner(settings, Ranks.single("meta"), Schedule(settings.optimizer, 1))
    assert learner.model.device == torch.device("meta")
    assert learner.loop.run(0, 0, 2, lambda _: True) == 2
    assert learner.loop.steps == 2
