"""Hyperbolic scorers: maps of the ball, known distances, the flat limit, and safety at the edge."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from distkg.config import ModelConfig
from distkg.embedding.scorers import Scorer, make_scorer
from distkg.embedding.scorers.hyperbolic import exp0, log0, mobius_add
from distkg.kernels.scores.poincare_distance import HyperbolicSimilarity, curvature

HYPERBOLIC = ["atth", "murp", "refh", "roth"]
C = torch.tensor([[0.7]], dtype=torch.float64)


def build(name: str, dim: int = 4, **options: Any) -> Scorer:
    return make_scorer(ModelConfig(name=name, dim=dim, options=options))


def raw(c: float) -> float:
    """What softplus takes to c."""
    return math.log(math.expm1(c))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 3


def squared_length(x: Tensor) -> Tensor:
    return x.square().sum(-1, keepdim=True)


def test_maps_by_hand() -> None:
    c = torch.tensor([[4.0]])
    point = exp0(torch.tensor([[0.0, 0.25]]), c)  # tanh(2 · ¼) / 2
    assert point.tolist()[0] == pytest.approx([0, 0.2310586])
    assert log0(point, c).tolist()[0] == pytest.approx([0, 0.25])
    # On one line x ⊕ y = (x + y) / (1 + c x y): .75 / 1.5
    assert mobius_add(torch.tensor([[0.25, 0]]), torch.tensor([[0.5, 0]]), c).tolist() == [[0.5, 0]]


def test_log0_undoes_exp0() -> None:
    vector = draw(6, 5)
    torch.testing.assert_close(log0(exp0(vector, C), C), vector)


def test_maps_project_to_the_margin() -> None:
    c = torch.tensor([[4.0]])
    assert exp0(torch.tensor([[30.0, 40.0]]), c).tolist()[0] == pytest.approx([0.6 * 0.498, 0.8 * 0.498])
    assert log0(torch.tensor([[0.3, 0.4]]), c).tolist()[0] == pytest.approx([0.6 * 1.5531, 0.8 * 1.5531], rel=1e-4)


def test_left_translation_keeps_distances_and_undoes_itself() -> None:
    shift, x, y = (exp0(vector, C) for vector in draw(3, 6, 5))
    torch.testing.assert_close(mobius_add(-shift, mobius_add(shift, x, C), C), x)
    moved = mobius_add(-mobius_add(shift, x, C), mobius_add(shift, y, C), C)
    torch.testing.assert_close(squared_length(moved), squared_length(mobius_add(-x, y, C)))


def test_either_order_of_addition_is_equally_far_from_the_origin() -> None:
    x, y = (exp0(vector, C) for vector in draw(2, 6, 5))
    left, right = mobius_add(x, y, C), mobius_add(y, x, C)
    torch.testing.assert_close(squared_length(left), squared_length(right))
    assert not torch.allclose(left, right, rtol=1e-2)


def test_curvature() -> None:
    got = curvature(torch.tensor([raw(1e-3), raw(1), raw(10), 50.0, -1e4])).tolist()
    assert got == pytest.approx([1e-3, 1, 10, 50, 1e-4], rel=1e-4)


KNOWN = [
    # Two points at radius ½ on one line, and at a right angle: 4 artanh ½, and arcosh(1 + 2 · (½ / ¾²)).
    (1.0, (0.5493061, 0.0), (-0.5493061, 0.0), 2.1972246),
    (1.0, (0.5493061, 0.0), (0.0, 0.5493061), 1.6806993),
    # The ball of curvature −4 is half as large: half the distance.
    (4.0, (0.2746531, 0.0), (0.0, 0.2746531), 0.8403497),
    # From the origin twice the length of the tangent vector, whatever the curvature.
    (0.01, (0.0, 0.0), (3.0, 4.0), 10.0),
    (0.3, (0.0, 0.0), (0.6, 0.8), 2.0),
]


@pytest.mark.parametrize(("c", "query", "answer", "distance"), KNOWN)
def test_known_distances(c: float, query: tuple[float, ...], answer: tuple[float, ...], distance: float) -> None:
    asked, candidates = torch.tensor([[*query, raw(c)]]), torch.tensor([answer])
    got = HyperbolicSimilarity(bias=False).scores(asked, candidates).item()
    assert got == pytest.approx(-(distance**2), rel=1e-5)
    biased = torch.tensor([[*query, 0.25, raw(c)]]), torch.tensor([[*answer, 3.0]])
    assert HyperbolicSimilarity(bias=True).scores(*biased).item() == pytest.approx(3.25 - distance**2, rel=1e-5)


@pytest.mark.parametrize("name", HYPERBOLIC)
def test_flat_limit_is_four_times_the_squared_distance(name: str) -> None:
    """Where vectors are short against 1/√c, ⊕ is + and d_c is 2|x − y|."""
    scorer = build(name, bias=False).double()
    anchor, answer = draw(2, 3, 4).div(100)
    relation = torch.cat((draw(3, scorer.own_width, seed=1), draw(3, 4, seed=2) / 100, torch.full((3, 1), -30.0)), 1)
    moved = scorer.transform(anchor, relation[:, : scorer.own_width])
    translation = relation[:, -5:-1] * (-1 if name == "murp" else 1)
    expected = -4 * (moved + translation - answer).square().sum(1)
    got = scorer.similarity.pairs(scorer.query(anchor, relation), answer)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", HYPERBOLIC)
def test_fixed_curvature_is_one(name: str) -> None:
    fixed, learned = build(name, curvature="fixed"), build(name)
    assert fixed.relation_width == learned.relation_width - 1
    anchor, relation = draw(3, fixed.entity_width).float(), draw(3, fixed.relation_width, seed=1).float()
    with_column = torch.cat((relation, torch.full((3, 1), raw(1.0))), 1)
    torch.testing.assert_close(fixed.query(anchor, relation), learned.query(anchor, with_column))


@pytest.mark.parametrize("name", HYPERBOLIC)
@pytest.mark.parametrize("c", [1e-3, 1.0, 10.0])
def test_scores_and_gradients_are_finite_for_vectors_of_any_length(name: str, c: float) -> None:
    scorer = build(name, dim=8)
    lengths = torch.tensor([0.0, 1e-6, 1e-3, 0.1, 1.0, 3.0, 10.0, 50.0])
    unit = torch.nn.functional.normalize(draw(3, 8, 8).float(), dim=-1)
    vectors = torch.cat((unit[0], unit[0], -unit[0], unit[1])) * lengths.repeat(4)[:, None]  # equal and opposite ones
    entities = torch.cat((vectors, torch.ones(32, 1)), 1).requires_grad_()
    own, shift = draw(32, scorer.own_width, seed=3).float(), unit[2].repeat(4, 1) * lengths.flip(0).repeat(4)[:, None]
    relations = torch.cat((own, shift, torch.full((32, 1), raw(c))), 1).requires_grad_()
    query = scorer.query(entities, relations)
    index = torch.arange(32).expand(32, -1)
    forms = [scorer.similarity.block(query, entities), scorer.similarity.indexed(query, entities, index)]
    forms.append(scorer.similarity.pairs(query, entities)[:, None])
    for scores in forms:
        assert scores.isfinite().all()
        for gradient in torch.autograd.grad(scores.sum(), (entities, relations), retain_graph=True):
            assert gradient.isfinite().all()
            assert gradient.any()


def test_a_vector_beyond_the_edge_still_turns() -> None:
    """Nothing pulls it outwards or inwards, but its direction goes on learning."""
    query = torch.tensor([[0.3, 0.2, raw(1.0)]])
    answer = torch.tensor([[50.0, 0.0]], requires_grad=True)
    HyperbolicSimilarity(bias=False).block(query, answer).sum().backward()
    assert answer.grad is not None
    outwards, sideways = answer.grad[0].tolist()
    assert sideways > 1e-3
    assert abs(outwards) < 1e-3 * sideways
