"""A run that other numbers of workers continue in mid-epoch trains on each triple or query of the epoch once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distkg.config import RunConfig
from distkg.data.store.graph_store import Store
from distkg.embedding.loop import Loop, RoutedBatch
from distkg.sharding.checkpoint.files import write_manifest
from distkg.sharding.checkpoint.manifest import CheckpointManifest, read_manifest
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from distkg.training.services import Services
from tests.distributed import run_ranks
from tests.training.test_run import config, entity_rows
from tests.training.test_stopping import StopAfter

Asked = list[tuple[int, ...]]
OBJECTIVES = ("logistic", "logistic in buckets", "k_vs_all", "query_sampling")
EVER = 1 << 40


def run_config(store: str, objective: str, **train: Any) -> RunConfig:
    objective, _, order = objective.partition(" in ")
    train = {**({"resident_share": 0.2} if order == "buckets" else {}), **train}
    model = {"name": "rotate", "dim": 8} if objective == "query_sampling" else {"name": "distmult", "dim": 8}
    negatives = {"negatives": {"count": 4, "chunk_size": 16}} if objective == "logistic" else {}
    return config(
        store,
        model=model,
        objective={"name": objective},
        train={"epochs": 2, "batch_size": 64, **train},
        evaluate={"every": 2},
        checkpoint={"every_steps": 3, "keep": 50},
        **negatives,
    )


def trained(
    ranks: Ranks, run: RunConfig, folder: str, looks: int = EVER, accept: bool = False
) -> tuple[dict[str, Any], Asked]:
    """The result, or at which step the run was stopped; and the queries of this rank's steps of the first epoch."""
    compute, asked = Loop._compute, list[tuple[int, ...]]()

    def seen(self: Loop, epoch: int, routed: RoutedBatch, rows: Any) -> Any:
        batch: Any = routed.batch
        if epoch == 0:
            columns = [batch.ids[batch.anchor], batch.relation]
            columns += [batch.ids[batch.answer]] if hasattr(batch, "answer") else []
            asked.extend(tuple(row) for row in torch.stack(columns, 1).tolist())
        return compute(self, epoch, routed, rows)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loop, "_compute", seen)
        services = Services(stop=StopAfter(looks))
        result = train_on_rank(run, Path(folder), ranks, resume=True, accept_changes=accept, services=services)
    return result, asked


def begun_by_two(ranks: Ranks, store: str, folder: str) -> list[tuple[dict[str, Any], Asked]]:
    """Both workers of each run, stopped in the first epoch."""
    return [trained(ranks, run_config(store, name), f"{folder}/{name}", looks=2) for name in OBJECTIVES]


def continued_by_three(ranks: Ranks, store: str, folder: str) -> list[list[tuple[dict[str, Any], Asked]]]:
    """Three workers at once to the end; and stopped, copied for one worker, and to the end."""
    found = []
    for name in OBJECTIVES:
        run, own = run_config(store, name), f"{folder}/{name}"
        calm = trained(ranks, run, f"{own}-calm")
        begun = trained(ranks, run, own, looks=1)
        if ranks.first:
            shutil.copytree(own, f"{own}-for-one")
        ranks.barrier()
        found.append([calm, begun, trained(ranks, run, own)])
    return found


def queries_of(store: Store, objective: str) -> Asked:
    facts, relations = store.triples("train").tolist(), store.num_relations
    queries = [(h, r, t) for h, r, t in facts] + [(t, r + relations, h) for h, r, t in facts]
    return sorted({query[:2] for query in queries} if objective == "k_vs_all" else queries)


@pytest.mark.timeout(300)
def test_two_workers_then_three_then_one_ask_each_query_of_the_epoch_once(small_store: str, tmp_path: Path) -> None:
    two = run_ranks(2, begun_by_two, small_store, str(tmp_path))
    for name in OBJECTIVES:
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-calm")
    three = run_ranks(3, continued_by_three, small_store, str(tmp_path))
    for place, name in enumerate(OBJECTIVES):
        one, last = trained(Ranks.single(), run_config(small_store, name), str(tmp_path / f"{name}-for-one"))
        first = [query for own in two for query in own[place][1]]
        calm, begun, ended = ([query for own in three for query in own[place][run][1]] for run in range(3))
        expected = queries_of(Store.open(small_store), name)
        assert sorted(first + calm) == expected
        assert sorted(first + begun + ended) == expected
        assert sorted(first + begun + last) == expected
        assert all([begun, ended, last])
        results = [two[0][place][0], *(three[0][place][run][0] for run in (1, 0, 2)), one]
        stops, steps = [result["stopped"] for result in results[:2]], [r["train"]["steps"] for r in results[2:]]
        assert 0 < stops[0] < stops[1] < steps[0] // 2, "stopped in the first epoch"
        assert steps == [steps[0]] * 3
        np.testing.assert_array_equal(entity_rows(tmp_path / name), entity_rows(tmp_path / f"{name}-calm"))
        half = steps[0] // 2
        assert last_notice(tmp_path / name) == (
            f"training goes on from step {stops[0]} (epoch {stops[0] / half:.3g}) with 3 workers, earlier with 2"
        )
        assert last_notice(tmp_path / f"{name}-for-one") == (
            f"training goes on from step {stops[1]} (epoch {stops[1] / half:.3g}) with 1 worker, earlier with 3"
        )


def last_notice(run: Path) -> str:
    return str(json.loads((run / "notices.jsonl").read_text().splitlines()[-1])["notice"])


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir(), key=lambda path: path.name)


def without_segments(run: Path) -> None:
    """Make the newest checkpoint one of an earlier version."""
    manifest = read_manifest(newest(run))
    progress = {key: value for key, value in manifest.progress.items() if key != "segments"}
    write_manifest(newest(run), CheckpointManifest(**manifest.model_dump() | {"progress": progress}))


def begin(ranks: Ranks, run: RunConfig, folder: str) -> Asked:
    return trained(ranks, run, folder, looks=2)[1]


@pytest.mark.parametrize("earlier", [False, True])
def test_the_workers_of_a_checkpoint_count_where_it_does_not_say_more(
    small_store: str, tmp_path: Path, earlier: bool
) -> None:
    run = run_config(small_store, "logistic")
    first = [query for own in run_ranks(2, begin, run, str(tmp_path)) for query in own]
    assert json.loads((newest(tmp_path) / "manifest.json").read_text())["progress"]["segments"][0]["workers"] == 2
    if earlier:
        without_segments(tmp_path)
    rest = trained(Ranks.single(), run, str(tmp_path))[1]
    assert sorted(first + rest) == queries_of(Store.open(small_store), "logistic")


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 100}, {"batch_size": 1024}, {"batch_size": 9}, {"seed": 8}, {"resident_share": 0.3}],
)
def test_other_settings_of_the_order_in_mid_epoch_leave_each_triple_to_one_step(
    small_store: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    first = begin(Ranks.single(), run_config(small_store, "logistic"), str(tmp_path))
    other = run_config(small_store, "logistic", **changes)
    rest = trained(Ranks.single(), other, str(tmp_path), accept=True)[1]
    assert all([first, rest])
    assert sorted(first + rest) == queries_of(Store.open(small_store), "logistic")
