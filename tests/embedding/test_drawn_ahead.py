"""Training with negatives drawn ahead of time: what is reported, what is refused, what is the same as without."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process_pool import in_process

from distkg.config import ConfigError, RunConfig
from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.embedding.batches import SampledBatches
from distkg.embedding.build import build_objective, check_objective
from distkg.embedding.model import TrainingModel
from distkg.negatives import SOURCES, Negatives, TrainingGraph
from distkg.negatives.prefetch.messages import Reply
from distkg.negatives.prefetch.pool_events import NegativePoolError
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from distkg.training.services import Services


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "store"
    generate(str(folder), entities=120, relations=4, triples=1200, seed=1)
    return folder


def run_config(store: Path | str = "", **negatives: Any) -> RunConfig:
    chosen = {"source": "near_miss", "options": {"neighbours": 6}, "count": 4, "pool": {"actors": 1}, **negatives}
    return RunConfig.model_validate(
        {
            "data": {"store": str(store)},
            "model": {"name": "distmult", "dim": 8},
            "objective": {"name": "logistic"},
            "negatives": chosen,
            "train": {"workers": 1, "epochs": 3, "batch_size": 100},
            "evaluate": {"every": 3},
        }
    )


def train(config: RunConfig, run: Path, **faults: Any) -> list[dict[str, Any]]:
    graph = TrainingGraph.of_store(Store.open(config.data.store))
    pool_of, _ = in_process(graph, config.negatives.source, config.negatives.options, **faults)
    services = Services(pool_of=pool_of) if config.negatives.pool.actors else Services()
    train_on_rank(config, run, Ranks.single(), services=services)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_report_says_how_negatives_came_and_how_hard_they_were(store: Path, tmp_path: Path) -> None:
    lines = train(run_config(store), tmp_path / "run")
    for line in lines:
        reported = line["negatives"]
        assert reported["delivered"] == 1.0
        assert [reported[name] for name in ("late", "old", "broken", "refused", "restarts")] == [0] * 5
        assert math.isfinite(reported["score"])
        assert math.isfinite(reported["uniform_score"])
    # An epoch has 12 steps and vectors are published once in it, 16 steps before the first that looks at them.
    ages = [(line["negatives"]["age_median"], line["negatives"]["age_max"]) for line in lines]
    assert ages == [(5, 10), (16, 21), (21, 24)]


def test_a_pool_that_never_answers_ends_with_the_counts_and_a_finite_loss(store: Path, tmp_path: Path) -> None:
    lines = train(run_config(store), tmp_path / "run", spoil=lambda reply: None)
    triples = Store.open(str(store)).manifest.triples["train"]
    assert [line["negatives"]["late"] for line in lines] == [2 * triples] * 3
    assert {line["negatives"]["delivered"] for line in lines} == {0.0}
    assert {line["negatives"]["age_median"] for line in lines} == {None}
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_replies_of_not_a_number_are_counted_and_do_not_reach_the_loss(store: Path, tmp_path: Path) -> None:
    def spoil(reply: Reply) -> Reply:
        return Reply(torch.full(reply.entities.shape, torch.nan).numpy(), reply.mask, reply.version)

    lines = train(run_config(store), tmp_path / "run", spoil=spoil)
    assert all(line["negatives"]["broken"] > 0 and line["negatives"]["delivered"] == 0 for line in lines)
    assert all(math.isfinite(line["loss"]) for line in lines)


def raise_in_pool(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Have the source of the run raise from its ``first`` draw on."""
    draw, calls = SOURCES["near_miss"].draw, 0

    def unlucky(*given: Any) -> Negatives:
        nonlocal calls
        calls += 1
        if calls >= first:
            raise RuntimeError("no luck today")
        return draw(*given)

    monkeypatch.setattr(SOURCES["near_miss"], "draw", unlucky)


def test_a_source_that_raises_ends_the_run(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_in_pool(monkeypatch, first=15)
    with pytest.raises(NegativePoolError, match=r"source near_miss.* step 14: RuntimeError: no luck today"):
        train(run_config(store), tmp_path / "run")


@pytest.mark.parametrize("pool", [{"fallback": "uniform"}, {"on_error": "fallback"}])
def test_a_source_that_raises_is_counted_where_the_fallback_was_chosen(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: dict[str, Any]
) -> None:
    raise_in_pool(monkeypatch, first=12)  # an epoch has 11 steps
    lines = [line["negatives"] for line in train(run_config(store, pool={"actors": 1, **pool}), tmp_path / "run")]
    triples = Store.open(str(store)).manifest.triples["train"]
    assert [line["failed"] for line in lines] == [0, 2 * triples, 2 * triples]
    assert [line["delivered"] for line in lines] == [1.0, 0.0, 0.0]
    assert [line["late"] + line["broken"] + line["lost"] for line in lines] == [0] * 3
    # Draws are requested ahead, so the first report may hear of what raises in the next epoch.
    (warning,) = [text for line in lines for text in line.get("warnings", [])]
    assert "near_miss, drawing negatives for step 11: RuntimeError: no luck today" in warning
    assert warning.endswith("negatives.pool.fallback draws instead; `failed` in metrics.jsonl counts the queries")


def test_a_source_that_remembers_nothing_trains_as_in_the_step(store: Path, tmp_path: Path) -> None:
    pooled = train(run_config(store, source="relational", options={}), tmp_path / "pooled")
    stepped = train(run_config(store, source="relational", options={}, pool={"actors": 0}), tmp_path / "stepped")
    assert [line["loss"] for line in pooled] == [line["loss"] for line in stepped]


def test_false_negatives_are_counted(store: Path, tmp_path: Path) -> None:
    lines = train(run_config(store, source="relational", options={}, filter=True), tmp_path / "filtered")
    assert all(line["negatives"]["false_negatives_removed"] > 0 for line in lines)
    lines = train(run_config(store, source="near_miss", filter=True), tmp_path / "near")
    assert all(line["negatives"]["false_negatives_removed"] == 0 for line in lines), "near misses are never known"


def test_shared_negatives_are_not_reported_on(store: Path, tmp_path: Path) -> None:
    lines = train(run_config(store, source="uniform", options={}, pool={"actors": 0}), tmp_path / "run")
    assert all("negatives" not in line for line in lines)


def test_actors_without_ray_are_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"negatives\.pool\.actors .* without Ray.*distkg train"):
        train_on_rank(run_config(store), tmp_path / "run", Ranks.single())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"negatives": {"source": "uniform", "pool": {"actors": 1}}}, r"uniform needs no model"),
        ({"objective": {"name": "one_vs_all"}}, r"one_vs_all draws no negatives"),
        (
            {"negatives": {"source": "relational", "pool": {"actors": 1, "fallback": "cached"}}},
            r"negatives\.pool\.fallback: cached needs the model",
        ),
        ({"negatives": {"source": "relational", "pool": {"actors": 1, "fallback": "unifrom"}}}, r"unifrom.*uniform"),
    ],
)
def test_a_pool_with_nothing_to_do_is_refused_before_workers_start(changes: dict[str, Any], message: str) -> None:
    settings = run_config().model_dump() | {"negatives": {"source": "relational", "pool": {"actors": 1}}}
    with pytest.raises(ValueError, match=message):
        check_objective(RunConfig.model_validate(settings | changes))


def test_a_mixture_follows_the_time_limit_where_that_ends_the_run(store: Path) -> None:
    parts = [{"source": "uniform"}, {"source": "relational", "weight": [[0, 0], [1, 1]]}]
    config = run_config(store, source="mixture", options={"parts": parts}, pool={"actors": 0})
    gone = [0.0]
    opened = Store.open(str(store))
    model = TrainingModel(config, opened.num_entities, opened.num_relations, Ranks.single())
    batches, _ = build_objective(config, opened, model, time_gone=lambda: gone[0])
    assert isinstance(batches, SampledBatches)
    heard: list[float] = []
    batches.source.advance = lambda moment: heard.append(moment.progress)  # type: ignore[method-assign]
    batches.window(0, 0, 1)
    gone[0] = 0.75
    batches.window(0, 1, 2)
    batches.window(2, batches.steps - 1, batches.steps)
    assert heard == [0.0, 0.75, pytest.approx(1 - 1 / (3 * batches.steps))]


@pytest.mark.parametrize("kind", ["snap", "embedding"])
@pytest.mark.parametrize("actors", [0, 1])
def test_what_dans_makes_is_reported_by_band(store: Path, tmp_path: Path, kind: str, actors: int) -> None:
    options = {"negatives": kind, "refresh": 1.0, "least_distance": 0.0, "every": 1}
    config = run_config(store, source="dans", options=options, pool={"actors": actors})
    lines = train(config, tmp_path / "run")
    for line in lines:
        reported = line["negatives"]
        bands = reported["band_scores"]
        assert list(bands) == ["hardest", "hard", "easy", "easiest"]
        shown = [score for score in (reported["score"], *bands.values()) if score is not None]
        assert len(shown) > 1
        assert all(math.isfinite(score) for score in shown)
        assert math.isfinite(line["loss"])
        assert reported.get("delivered", 1.0) == 1.0
