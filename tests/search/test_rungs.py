"""Rungs of a search: their sizes, their cores, the configurations of their trials, and who is promoted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distkg.config import RunConfig
from distkg.data.errors import StoreError
from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.search.core_stores import Cores, core_address, plan_rungs_of, store_of_rungs, write_core_stores
from distkg.search.rungs import (
    DONE,
    WAIT,
    Core,
    Proposal,
    Rung,
    Started,
    check_batches,
    describe_rungs,
    next_proposal,
    plan_rungs,
    promoted,
    rung_config,
    rung_sizes,
)
from distkg.search.space import SpaceError, parse_space
from distkg.search.trials import SearchError, Trial

WHOLE = Core(0, 100, 1000, -1)
CORES = [WHOLE, Core(1, 100, 1000, -1), Core(2, 60, 700, -1), Core(3, 40, 400, -1), Core(4, 10, 130, -1)]
VALID = {0: 300, 1: 300, 2: 200, 3: 80, 4: 20}


def config(**sections: object) -> RunConfig:
    base = {"data": {"store": "s"}, "model": {"name": "distmult", "dim": 32}, "train": {"epochs": 64}}
    return RunConfig.model_validate(base | sections)


def rung(trials: int, triples: int = 400, **changes: object) -> Rung:
    values = {"share": 0.25, "core": 3, "entities": 40, "valid_triples": 80, "entity_share": 0.4, "epochs": 16}
    return Rung(trials=trials, triples=triples, **(values | changes))  # type: ignore[arg-type]


def trial(number: int, mrr: float | None, rung: int = 1, state: str = "finished", source: int | None = None) -> Trial:
    return Trial(number, {"model.dim": number}, state, mrr, 1, 1, rung=rung, promoted_from=source)  # type: ignore[arg-type]


def test_every_rung_reduces_the_trials_alike() -> None:
    assert rung_sizes(64, 3) == [64, 16, 4]  # eta = 4, as in GraSH
    assert rung_sizes(32, 3) == [32, 10, 3]
    assert rung_sizes(9, 1) == [9]
    assert rung_sizes(4, 2) == [4, 2]
    with pytest.raises(SearchError, match=r"--trials 3 are too few for --rungs 3: .* Give --trials 4 or more"):
        rung_sizes(3, 3)
    assert rung_sizes(4, 3) == [4, 3, 2]


@given(st.integers(1, 6), st.integers(1, 300))
def test_rungs_shrink_to_more_than_one_trial(rungs: int, trials: int) -> None:
    try:
        sizes = rung_sizes(trials, rungs)
    except SearchError:
        assert trials < 2**rungs
        return
    assert sizes[0] == trials
    assert len(sizes) == rungs
    assert all(a > b for a, b in zip(sizes, [*sizes[1:], 1], strict=True))


def test_a_rung_takes_the_smallest_core_with_its_share_and_epochs_make_up_the_rest() -> None:
    found = plan_rungs(config(), CORES, VALID.__getitem__, [16, 4], budget=2)
    # A trial of the first rung may cost 1/16: at least 1/4 of the triples; the 3-core has 0.4 of them. The 4-core with
    # 0.13 would be too small, and has fewer than 50 validation triples.
    assert found[0] == Rung(16, 1 / 16, 3, 40, 400, 80, 0.4, 10)
    assert found[0].epochs == round(64 / 16 / 0.4)
    assert found[1] == Rung(4, 1 / 4, 2, 60, 700, 200, 0.6, 23)


def test_a_core_with_few_validation_triples_is_not_taken() -> None:
    few = {**VALID, 3: 49}
    assert plan_rungs(config(), CORES, few.__getitem__, [16], budget=1)[0].core == 2
    # Where the whole graph has fewer than 50, a core must have all of them.
    fewest = {0: 30, 1: 30, 2: 30, 3: 29, 4: 1}
    assert plan_rungs(config(), CORES, fewest.__getitem__, [16], budget=1)[0].core == 2


def test_a_graph_without_smaller_cores_is_searched_by_epochs_alone() -> None:
    tree = [Core(0, 10, 9, -1), Core(1, 10, 9, -1)]
    (only,) = plan_rungs(config(), tree, lambda k: 5, [16], budget=1)
    assert (only.core, only.triples, only.epochs) == (0, 9, 4)


def test_a_budget_above_what_full_runs_cost_changes_nothing() -> None:
    (only,) = plan_rungs(config(), CORES, VALID.__getitem__, [4], budget=100)
    assert (only.share, only.core, only.epochs) == (1.0, 0, 64)


def test_a_budget_of_less_than_an_epoch_is_refused() -> None:
    with pytest.raises(SearchError, match=r"trials of rung 1 would train for 0\.31 epochs: .* larger --budget"):
        plan_rungs(config(train={"epochs": 2}), CORES, VALID.__getitem__, [16, 4], budget=2)


@given(st.integers(1, 4), st.integers(16, 200), st.floats(0.5, 8))
def test_rungs_cost_what_was_given(rungs: int, trials: int, budget: float) -> None:
    """Rounding of epochs apart, no rung costs more than its part, unless its smallest core is already too large."""
    settings = config(train={"epochs": 10_000})
    for each in plan_rungs(settings, CORES, VALID.__getitem__, rung_sizes(trials, rungs), budget):
        cost = each.trials * each.triples / 1000 * each.epochs / 10_000
        part = min(each.trials, budget / rungs)
        assert cost == pytest.approx(part, rel=0.5 / (each.epochs - 0.5) + 1e-9)
        assert each.triples >= 1000 * np.sqrt(each.share) - 1e-9


def test_a_trial_of_a_rung_is_reduced_in_all_that_its_cost_depends_on() -> None:
    base = config(
        objective={"name": "self_adversarial"},
        negatives={"count": 33},
        optimizer={"warmup_epochs": 8},
        train={"epochs": 64, "time_limit_seconds": 100},
    )
    reduced = rung_config(base, rung(4), "cores/3")
    assert reduced.data.store == "cores/3"
    assert (reduced.train.epochs, reduced.train.time_limit_seconds) == (16, 25)
    assert reduced.optimizer.warmup_epochs == 2
    assert reduced.negatives.count == 14  # 0.4 · 33, rounded up
    # An objective over all entities has no negatives.
    everything = rung_config(config(objective={"name": "one_vs_all"}), rung(4), "cores/3")
    assert "negatives" not in everything.model_dump()


def test_batches_larger_than_a_core_are_refused() -> None:
    rungs = [rung(16, 400), rung(4, 700)]
    check_batches(config(train={"batch_size": 400}), {}, rungs)
    with pytest.raises(SearchError, match=r"^train\.batch_size is 401, and the 3-core of rung 1 has 400 training"):
        check_batches(config(train={"batch_size": 401}), {}, rungs)
    space = parse_space({"train.batch_size": {"int_log_uniform": [64, 512]}}, "s")
    with pytest.raises(SpaceError, match=r"the space: the largest train\.batch_size is 512, and the 3-core of rung 1"):
        check_batches(config(train={"batch_size": 64}), space, rungs)
    check_batches(config(train={"batch_size": 900}), parse_space({"train.batch_size": {"choice": [64]}}, "s"), rungs)


def test_rungs_are_described_by_their_graphs_and_costs() -> None:
    assert list(describe_rungs([rung(16), rung(4, core=0)])) == [
        "rung 1: 16 trials on the 3-core (400 training triples, 40 entities, 80 validation triples) for 16 epochs: "
        "0.25 of a full run each",
        "rung 2: 4 trials on the whole graph (400 training triples, 40 entities, 80 validation triples) for 16 epochs: "
        "0.25 of a full run each",
    ]


def test_a_rung_begins_when_the_one_before_has_ended() -> None:
    rungs = [rung(4), rung(2)]
    started = [Started(n, 1, None) for n in (1, 2, 3)]
    assert next_proposal(rungs, started, []) == Proposal(1)
    started.append(Started(4, 1, None))
    ended = [trial(2, 0.5), trial(1, 0.25), trial(4, None, state="failed")]
    assert next_proposal(rungs, started, ended) == WAIT
    ended.append(trial(3, 0.75))
    best, second = trial(3, 0.75), trial(2, 0.5)
    assert next_proposal(rungs, started, ended) == Proposal(2, best)
    started.append(Started(5, 2, 3))
    assert next_proposal(rungs, started, ended) == Proposal(2, second)
    started.append(Started(6, 2, 2))
    assert next_proposal(rungs, started, ended) == WAIT
    # Scores of the second rung do not change who was promoted from the first.
    ended.append(trial(5, 0.9, 2, source=3))
    assert next_proposal(rungs, started, ended) == WAIT
    ended.append(trial(6, 0.1, 2, source=2))
    assert next_proposal(rungs, started, ended) == DONE


def test_only_finished_trials_are_promoted_and_a_rung_of_failures_ends_the_search() -> None:
    rungs = [rung(3), rung(2)]
    started = [Started(n, 1, None) for n in (1, 2, 3)]
    failed = [trial(n, None, state="failed") for n in (1, 2, 3)]
    assert next_proposal(rungs, started, failed) == DONE
    one = [*failed[:2], trial(3, 0.5)]
    assert next_proposal(rungs, started, one) == Proposal(2, one[2])
    assert next_proposal(rungs, [*started, Started(4, 2, 3)], [*one, trial(4, 0.5, 2, source=3)]) == DONE


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12), st.integers(1, 5))
def test_promotion_takes_the_best_finished_ones_by_a_total_order(ends: list[tuple[int, bool]], count: int) -> None:
    ended = [trial(i, mrr / 4, state="finished" if ok else "failed") for i, (mrr, ok) in enumerate(ends, 1)]
    chosen = promoted(ended, 1, count)
    rest = [each for each in ended if each.state == "finished" and each not in chosen]
    assert len(chosen) == min(count, sum(ok for _, ok in ends))
    assert all((a.value, -a.number) > (b.value, -b.number) for a in chosen for b in rest)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = str(tmp_path_factory.mktemp("rungs") / "store")
    generate(path, entities=300, relations=6, triples=3000, seed=1)
    return Store.open(path)


def test_sizes_of_cores_are_those_of_their_stores(store: Store, tmp_path: Path) -> None:
    cores = Cores(store)
    sizes = cores.sizes()
    assert sizes[0] == Core(0, store.num_entities, store.manifest.triples["train"], -1)
    k = next(core.k for core in sizes if core.triples < 0.6 * sizes[0].triples)
    cores.write(k, str(tmp_path / "core"))
    core = Store.open(str(tmp_path / "core"))
    counts = core.manifest.triples
    assert (core.num_entities, counts["train"]) == (sizes[k].entities, sizes[k].triples)
    assert counts["valid"] == cores.count_valid(k) > 0
    # In a k-core every entity is in k triples with others; one removal more would be a larger k.
    train = core.triples("train")
    ends = train[train[:, 0] != train[:, 2]][:, ::2]
    assert np.bincount(ends.ravel(), minlength=core.num_entities).min() >= k


def test_stores_of_cores_are_made_once(store: Store, tmp_path: Path) -> None:
    base = config(data={"store": store.address})
    rungs = plan_rungs_of(base, [16, 2], 2)
    assert len({each.core for each in rungs}) == 2
    write_core_stores(base, rungs, str(tmp_path))
    manifests = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cores/*/manifest.json")}
    assert [path.parent.name for path in sorted(manifests)] == sorted(str(each.core) for each in rungs)
    write_core_stores(base, rungs, str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("cores/*/manifest.json")} == manifests
    assert core_address(base, rungs[0], str(tmp_path)) == str(tmp_path / "cores" / str(rungs[0].core))
    assert core_address(base, rung(4, core=0), str(tmp_path)) == store.address


def test_a_core_of_another_store_is_not_taken(store: Store, tmp_path: Path) -> None:
    generate(str(tmp_path / "other"), entities=300, relations=6, triples=3000, seed=2)
    base = config(data={"store": store.address})
    rungs = plan_rungs_of(base, [16, 2], 2)
    write_core_stores(base, rungs, str(tmp_path))
    other = config(data={"store": str(tmp_path / "other")})
    with pytest.raises(StoreError, match=r"cores/\d+ holds another store than the \d+-core of .*other\. Remove it"):
        write_core_stores(other, rungs, str(tmp_path))


def test_a_half_written_core_is_written_again(store: Store, tmp_path: Path) -> None:
    base = config(data={"store": store.address})
    rungs = plan_rungs_of(base, [16, 2], 2)
    folder = tmp_path / "cores" / str(rungs[0].core)
    folder.mkdir(parents=True)
    (folder / ".incomplete").write_text("")
    (folder / "train.parquet").write_text("cut o")
    write_core_stores(base, rungs, str(tmp_path))
    assert Store.open(str(folder)).manifest.triples["train"] == rungs[0].triples


def test_rungs_need_one_graph_that_is_read_whole(store: Store) -> None:
    with pytest.raises(SearchError, match=r"--rungs train on k-cores of the graph in data\.store, and ultra trains on"):
        store_of_rungs(RunConfig.model_validate({"data": {"graphs": [store.address]}, "model": {"name": "ultra"}}))
    grown = config(data={"store": store.address}, train={"facts": "new"})
    with pytest.raises(SearchError, match=r"train\.facts: new needs the whole graph\. Leave --rungs or"):
        store_of_rungs(grown)


def test_cores_of_a_search_in_an_object_store_lie_there(store: Store, bucket: Callable[[str], str]) -> None:
    base = config(data={"store": store.address})
    rungs = plan_rungs_of(base, [16, 2], 2)
    search = bucket("searches/mine")
    write_core_stores(base, rungs, search)
    write_core_stores(base, rungs, search)
    core = Store.open(core_address(base, rungs[0], search))
    assert (core.num_entities, core.manifest.triples["train"]) == (rungs[0].entities, rungs[0].triples)
    core.verify()
