"""The best answers, in one order whatever the cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from distributed import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import SmallModel, random_model

from distkg.data.store.known_answers import KnownAnswers
from distkg.evaluation import score_blocks as blocks
from distkg.evaluation.score_blocks import ScoreError
from distkg.evaluation.topk import TopAnswers, top_answers
from distkg.sharding.ranks import Ranks


def best_one_by_one(
    entities: torch.Tensor, relations: torch.Tensor, queries: np.ndarray, top: int, facts: np.ndarray
) -> list[list[tuple[int, float]]]:
    """(entity, score) of every query by sorting all entities: score down, id up."""
    half = len(relations) // 2
    known = {(h, r, t) for h, r, t in facts.tolist()} | {(t, r + half, h) for h, r, t in facts.tolist()}
    lists = []
    for anchor, relation in queries.tolist():
        scores = (entities * (entities[anchor] * relations[relation])).sum(1).tolist()
        left = [(e, s) for e, s in enumerate(scores) if (anchor, relation, e) not in known]
        lists.append(sorted(left, key=lambda pair: (-pair[1], pair[0]))[:top])
    return lists


def lists_of(result: TopAnswers) -> list[list[tuple[int, float]]]:
    rows = zip(result.entities.tolist(), result.scores.tolist(), strict=True)
    return [[(e, s) for e, s in zip(*row, strict=True) if e >= 0] for row in rows]


def random_queries(entities: int, relations: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, [entities, 2 * relations], (count, 2))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 40),
    top=st.integers(1, 12),
    batch_size=st.integers(1, 7),
    rows=st.integers(1, 50),
)
def test_any_cut_gives_what_sorting_all_entities_gives(seed, size, top, batch_size, rows) -> None:
    entities, relations = random_model(size, 2, 2, seed, integers=True)
    queries = random_queries(size, 2, 9, seed)
    facts = np.random.default_rng(seed).integers(0, [size, 2, size], (60, 3))
    hidden = KnownAnswers.from_triples(facts, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CACHED_ROWS", rows)
        result = top_answers(SmallModel(entities, relations), queries, top, hidden, batch_size=batch_size)
    assert lists_of(result) == best_one_by_one(entities, relations, queries, top, facts)


def top_on(ranks: Ranks, entities: torch.Tensor, relations: torch.Tensor, queries: np.ndarray, top: int):
    facts = KnownAnswers.from_triples(np.array([[0, 0, 5], [1, 1, 7]]), 2)
    return lists_of(top_answers(SmallModel(entities, relations, ranks), queries, top, facts, batch_size=4))


@pytest.mark.parametrize("size", [2, 3])
def test_sharded_equals_single(size: int) -> None:
    entities, relations = random_model(23, 2, 3, seed=1, integers=True)
    queries = random_queries(23, 2, 11, seed=2)
    single = top_on(Ranks.single(), entities, relations, queries, 15)  # more than a rank holds
    assert run_ranks(size, top_on, entities, relations, queries, 15) == [single] * size


def test_scores_below_zero_and_zero_of_both_signs_sort_as_numbers() -> None:
    entities = torch.tensor([[-0.0], [0.0], [-2.5], [1e-30], [-1e-30], [3.0]])
    result = top_answers(SmallModel(entities, torch.ones(2, 1)), np.array([[5, 0]]), 6)
    assert result.entities.tolist() == [[5, 3, 0, 1, 4, 2]]
    assert result.scores[0, [0, 2, 5]].tolist() == [9.0, 0.0, -7.5]


def test_fewer_answers_than_asked_are_padded() -> None:
    facts = KnownAnswers.from_triples(np.array([[0, 0, 0], [0, 0, 1]]), 1)
    model = SmallModel(torch.ones(3, 2), torch.ones(2, 2))
    result = top_answers(model, np.array([[0, 0], [0, 1]]), 50, facts)
    assert result.entities.tolist() == [[2, -1, -1], [1, 2, -1]]
    assert result.scores.tolist() == [[2.0, -np.inf, -np.inf], [2.0, 2.0, -np.inf]]


def test_a_score_that_is_not_finite_stops_with_the_query() -> None:
    entities = torch.ones(6, 2)
    entities[4] = float("nan")
    with pytest.raises(ScoreError, match="anchor entity 3, inverse of relation 0"):
        top_answers(SmallModel(entities, torch.ones(2, 2)), np.array([[3, 1]]), 2)


def test_asking_for_no_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="it must be at least 1"):
        top_answers(SmallModel(torch.ones(2, 2), torch.ones(2, 2)), np.array([[0, 0]]), 0)
