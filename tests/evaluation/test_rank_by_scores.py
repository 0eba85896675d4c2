"""Ranking what scores all entities at once, against ranks counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.data.store.known_answers import KnownAnswers
from distkg.evaluation.ranking import rank_by_scores
from distkg.evaluation.score_blocks import ScoreError

ENTITIES, RELATIONS = 12, 3


def table(seed: int) -> np.ndarray:
    """Scores [anchor, relation, entity] with many ties."""
    return np.random.default_rng(seed).integers(0, 5, (ENTITIES, 2 * RELATIONS, ENTITIES)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 30), batch_size=st.integers(1, 9))
def test_ranks_are_those_counted_one_by_one(seed: int, count: int, batch_size: int) -> None:
    scores = table(seed)
    facts = np.random.default_rng(seed).integers(0, [ENTITIES, RELATIONS, ENTITIES], (40, 3)).astype(np.int32)
    triples = facts[:count]
    known = KnownAnswers.from_triples(facts, RELATIONS)

    def score(asked: np.ndarray) -> torch.Tensor:
        assert len(asked) <= batch_size
        return torch.from_numpy(scores[asked[:, 0], asked[:, 1]])

    ranking = rank_by_scores(score, triples, known, RELATIONS, batch_size=batch_size)
    facts_set = {(h, r, t) for h, r, t in facts.tolist()} | {(t, r + RELATIONS, h) for h, r, t in facts.tolist()}
    asked = [(h, r, t) for h, r, t in triples.tolist()] + [(t, r + RELATIONS, h) for h, r, t in triples.tolist()]
    for place, (anchor, relation, answer) in enumerate(asked):
        row = scores[anchor, relation]
        rivals = [row[e] for e in range(ENTITIES) if e != answer and (anchor, relation, e) not in facts_set]
        assert ranking.greater[place] == sum(score > row[answer] for score in rivals)
        assert ranking.equal[place] == sum(score == row[answer] for score in rivals)


def test_broken_scores_are_refused() -> None:
    triples = np.array([[1, 1, 0]], dtype=np.int32)

    def score(asked: np.ndarray) -> torch.Tensor:
        return torch.tensor([[0.0, float("nan") if relation == 4 else 1.0] for _, relation in asked.tolist()])

    with pytest.raises(ScoreError, match=r"1 scores are NaN or infinite.*anchor entity 0, inverse of relation 1"):
        rank_by_scores(score, triples, KnownAnswers.from_triples(triples, RELATIONS), RELATIONS)
