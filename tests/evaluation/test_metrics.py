"""Metrics against numbers worked out by hand, and a whole evaluation against one made of sets and loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import SmallModel

from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store
from distkg.evaluation.metrics import (
    evaluate_triples,
    metrics_by_category,
    metrics_by_half_link,
    metrics_by_relation,
    metrics_by_side,
    ranking_metrics,
    subsample,
)
from distkg.evaluation.ranking import Ranking

# Two triples of relation 0 and one of relation 2, of R = 3; realistic ranks 1, 2.5, 11, then 4, 1, 2.
RANKING = Ranking(
    queries=np.array([[0, 0], [1, 0], [2, 2], [5, 3], [6, 3], [7, 5]], np.int32),
    answers=np.array([5, 6, 7, 0, 1, 2], np.int32),
    greater=np.array([0, 1, 10, 3, 0, 0]),
    equal=np.array([0, 1, 0, 0, 0, 2]),
)


def test_metrics_written_by_hand() -> None:
    metrics = ranking_metrics(RANKING)
    assert metrics["queries"] == 6
    assert metrics["mean_rank"] == pytest.approx((1 + 2.5 + 11 + 4 + 1 + 2) / 6)
    assert metrics["mrr"] == pytest.approx((1 + 0.4 + 1 / 11 + 0.25 + 1 + 0.5) / 6)
    assert metrics["mrr_optimistic"] == pytest.approx((1 + 0.5 + 1 / 11 + 0.25 + 1 + 1) / 6)
    assert metrics["mrr_pessimistic"] == pytest.approx((1 + 1 / 3 + 1 / 11 + 0.25 + 1 + 1 / 3) / 6)
    assert [metrics[f"hits@{k}"] for k in (1, 3, 10)] == pytest.approx([2 / 6, 4 / 6, 5 / 6])


def test_sides_are_told_apart_by_the_direction_of_the_relation() -> None:
    sides = metrics_by_side(RANKING, 3)
    assert sides["tail"]["mean_rank"] == pytest.approx(14.5 / 3)
    assert sides["head"]["mean_rank"] == pytest.approx(7 / 3)
    assert sides["tail"]["queries"] == sides["head"]["queries"] == 3


def test_a_relation_and_its_inverse_count_together() -> None:
    first, last = metrics_by_relation(RANKING, 3)  # relation 1 has no queries
    assert (first["relation"], first["queries"], first["mean_rank"]) == (0, 4, pytest.approx(8.5 / 4))
    assert (last["relation"], last["queries"], last["mean_rank"]) == (2, 2, pytest.approx(6.5))
    assert (last["mrr_tail"], last["mrr_head"]) == (pytest.approx(1 / 11), pytest.approx(0.5))


def test_relations_are_pooled_by_category() -> None:
    apart = metrics_by_category(RANKING, ["n-1", "1-1", "n-n"], 3)
    assert list(apart) == ["n-1", "n-n"]
    assert apart["n-1"]["mean_rank"] == pytest.approx(8.5 / 4)
    together = metrics_by_category(RANKING, ["n-1", "1-1", "n-1"], 3)
    assert together["n-1"]["mrr"] == pytest.approx(ranking_metrics(RANKING)["mrr"])


def test_strata_tell_what_facts_show_of_the_query_and_of_the_answer() -> None:
    # Queries (0, 0) → 5, (1, 0) → 6, (2, 2) → 7 for tails, then (5, 0⁻¹) → 0, (6, 0⁻¹) → 1, (7, 2⁻¹) → 2 for heads.
    facts = np.array([[0, 0, 6], [1, 2, 7], [2, 1, 5]])
    strata = metrics_by_half_link(RANKING, [facts[:1], facts[1:]], 3)
    # Of relation 0, facts show head 0 and tail 6; of relation 2, head 1 and tail 7.
    expected = {"both seen": [], "query seen": [0, 4, 5], "answer seen": [1, 2, 3], "neither seen": []}
    assert {name: found["queries"] for name, found in strata.items()} == {"query seen": 3, "answer seen": 3}
    ranks = np.array([1, 2.5, 11, 4, 1, 2])
    for name, found in strata.items():
        assert found["mean_rank"] == pytest.approx(ranks[expected[name]].mean())
    more = metrics_by_half_link(RANKING, [np.array([[0, 0, 5], [9, 2, 9]])], 3)
    assert {name: found["queries"] for name, found in more.items()} == {"both seen": 2, "neither seen": 4}


def test_no_queries_have_no_metrics() -> None:
    nothing = Ranking(np.empty((0, 2), np.int32), *(np.empty(0, np.int64) for _ in range(3)))
    with pytest.raises(ValueError, match="there are no queries"):
        ranking_metrics(nothing)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """anna … emil worth 1 … 5; emil is seen in test only."""
    splits = {"train": "anna r ben|anna r carl|ben s carl|dora s carl", "valid": "anna r dora", "test": "anna r emil"}
    for split, facts in splits.items():
        (tmp_path / f"{split}.tsv").write_text(facts.replace(" ", "\t").replace("|", "\n") + "\n")
    prepare(str(tmp_path), str(tmp_path / "store"))
    return Store.open(str(tmp_path / "store"))


def test_an_evaluation_filters_by_every_split(store: Store) -> None:
    worth = {"anna": 5.0, "ben": 9.0, "carl": 8.0, "dora": 7.0, "emil": 4.0}
    rows = torch.tensor([[worth[label]] for label in store.entity_labels().to_pylist()])
    found = evaluate_triples(SmallModel(rows, torch.ones(4, 1)), store, "test")
    # Tail emil: ben, carl (train) and dora (valid) are known; only anna is above. Head anna: three are above.
    assert found["split"] == "test"
    assert found["metrics"]["mean_rank"] == 3.0
    assert found["by_side"]["tail"]["mean_rank"] == 2.0
    assert found["by_side"]["head"]["mean_rank"] == 4.0
    (relation,) = found["by_relation"]
    assert (relation["relation"], relation["category"], relation["mrr"]) == ("r", "1-n", 0.375)
    assert found["by_category"]["1-n"]["queries"] == 2


def test_a_part_of_a_split_is_the_same_every_time() -> None:
    triples = np.arange(300).reshape(100, 3)
    part = subsample(triples, 7, seed=3)
    assert len(np.unique(part[:, 0])) == 7
    assert np.array_equal(part, subsample(triples, 7, seed=3))
    assert not np.array_equal(part, subsample(triples, 7, seed=4))
    assert subsample(triples, None, seed=3) is subsample(triples, 100, seed=3)


def test_a_split_without_triples_is_named(store: Store) -> None:
    empty = Store(store.address, store._location, store.manifest.model_copy())
    empty.triples = lambda split: np.empty((0, 3), np.int32)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"split 'test' of .* holds no triples"):
        evaluate_triples(SmallModel(torch.ones(5, 1), torch.ones(4, 1)), empty, "test")
