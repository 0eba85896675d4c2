"""Whole runs: resumed bit for bit, on another number of ranks, stopped early, and what they leave behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distkg.config import RunConfig, parse_config
from distkg.data.store.graph_store import Store
from distkg.embedding.load_run import load_run
from distkg.sharding import row_storage
from distkg.sharding.ranks import Ranks
from distkg.training import run as run_module
from distkg.training.run import DivergedError, train_on_rank
from tests.distributed import run_ranks


def config(store: str, **sections: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"store": store},
        "model": {"name": "complex", "dim": 16, "dropout": 0.1},
        "objective": {"name": "one_vs_all"},
        "regularizer": {"name": "n3", "weight": 0.005},
        "train": {"batch_size": 128, "seed": 5, "epochs": 4},
        "evaluate": {"every": 2},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return parse_config(tree, "test")


SAMPLED = {
    "objective": {"name": "self_adversarial", "margin": 2.0},
    "negatives": {"count": 8, "chunk_size": 32, "filter": True},
    "optimizer": {"name": "adam", "learning_rate": 0.01},
}


def train(ranks: Ranks, run: RunConfig, folder: str, resume: bool) -> dict[str, Any]:
    return train_on_rank(run, Path(folder), ranks, resume=resume)


def entity_rows(folder: Path) -> np.ndarray:
    model, store, _ = load_run(folder, Ranks.single())
    return model.entities.gather(torch.arange(store.num_entities)).numpy()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("sections", [{}, SAMPLED], ids=["one_vs_all", "self_adversarial"])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(
    small_store: str, tmp_path: Path, sections: dict[str, Any], overlap: bool
) -> None:
    def run(epochs: int) -> RunConfig:
        return config(small_store, **sections, train={"epochs": epochs, "overlap": overlap, "batch_size": 128})

    train(Ranks.single(), run(4), str(tmp_path / "whole"), False)
    train(Ranks.single(), run(2), str(tmp_path / "parts"), False)
    train(Ranks.single(), run(4), str(tmp_path / "parts"), True)
    np.testing.assert_array_equal(entity_rows(tmp_path / "parts"), entity_rows(tmp_path / "whole"))
    whole, parts = lines(tmp_path / "whole"), lines(tmp_path / "parts")
    assert [line["step"] for line in parts] == [line["step"] for line in whole]
    assert [line["loss"] for line in parts] == [line["loss"] for line in whole]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="tables on disk need Linux")
@pytest.mark.parametrize(("size", "resident_share"), [(1, 1.0), (1, 0.2), (2, 1.0), (2, 0.2)])
def test_a_run_with_its_table_on_disk_equals_one_in_memory(
    small_store: str, tmp_path: Path, size: int, resident_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: losses, checkpoints and result, and it resumes with its table in the other place.

    On one rank the files count as larger than the memory, so that rows are dropped.
    """
    monkeypatch.setattr(row_storage, "memory_limit", lambda: 1)

    def run(name: str, storage: str, epochs: int, resume: bool = False) -> dict[str, Any]:
        (tmp_path / "rows").mkdir(exist_ok=True)
        place = {"table_folder": str(tmp_path / "rows")} if storage == "disk" else {}
        settings = config(
            small_store,
            **SAMPLED,
            train={
                "workers": size,
                "epochs": epochs,
                "overlap": True,
                "table_storage": storage,
                "resident_share": resident_share,
                **place,
            },
        )
        work = settings, str(tmp_path / name), resume
        result: dict[str, Any] = train(Ranks.single(), *work) if size == 1 else run_ranks(size, train, *work)[0]
        assert not list((tmp_path / "rows").iterdir())
        return result

    in_memory = run("memory", "memory", 4)
    on_disk = run("disk", "disk", 4)
    run("moved", "disk", 2)
    moved = run("moved", "memory", 4, resume=True)
    assert on_disk["metrics"] == moved["metrics"] == in_memory["metrics"]
    last = sorted(path.name for path in (tmp_path / "memory" / "checkpoints").iterdir())[-1]
    for rank in range(size):
        file = f"checkpoints/{last}/rank-{rank:05d}-of-{size:05d}.safetensors"
        content = {(tmp_path / name / file).read_bytes() for name in ("memory", "disk", "moved")}
        assert len(content) == 1
    assert [line["loss"] for line in lines(tmp_path / "disk")] == [line["loss"] for line in lines(tmp_path / "memory")]


def test_a_run_resumes_within_an_epoch(small_store: str, tmp_path: Path) -> None:
    """A run whose newest checkpoint lies within an epoch goes on from that step."""
    often = config(small_store, checkpoint={"every_steps": 3, "keep": 50}, train={"epochs": 2, "batch_size": 64})
    train(Ranks.single(), often, str(tmp_path / "whole"), False)
    names = sorted(path.name for path in (tmp_path / "whole" / "checkpoints").iterdir())
    middle = names[1]
    assert middle == "step-000000006"
    for name in names[2:]:
        (tmp_path / "whole" / "checkpoints" / name / "manifest.json").unlink()
    before = lines(tmp_path / "whole")
    train(Ranks.single(), often, str(tmp_path / "whole"), True)
    assert [line["loss"] for line in lines(tmp_path / "whole") if "valid" in line] == [
        line["loss"] for line in before if "valid" in line
    ]


@pytest.mark.slow
def test_a_run_continues_on_another_number_of_ranks(small_store: str, tmp_path: Path) -> None:
    """2 → 1 → 3 ranks, against 2 ranks all the way."""
    folder = str(tmp_path / "run")
    run_ranks(2, train, config(small_store, train={"epochs": 4}), folder, False)
    train(Ranks.single(), config(small_store, train={"epochs": 8}), folder, True)
    moved = run_ranks(3, train, config(small_store, train={"epochs": 12}), folder, True)[0]
    steady = run_ranks(2, train, config(small_store, train={"epochs": 12}), str(tmp_path / "steady"), False)[0]
    assert moved["train"]["steps"] == steady["train"]["steps"]
    assert moved["metrics"]["valid"]["mrr"] == pytest.approx(steady["metrics"]["valid"]["mrr"], abs=0.05)
    assert lines(tmp_path / "run")[-1]["loss"] == pytest.approx(lines(tmp_path / "steady")[-1]["loss"], rel=0.05)


def test_result_holds_what_the_readme_promises(small_store: str, tmp_path: Path) -> None:
    result = train(Ranks.single(), config(small_store), str(tmp_path), False)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    names = {"mrr", "hits@1", "hits@3", "hits@10", "mean_rank", "mrr_optimistic", "mrr_pessimistic", "queries"}
    assert set(result["metrics"]) == {"valid", "test"}
    assert set(result["metrics"]["test"]) == names
    assert result["metrics"]["test"]["mrr_pessimistic"] <= result["metrics"]["test"]["mrr"]
    assert result["train"]["workers"] == 1
    assert len(result["train"]["peak_rss_mb_per_worker"]) == 1
    assert result["config_sha256"] == config(small_store).sha256()


def test_training_stops_at_the_time_limit_and_evaluates(small_store: str, tmp_path: Path) -> None:
    limited = config(small_store, train={"epochs": 100_000, "time_limit_seconds": 2, "batch_size": 64})
    result = train(Ranks.single(), limited, str(tmp_path), False)
    assert 2 <= result["train"]["seconds"] < 30
    assert result["metrics"]["test"]["queries"] > 0


def limited_run(ranks: Ranks, store: str, folder: str) -> dict[str, Any]:
    train_settings = {"epochs": 100_000, "time_limit_seconds": 2, "batch_size": 64}
    annealed = config(store, train=train_settings, optimizer={"schedule": "linear"}, evaluate={"every": 1000})
    return train(ranks, annealed, folder, False)


def test_a_time_limit_anneals_the_learning_rate_alike_on_all_ranks(small_store: str, tmp_path: Path) -> None:
    first, second = run_ranks(2, limited_run, small_store, str(tmp_path / "run"))
    assert first["metrics"] == second["metrics"]
    assert first["train"]["steps"] == second["train"]["steps"]
    rates = [line["learning_rate"] for line in lines(tmp_path / "run")]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01  # of 0.1


def test_a_line_without_steps_has_the_loss_of_the_one_before(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    should_continue = run_module.Training._should_continue
    monkeypatch.setattr(run_module, "REPORT_SECONDS", 0.0)
    # It reports, and then the epoch ends before another step.
    monkeypatch.setattr(
        run_module.Training, "_should_continue", lambda self, step: should_continue(self, step) and step == 0
    )
    train_on_rank(config(small_store, train={"batch_size": 64}), tmp_path / "run", Ranks.single())
    first, second, *_ = lines(tmp_path / "run")
    assert first["step"] == second["step"] > 0
    assert first["loss"] == second["loss"] > 0


def test_training_stops_when_validation_no_longer_rises(small_store: str, tmp_path: Path) -> None:
    patient = config(
        small_store,
        train={"epochs": 500, "patience": 1},
        evaluate={"every": 1},
        optimizer={"learning_rate": 1e-12},
    )
    result = train(Ranks.single(), patient, str(tmp_path), False)
    assert result["train"]["epochs"] == 2


def test_a_diverged_run_says_so(small_store: str, tmp_path: Path) -> None:
    wild = config(small_store, optimizer={"learning_rate": 1e30})
    with pytest.raises(DivergedError, match=r"lower optimizer\.learning_rate"):
        train(Ranks.single(), wild, str(tmp_path), False)


def test_the_loss_curve_is_the_one_recorded(small_store: str, tmp_path: Path) -> None:
    """Golden losses of five epochs: a change of formula, seed or order shows here."""
    golden = config(small_store, train={"epochs": 5}, model={"name": "distmult", "dim": 16, "dropout": 0.0})
    train(Ranks.single(), golden, str(tmp_path), False)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert losses == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = [4.989344, 4.632748, 3.966657, 3.413235, 3.086994]


@pytest.mark.parametrize("source", ["near_miss", "nearest_neighbour", "cached"])
@pytest.mark.parametrize("size", [1, 2])
def test_sources_that_ask_the_model_train_with_it(small_store: str, tmp_path: Path, source: str, size: int) -> None:
    parts = [{"source": "uniform"}, {"source": source, "weight": [[0, 0], [0.5, 1]], "options": {"refresh": 0.5}}]
    run = config(
        small_store,
        objective={"name": "logistic"},
        negatives={"source": "mixture", "options": {"parts": parts}, "count": 9},
        optimizer={"name": "adam", "learning_rate": 0.02},
        train={"epochs": 12},
        evaluate={"every": 12},
    )
    folder = tmp_path / "run"
    arguments = (run, str(folder), False)
    result = train(Ranks.single(), *arguments) if size == 1 else run_ranks(2, train, *arguments)[0]
    assert all(np.isfinite(line["loss"]) for line in lines(folder))
    assert result["metrics"]["valid"]["mrr"] > 3 * _chance(small_store)


def _chance(store: str) -> float:
    """MRR of ranks at random."""
    return float(np.mean(1 / np.arange(1, Store.open(store).num_entities + 1)))
