"""Triples are ranked in parts whose known answers fit into memory, with the ranks that all at once have."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from distributed import run_ranks
from small_model import SmallModel, random_model

from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import KnownAnswers, TooManyKnownError
from distkg.evaluation import filtered_triples
from distkg.evaluation.filtered_triples import FilteredTriples
from distkg.evaluation.ranking import Ranking, rank_answers
from distkg.sharding.ranks import Ranks

FIELDS = ("queries", "answers", "greater", "equal")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    address = str(tmp_path_factory.mktemp("graph") / "store")
    generate(address, entities=120, relations=5, triples=2500, seed=3)
    return Store.open(address)


def ranked(store: Store, ranks: Ranks, most: int, count: int = 60) -> tuple[Ranking, list[int], list[int]]:
    """The ranking, the number of triples of each part, and of the known answers that this rank held."""
    model = SmallModel(*random_model(store.num_entities, store.num_relations, 4, 1, integers=True), ranks=ranks)
    parts, held = [], []

    def rank(triples: np.ndarray, known: KnownAnswers) -> Ranking:
        parts.append(len(triples))
        held.append(len(known.answers))
        return rank_answers(model, triples, known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filtered_triples, "HELD_AT_ONCE", most)
        ranking = FilteredTriples(store, store.triples("test")[:count], ranks, sharded=True).rank(rank)
    return ranking, parts, held


def test_parts_have_the_ranks_of_all_at_once(store: Store) -> None:
    whole, one, _ = ranked(store, Ranks.single(), 1 << 24)
    count = len(store.triples("test")[:60])
    assert one == [count]
    for most in (300, 40, 1):
        parted, parts, held = ranked(store, Ranks.single(), most)
        assert sum(parts) == count
        assert len(parts) > 1
        # More are held only for a single triple.
        assert all(known <= most or part == 1 for known, part in zip(held, parts, strict=True))
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(parted, field), getattr(whole, field))
    assert set(parts) == {1}


def test_ranks_hold_their_own_entities_and_agree_on_the_parts(store: Store) -> None:
    whole, _, (held,) = ranked(store, Ranks.single(), 1 << 24)
    for most in (1 << 24, 60):
        results = run_ranks(3, on_rank, store.address, most)
        for ranking, parts, _ in results:
            assert parts == results[0][1]
            for field in FIELDS:
                np.testing.assert_array_equal(getattr(ranking, field), getattr(whole, field))
        if most > held:
            assert sum(known[0] for _, _, known in results) == held, "every known answer is held by one rank"
    assert len(results[0][1]) > 1


def on_rank(ranks: Ranks, address: str, most: int) -> tuple[Ranking, list[int], list[int]]:
    return ranked(Store.open(address), ranks, most)


def test_known_answers_that_fit_are_kept_for_the_next_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    find = KnownAnswers.for_queries.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        KnownAnswers, "for_queries", classmethod(lambda cls, *args, **how: read.append(1) or find(cls, *args, **how))
    )
    model = SmallModel(*random_model(store.num_entities, store.num_relations, 4, 1, integers=True))
    chosen = FilteredTriples(store, store.triples("test")[:10], sharded=True)
    first, second = (chosen.rank(partial(rank_answers, model)) for _ in range(2))
    assert len(read) == 1
    np.testing.assert_array_equal(first.greater, second.greater)
    monkeypatch.setattr(filtered_triples, "HELD_AT_ONCE", 1)
    FilteredTriples(store, store.triples("test")[:10], sharded=True).rank(partial(rank_answers, model))
    assert len(read) > 10


def test_more_than_allowed_is_an_error() -> None:
    facts, queries = np.array([[0, 0, 1], [0, 0, 2], [3, 0, 1]]), np.array([[0, 0]])
    held = KnownAnswers.for_queries([facts], 1, queries, most=2)
    assert held.answers.tolist() == [1, 2]
    assert KnownAnswers.for_queries([facts], 1, queries, own=(2, 9), most=1).answers.tolist() == [2]
    with pytest.raises(TooManyKnownError, match="more than 1 facts answer 1 queries"):
        KnownAnswers.for_queries([facts], 1, queries, most=1)


def test_a_split_without_known_answers() -> None:
    assert KnownAnswers.for_queries([], 1, np.array([[0, 0]]), own=(0, 1)).answers.tolist() == []
