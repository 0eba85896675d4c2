"""Exact ranks against counting one by one, on any cut of queries, entities and ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from distributed import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import SmallModel, random_model

from distkg.config import parse_config
from distkg.data.store.known_answers import KnownAnswers
from distkg.embedding.model import TrainingModel
from distkg.evaluation import score_blocks as blocks
from distkg.evaluation.ranking import Ranking, both_queries, rank_answers
from distkg.evaluation.score_blocks import Blocks, ScoreError, evaluating
from distkg.evaluation.topk import top_answers
from distkg.kernels.scores.similarity import DOT
from distkg.sharding.ranks import Ranks


def count_one_by_one(
    entities: torch.Tensor, relations: torch.Tensor, triples: np.ndarray, facts: np.ndarray
) -> list[tuple[int, int]]:
    """(greater, equal) of every tail query, then of every head query, in float64 and with sets."""
    num_relations = len(relations) // 2
    known = {(h, r, t) for h, r, t in facts.tolist()}
    tails = [(h, r, t, lambda e, h=h, r=r: (h, r, e)) for h, r, t in triples.tolist()]
    heads = [(t, r + num_relations, h, lambda e, r=r, t=t: (e, r, t)) for h, r, t in triples.tolist()]
    counts = []
    for anchor, relation, answer, fact in tails + heads:
        query = entities[anchor].double() * relations[relation].double()
        scores = [float((query * row.double()).sum()) for row in entities]
        rivals = [e for e in range(len(entities)) if e != answer and fact(e) not in known]
        greater = sum(scores[e] > scores[answer] for e in rivals)
        equal = sum(scores[e] == scores[answer] for e in rivals)
        counts.append((greater, equal))
    return counts


def counts_of(result: Ranking) -> list[tuple[int, int]]:
    return list(zip(result.greater.tolist(), result.equal.tolist(), strict=True))


def random_triples(entities: int, relations: int, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, [entities, relations, entities], (count, 3)).astype(np.int32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    entities, relations = draw(st.integers(1, 30)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 10_000))
    rows = random_model(entities, relations, draw(st.integers(1, 4)), seed, integers=True)
    facts = random_triples(entities, relations, draw(st.integers(0, 60)), seed)
    asked = random_triples(entities, relations, draw(st.integers(1, 12)), seed + 1)
    tested = np.concatenate([asked, facts[: draw(st.integers(0, 10))]])
    return *rows, tested, facts


@settings(max_examples=60, deadline=None)
@given(case=cases(), batch_size=st.integers(1, 9), rows=st.integers(1, 40))
def test_any_cut_counts_what_counting_one_by_one_gives(case, batch_size, rows) -> None:
    entities, relations, triples, facts = case
    known = KnownAnswers.from_triples(facts, len(relations) // 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CACHED_ROWS", rows)
        result = rank_answers(SmallModel(entities, relations), triples, known, batch_size=batch_size)
    assert counts_of(result) == count_one_by_one(entities, relations, triples, facts)


def test_ranks_written_by_hand() -> None:
    entities = torch.tensor([[3.0], [2.0], [2.0], [1.0], [2.0]])
    relations = torch.tensor([[1.0], [-1.0]])
    facts = np.array([[0, 0, 2], [0, 0, 4]])
    result = rank_answers(SmallModel(entities, relations), facts[:1], KnownAnswers.from_triples(facts, 1))
    # Tails of (0, r): 0 scores 9, answer 2 ties with 1 at 6, 4 ties too but is known, 3 scores 3.
    # Heads of (2, r⁻¹): 3 scores -2, then 1, 2 and 4 at -4, the answer 0 last at -6.
    assert result.queries.tolist() == [[0, 0], [2, 1]]
    assert result.answers.tolist() == [2, 0]
    assert counts_of(result) == [(1, 1), (4, 0)]
    assert result.optimistic.tolist() == [2, 5]
    assert result.pessimistic.tolist() == [3, 5]
    assert result.realistic.tolist() == [2.5, 5]


def test_equal_vectors_tie_exactly_whatever_the_block() -> None:
    entities = torch.randn(1, 37).repeat(5000, 1)
    relations = torch.randn(2, 37)
    triples = random_triples(5000, 1, 700, seed=0)
    result = rank_answers(SmallModel(entities, relations), triples, KnownAnswers.from_triples(triples[:0], 1))
    assert set(counts_of(result)) == {(0, 4999)}


class RoundsByShape:
    """Scores that depend on how many candidates are asked about at once, as a product's rounding may."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.calls = 0

    def scores(self, query: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return DOT.scores(query, candidates) + (0.25 if len(candidates) == self.block else 0.0)


def test_an_answer_rounded_otherwise_outside_its_block_is_counted_again() -> None:
    entities, relations = random_model(40, 2, 3, seed=1, integers=True)
    triples = random_triples(40, 2, 9, seed=2)
    model = SmallModel(entities, relations)
    model.scorer.similarity = RoundsByShape(block=40)  # type: ignore[assignment]
    result = rank_answers(model, triples, KnownAnswers.from_triples(triples, 2), batch_size=4)
    assert counts_of(result) == count_one_by_one(entities, relations, triples, triples)


def test_known_answers_do_not_compete_and_unknown_ones_do() -> None:
    entities = torch.tensor([[1.0], [5.0], [4.0], [3.0]])
    relations = torch.ones(2, 1)
    triples = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3]])
    model = SmallModel(entities, relations)
    filtered = rank_answers(model, triples, KnownAnswers.from_triples(triples, 1))
    raw = rank_answers(model, triples, KnownAnswers.from_triples(triples[:0], 1))
    assert filtered.greater[:3].tolist() == [0, 0, 0]
    assert raw.greater[:3].tolist() == [0, 1, 2]


def rank_on(ranks: Ranks, entities: torch.Tensor, relations: torch.Tensor, triples: np.ndarray, scorer: str) -> Ranking:
    known = KnownAnswers.from_triples(triples, len(relations) // 2)
    return rank_answers(SmallModel(entities, relations, ranks, scorer), triples, known, batch_size=16)


@pytest.mark.parametrize("size", [2, 3])
def test_sharded_equals_single(size: int) -> None:
    entities, relations = random_model(101, 3, 8, seed=3, integers=True)
    triples = random_triples(101, 3, 120, seed=4)
    single = rank_on(Ranks.single(), entities, relations, triples, "distmult")
    for result in run_ranks(size, rank_on, entities, relations, triples, "distmult"):
        np.testing.assert_array_equal(result.queries, single.queries)
        assert counts_of(result) == counts_of(single)
    assert single.equal.max() > 0


def rank_with_model_on(ranks: Ranks, triples: np.ndarray) -> tuple[list[tuple[int, int]], list[list[int]]]:
    config = parse_config({"model": {"name": "complex", "dim": 8, "dropout": 0.5}}, "test")
    model = TrainingModel(config, 101, 3, ranks)
    model.entities.local.mul_(100)
    known = KnownAnswers.from_triples(triples, 3)
    result = rank_answers(model, triples, known, batch_size=16)
    return counts_of(result), top_answers(model, result.queries[:30], 5, known).entities.tolist()


def test_a_sharded_model_ranks_and_predicts_as_a_whole_one() -> None:
    triples = random_triples(101, 3, 120, seed=4)
    single = rank_with_model_on(Ranks.single(), triples)
    assert run_ranks(2, rank_with_model_on, triples) == [single, single]


def test_more_ranks_than_rows_for_all_leaves_a_rank_empty() -> None:
    entities, relations = random_model(4, 1, 3, seed=5, integers=True)  # ranks own 2, 2 and 0 rows
    triples = random_triples(4, 1, 6, seed=6)
    expected = count_one_by_one(entities, relations, triples, triples)
    for result in run_ranks(3, rank_on, entities, relations, triples, "distmult"):
        assert counts_of(result) == expected


@pytest.mark.parametrize(("scorer", "dim"), [("transe", 8), ("rotate", 8), ("complex", 8), ("trans", 4), ("hake", 8)])
def test_similarities_of_all_kinds_rank_as_their_own_pairs_do(scorer: str, dim: int) -> None:
    entities, relations = random_model(60, 2, 8, seed=7)
    model = SmallModel(entities, relations, scorer=scorer, dim=dim)
    model.relations = torch.randn(4, model.scorer.relation_width, generator=torch.Generator().manual_seed(8))
    triples = random_triples(60, 2, 20, seed=9)
    result = rank_answers(model, triples, KnownAnswers.from_triples(triples[:0], 2))
    queries, answers = both_queries(triples, 2)
    vectors = model.query(entities[queries[:, 0]], torch.from_numpy(queries[:, 1]).long())
    scores = model.scorer.similarity.pairs(vectors[:, None], model.scorer.candidates(entities)[None])
    own = scores[torch.arange(len(answers)), torch.from_numpy(answers).long()]
    assert result.greater.tolist() == (scores > own[:, None] + 1e-5).sum(1).tolist()


def broken_on(ranks: Ranks, entities: torch.Tensor, relations: torch.Tensor, triples: np.ndarray) -> str:
    with pytest.raises(ScoreError) as error:
        rank_on(ranks, entities, relations, triples, "distmult")
    return str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_stops_with_the_query(value: float) -> None:
    entities = torch.ones(50, 2)
    relations = torch.tensor([[0.5, 1.0], [0.5, 1.0]])
    entities[49] = value
    message = broken_on(Ranks.single(), entities, relations, np.array([[7, 0, 8]]))
    assert "anchor entity 7, relation 0" in message
    assert message.startswith("2 scores")


def test_every_rank_stops_at_a_score_that_only_one_sees() -> None:
    entities = torch.ones(50, 2)
    entities[49] = float("nan")
    relations = torch.ones(2, 2)
    messages = run_ranks(2, broken_on, entities, relations, np.array([[7, 0, 8]]))
    assert messages[0] == messages[1]
    assert "anchor entity 7" in messages[0]


@pytest.mark.parametrize(("batch_size", "memory"), [(256, 1 << 20), (4096, 1 << 20), (256, 256 << 20), (1, 4096)])
def test_blocks_and_query_vectors_fit_the_memory(batch_size: int, memory: int) -> None:
    model = SmallModel(torch.zeros(5000, 64), torch.zeros(2, 64))
    cut = Blocks(model, batch_size, memory)
    scores = 4 * cut.batch_size * cut.rows
    vectors = 4 * 2 * 2 * 64 * cut.round_size
    assert scores <= memory // 2
    assert vectors <= memory // 2 or cut.round_size == cut.batch_size
    assert sum(len(rows) for _, rows in cut.candidates()) == 5000


def test_bfloat16_tables_are_scored_in_float32() -> None:
    entities, relations = random_model(40, 2, 4, seed=10, integers=True)  # small integers are exact in bfloat16
    triples = random_triples(40, 2, 15, seed=11)
    known = KnownAnswers.from_triples(triples, 2)
    plain = rank_answers(SmallModel(entities, relations), triples, known)
    stored = rank_answers(SmallModel(entities.bfloat16(), relations), triples, known)
    assert counts_of(stored) == counts_of(plain)


def test_evaluation_mode_is_left_as_it_was_found() -> None:
    scorer = SmallModel(*random_model(3, 1, 2, seed=0)).scorer
    for before in (True, False):
        scorer.train(before)
        with evaluating(scorer):
            assert not scorer.training
            assert not torch.is_grad_enabled()
        assert scorer.training is before


def test_dropout_does_not_touch_ranks() -> None:
    config = parse_config({"model": {"name": "complex", "dim": 8, "dropout": 0.5}}, "test")
    model = TrainingModel(config, 101, 3, Ranks.single())
    triples = random_triples(101, 3, 20, seed=4)
    known = KnownAnswers.from_triples(triples, 3)
    assert counts_of(rank_answers(model, triples, known)) == counts_of(rank_answers(model, triples, known))
    assert model.training


def test_no_triples_give_an_empty_ranking() -> None:
    model = SmallModel(*random_model(3, 1, 2, seed=0))
    empty = np.empty((0, 3), np.int32)
    result = rank_answers(model, empty, KnownAnswers.from_triples(empty, 1))
    assert len(result.answers) == len(replace(result).greater) == 0
