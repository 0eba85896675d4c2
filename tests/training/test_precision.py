"""Precisions that a machine lacks: the run goes on in float32, and says so once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import run_ranks

from distkg.config import RunConfig, parse_config
from distkg.kernels import cpu
from distkg.planning.preflight import plan_run
from distkg.reporting.tables import plan_summary
from distkg.sharding.ranks import Ranks
from distkg.training.precision import missing_precisions, missing_precisions_here, product_precision
from distkg.training.run import train_on_rank

CPU = torch.device("cpu")
NEEDS = "objective.products: bfloat16 needs instructions for bfloat16 (AVX-512 BF16, AMX or Arm's), which "


def config(**changes: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "model": {"name": "complex", "dim": 8},
        "objective": {"name": "one_vs_all", "products": "bfloat16"},
        "train": {"workers": 2, "epochs": 2, "batch_size": 128},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    return parse_config(tree, "test", dead_keys_are="dropped")  # an objective may make keys above idle


@pytest.mark.parametrize(("fast", "precision"), [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_in_bfloat16_where_the_processor_has_it(
    fast: bool, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "has_fast_bfloat16", lambda: fast)
    assert product_precision(config(), CPU) == precision
    assert product_precision(config(objective__products="float32"), CPU) == torch.float32


@pytest.mark.parametrize(("native", "precision"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_is_asked_itself(native: bool, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert product_precision(config(), torch.device("cuda")) == precision


def test_a_sentence_says_what_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_fast_bfloat16", lambda: False)
    there = " not have. Products are made in float32 there."
    assert missing_precisions_here(config()) == [f"{NEEDS}the 2 workers do{there}"]
    assert missing_precisions_here(config(train__workers=1)) == [f"{NEEDS}this machine does{there}"]
    assert missing_precisions(config(), Ranks.single()) == [f"{NEEDS}this machine does{there}"]
    assert missing_precisions_here(config(objective__products="float32")) == []
    assert missing_precisions_here(config(objective__name="self_adversarial")) == []  # makes no products over entities
    (told,) = missing_precisions_here(config(objective__products="float32", train__precision="bfloat16"))
    assert told.startswith("train.precision: bfloat16 is for GPUs.")


def test_nothing_is_said_where_nothing_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_fast_bfloat16", lambda: True)
    assert missing_precisions_here(config()) == []


def sentences_of_a_mixed_group(ranks: Ranks, run: RunConfig) -> list[str]:
    """Rank 1 is on a processor without instructions for bfloat16."""
    cpu.has_fast_bfloat16 = lambda: ranks.rank != 1  # type: ignore[assignment]
    return missing_precisions(run, ranks)


def test_a_worker_on_another_processor_is_counted() -> None:
    expected = [f"{NEEDS}1 of 3 workers do not have. Products are made in float32 there."]
    assert run_ranks(3, sentences_of_a_mixed_group, config(), fresh=True) == [expected] * 3


def test_a_run_goes_on_in_float32_and_says_so_once(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "has_fast_bfloat16", lambda: False)
    for name in ("bfloat16", "float32"):
        run = config(data__store=small_store, objective__products=name, train__workers=1)
        train_on_rank(run, tmp_path / name, Ranks.single())
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("bfloat16", "float32")
    ]
    assert losses[0] == losses[1]
    (notice,) = (tmp_path / "bfloat16" / "notices.jsonl").read_text().splitlines()
    assert json.loads(notice)["notice"].startswith(NEEDS)
    assert not (tmp_path / "float32" / "notices.jsonl").exists()


def test_a_plan_says_it_for_workers_on_this_machine_alone(small_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_fast_bfloat16", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    plan = plan_run(config(data__store=small_store))
    assert plan_summary(plan).splitlines()[-1].startswith(f"warning: {NEEDS}the 2 workers do")
    assert list(plan.to_dict()["notes"]) == missing_precisions_here(config())
    assert plan_run(config(data__store=small_store, cluster__address="10.0.0.1:6379")).notes == ()
