"""Hard negatives by relations that are alike: the schedule, the chances of relations, and draws against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distkg.kernels.scores.similarity import DOT
from distkg.negatives import NegativeSource, Queries, SourceError, TrainingGraph, TrainingProgress, make_source
from distkg.negatives.kmas.relation_similarity import AlikeOptions, most_alike
from distkg.negatives.kmas.source import KmasOptions, hard_share
from distkg.sharding.ranks import Ranks

ENTITIES, RELATIONS = 20, 4


def graph() -> TrainingGraph:
    rows = np.random.default_rng(5).integers(0, [ENTITIES, RELATIONS, ENTITIES], (50, 3))
    return TrainingGraph.of_triples(np.unique(rows, axis=0), ENTITIES, RELATIONS)


class RelationsOnly:
    """A model of which relations alone are looked at."""

    def __init__(self) -> None:
        self.ranks, self.similarity, self.entities, self.first = Ranks.single(), DOT, ENTITIES, 0

    def relations(self) -> Tensor:
        return torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.2]])


def source(**options: Any) -> NegativeSource:
    made = make_source("kmas", options, graph())
    made.attach(RelationsOnly())  # type: ignore[arg-type]
    return made


def test_the_share_rises_after_the_warm_up_and_falls_again() -> None:
    options = KmasOptions(warm_up=0.1, peak=0.5, most=0.6, end=0.2)
    shares = [hard_share(progress, options) for progress in (0.0, 0.1, 0.3, 0.5, 0.75, 1.0)]
    assert shares == pytest.approx([0.0, 0.0, 0.3, 0.6, 0.4, 0.2])
    assert hard_share(0.0, KmasOptions(schedule="constant", most=0.25)) == 0.25
    with pytest.raises(ValueError, match=r"warm_up \(0.6\) must come before peak \(0.5\)"):
        KmasOptions(warm_up=0.6, peak=0.5)


@given(
    warm_up=st.floats(0, 0.9),
    rise=st.floats(0.01, 1),
    most=st.floats(0, 1),
    end=st.floats(0, 1),
    progress=st.floats(0, 1),
)
def test_the_share_is_linear_between_its_corners(
    warm_up: float, rise: float, most: float, end: float, progress: float
) -> None:
    peak = min(1.0, warm_up + rise)
    options = KmasOptions(warm_up=warm_up, peak=peak, most=most, end=end)

    def share(at: float) -> float:
        return hard_share(at, options)

    if progress <= warm_up:
        expected = 0.0
    elif progress <= peak:
        expected = most * (progress - warm_up) / (peak - warm_up)
    else:
        expected = most - (most - end) * (progress - peak) / (1 - peak)
    assert share(progress) == pytest.approx(expected, abs=1e-6)
    assert 0 <= share(progress) <= 1
    assert share(0.0) == share(warm_up) == 0.0
    assert share(peak) == pytest.approx(most)
    assert share(1.0) == pytest.approx(end if peak < 1 else most)


def relation_weights(similarity: Tensor, own: Tensor, usable: Tensor, options: AlikeOptions) -> Tensor:
    """Chances of all relations: float32 [b, R]."""
    alike = most_alike(similarity, own, usable, options)
    return torch.zeros_like(similarity).scatter_add(1, alike.relations, alike.chances)


def test_chances_written_by_hand() -> None:
    similarity = torch.tensor([[1.0, 0.5, 0.5, 0.4]]).log()
    usable, own = torch.tensor([True, True, True, True]), torch.tensor([0])
    found = relation_weights(similarity, own, usable, KmasOptions(relations=3, temperature=1.0, self_share=1.0))
    assert found.tolist() == [pytest.approx([0.5, 0.25, 0.25, 0.0])]
    capped = relation_weights(similarity, own, usable, KmasOptions(relations=3, temperature=1.0, self_share=0.2))
    assert capped.tolist() == [pytest.approx([0.2, 0.4, 0.4, 0.0])]
    without = relation_weights(similarity, own, usable, KmasOptions(relations=2, temperature=1.0, include_self=False))
    assert without.tolist() == [pytest.approx([0.0, 0.5, 0.5, 0.0])]
    hidden = relation_weights(similarity, own, usable.logical_not(), KmasOptions())
    assert hidden.tolist() == [[0.0] * 4]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=5),
            st.integers(0, 4),
        ),
        min_size=1,
        max_size=4,
    ),
    some=st.lists(st.booleans(), min_size=5, max_size=5),
    count=st.integers(1, 7),
    share=st.floats(0, 1),
    itself=st.booleans(),
)
def test_chances_sum_to_one_and_keep_to_the_most_alike(
    rows: list[tuple[list[float], int]], some: list[bool], count: int, share: float, itself: bool
) -> None:
    similarity = torch.tensor([row[0] for row in rows])
    own, usable = torch.tensor([row[1] for row in rows]), torch.tensor(some)
    options = KmasOptions(relations=count, self_share=share, include_self=itself)
    weights = relation_weights(similarity, own, usable, options)
    for row in range(len(rows)):
        allowed = [r for r in range(5) if some[r] and (itself or r != own[row])]
        assert float(weights[row].sum()) == pytest.approx(1.0 if allowed else 0.0, abs=1e-5)
        chosen = [r for r in range(5) if weights[row, r] > 0]
        assert set(chosen) <= set(allowed)
        assert len(chosen) <= count
        if len(allowed) > 1 and len(chosen) > 1 and itself:
            assert float(weights[row, own[row]]) <= share + 1e-5


def test_draws_are_answers_of_like_relations_and_no_known_ones() -> None:
    made, whole = source(schedule="constant", most=1.0, relations=2, temperature=0.5), graph()
    queries = Queries(*torch.from_numpy(whole.queries()).T.contiguous())
    known: dict[tuple[int, int], set[int]] = {}
    answers: dict[int, set[int]] = {}
    for anchor, relation, answer in whole.queries().tolist():
        known.setdefault((anchor, relation), set()).add(answer)
        answers.setdefault(relation, set()).add(answer)
    cosines = torch.nn.functional.normalize(RelationsOnly().relations(), dim=1)
    cosines = cosines @ cosines.T
    counts = torch.zeros(len(queries), ENTITIES)
    rounds = 400
    for seed in range(rounds):
        drawn = made.draw(queries, 4, torch.Generator().manual_seed(seed)).entities
        counts += torch.nn.functional.one_hot(drawn, ENTITIES).sum(1)
    for row in range(0, len(queries), 7):
        anchor, relation, answer = (int(side[row]) for side in (queries.anchor, queries.relation, queries.answer))
        own, side = relation % RELATIONS, relation // RELATIONS * RELATIONS
        usable = torch.tensor([bool(answers.get(r + side)) for r in range(RELATIONS)])
        options = KmasOptions(relations=2, temperature=0.5)
        weights = relation_weights(cosines[own][None], torch.tensor([own]), usable, options)[0]
        free = torch.zeros(ENTITIES)
        for r in range(RELATIONS):
            pool = answers.get(r + side, set())
            for entity in pool:
                free[entity] += weights[r] / len(pool)
        wrong = [e for e in range(ENTITIES) if e not in known[anchor, relation]]
        assert all(counts[row, e] < 0.08 * rounds for e in known[anchor, relation]), (
            "but for uniform ones, filtered later"
        )
        share = free[wrong].sum()
        if share > 0.6:  # else redraws run out too often
            expected = free[wrong] / share
            assert torch.allclose(counts[row, wrong] / counts[row, wrong].sum(), expected, atol=0.05)


def test_hard_ones_come_first_and_the_rest_is_uniform() -> None:
    made = source(warm_up=0.1, peak=0.5, most=0.5, relations=1, self_share=1.0)
    queries = Queries(*torch.from_numpy(graph().queries()).T.contiguous())
    alike = {r: set(graph().queries()[graph().queries()[:, 1] == r, 2].tolist()) for r in range(2 * RELATIONS)}
    for progress, hard in ((0.05, 0), (0.5, 4)):
        made.advance(TrainingProgress(progress=progress))
        drawn = made.draw(queries, 8, torch.Generator().manual_seed(0)).entities
        inside = torch.tensor(
            [[e in alike[r] for e in row] for r, row in zip(queries.relation.tolist(), drawn.tolist(), strict=True)]
        )
        if hard:
            assert inside[:, :hard].float().mean() > inside[:, hard:].float().mean() + 0.2
        assert drawn[:, hard:].unique().numel() == ENTITIES


def test_known_answers_among_hard_ones_are_counted_and_drawn_again() -> None:
    # (0, r0) has all but one of the four answers of r0, so three of four draws are known; (0, r1) has none of r0's.
    triples = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3], [5, 0, 4], [0, 1, 6]])
    made = make_source(
        "kmas",
        {"schedule": "constant", "most": 1.0, "relations": 1, "self_share": 1.0},
        TrainingGraph.of_triples(triples, 7, 2),
    )
    own = Queries(*torch.tensor([[0, 0, 1]] * 50).T.contiguous())
    similarity = torch.tensor([[1.0, 0.0]]).repeat(50, 1)
    found = made.draw_by(lambda: similarity, own, 40, torch.Generator().manual_seed(0)).entities
    drawn, rejected = made.take_rejections()
    assert rejected / drawn == pytest.approx(3 / 4, abs=0.03)
    # Five draws at most for each: what is still known then gives its place to a uniform one.
    hit = 1 - (3 / 4) ** 5
    assert float((found == 4).float().mean()) == pytest.approx(hit + (1 - hit) / 7, abs=0.03)
    assert drawn / (50 * 40) == pytest.approx(sum((3 / 4) ** k for k in range(5)), abs=0.1)
    assert made.take_rejections() == (0, 0)
    like = Queries(*torch.tensor([[0, 1, 6]] * 50).T.contiguous())
    found = made.draw_by(lambda: similarity, like, 40, torch.Generator().manual_seed(0)).entities
    assert made.take_rejections() == (2000, 0)
    assert set(found.unique().tolist()) == {1, 2, 3, 4}


def test_it_shows_nothing_without_a_model() -> None:
    made = make_source("kmas", {}, graph())
    with pytest.raises(SourceError, match="compares the relations of a model"):
        made.draw(Queries(*torch.zeros(3, 1, dtype=torch.int64)), 2, torch.Generator())
