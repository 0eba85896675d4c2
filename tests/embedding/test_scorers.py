"""What every scorer keeps: tied inverses, one score by every road, gradients, small batches, compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distkg.config import ModelConfig
from distkg.embedding.scorers import SCORERS, Scorer, make_scorer

DIM = 16
TIED: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in SCORERS if SCORERS[name].tied_inverse]
TIED += [("transe", {"norm": "l2"}), ("transe", {"norm": "squared_l2"}), ("rote", {"bias": True})]
EVERY: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in SCORERS]
EVERY += [("transe", {"norm": "l2"}), ("transe", {"norm": "squared_l2"}), ("rote", {"bias": True})]
EVERY += [("tucker", {"relation_dim": 5}), ("roth", {"bias": False}), ("murp", {"curvature": "fixed"})]


def build(name: str, options: dict[str, Any], dim: int = DIM) -> Scorer:
    torch.manual_seed(1)
    return make_scorer(ModelConfig(name=name, dim=dim, options=options))


def rows(count: int, width: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=dtype) / 4


@pytest.mark.parametrize(("name", "options"), TIED)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 10))
def test_tied_inverse_asks_the_same_fact(name: str, options: dict[str, Any], seed: int, scale: float) -> None:
    """score(h, r, t) = score(t, r⁻¹, h)."""
    scorer = build(name, options, dim=8).double()
    head, tail = scale * rows(2, scorer.entity_width, seed, torch.float64)[:, None]
    relation = scale * rows(1, scorer.relation_width, seed + 1, torch.float64)
    forward = scorer.similarity.pairs(scorer.query(head, relation), scorer.candidates(tail))
    back = scorer.similarity.pairs(scorer.query(tail, scorer.inverse(relation)), scorer.candidates(head))
    torch.testing.assert_close(back, forward, rtol=1e-7, atol=1e-9 * max(1, scale**4))


@pytest.mark.parametrize(("name", "options"), TIED)
def test_inverse_of_the_inverse_is_the_relation(name: str, options: dict[str, Any]) -> None:
    scorer = build(name, options)
    relation = rows(3, scorer.relation_width, 4)
    torch.testing.assert_close(scorer.inverse(scorer.inverse(relation)), relation)
    if name != "distmult":
        assert not torch.allclose(scorer.inverse(relation), relation)


@pytest.mark.parametrize("name", [name for name in SCORERS if not SCORERS[name].tied_inverse])
def test_no_closed_form_is_said(name: str) -> None:
    scorer = build(name, {})
    with pytest.raises(TypeError, match=r"no closed form of inverse relations; use model\.inverse: learned"):
        scorer.inverse(rows(1, scorer.relation_width, 0))


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_one_score_by_every_road(name: str, options: dict[str, Any]) -> None:
    """pairs = diagonal of block = indexed = scores."""
    scorer = build(name, options).eval()
    entities = rows(6, scorer.entity_width, 2)
    index = torch.tensor([[0, 5, 2], [3, 3, 1], [4, 0, 5], [2, 1, 0]])
    with torch.no_grad():
        query = scorer.query(entities[:4], rows(4, scorer.relation_width, 3))
        candidates = scorer.candidates(entities)
        block = scorer.similarity.block(query, candidates)
        pairs = torch.stack([scorer.similarity.pairs(query, candidates[i].expand(4, -1)) for i in range(6)], dim=1)
        torch.testing.assert_close(block, pairs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scorer.similarity.scores(query, candidates), block)
        indexed = scorer.similarity.indexed(query, candidates, index)
        torch.testing.assert_close(indexed, block.gather(1, index), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_query_and_candidates_have_right_gradients(name: str, options: dict[str, Any]) -> None:
    small = {**options, "channels": 1} if name == "conve" else options
    scorer = build(name, small, dim=12).double().eval()
    anchor = rows(2, scorer.entity_width, 5, torch.float64).requires_grad_()
    relation = rows(2, scorer.relation_width, 6, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(scorer.query, (anchor, relation))
    assert torch.autograd.gradcheck(scorer.candidates, (anchor,))


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.parametrize("batch", [0, 1])
def test_small_training_batches(name: str, options: dict[str, Any], batch: int) -> None:
    scorer = build(name, options).train()
    query = scorer.query(rows(batch, scorer.entity_width, 7), rows(batch, scorer.relation_width, 8))
    candidates = scorer.candidates(rows(3, scorer.entity_width, 9))
    assert query.isfinite().all()
    assert scorer.similarity.scores(query.detach(), candidates).shape == (batch, 3)


@pytest.mark.parametrize("name", list(SCORERS))
def test_factors_are_magnitudes_with_finite_gradients_at_zero(name: str) -> None:
    scorer = build(name, {})
    anchor = torch.zeros(2, scorer.entity_width, requires_grad=True)
    relation = torch.zeros(2, scorer.relation_width, requires_grad=True)
    parts = scorer.factors(anchor, relation, anchor)
    assert all((part >= 0).all() and part.shape[0] == 2 for part in parts)
    torch.stack([part.pow(3).sum() for part in parts]).sum().backward()
    assert anchor.grad is not None
    assert torch.equal(anchor.grad, torch.zeros_like(anchor))


MAGNITUDES = [
    ("distmult", 2, {}, [3, -4], [-1, 2], ([3, 4], [1, 2])),
    ("complex", 4, {}, [3, 0, -4, 2], [5, 1, 12, 0], ([5, 2], [13, 1])),
    ("rotate", 4, {}, [3, 0, -4, 2], [1, 2], ([5, 2], [0, 0])),
    ("quate", 4, {}, [1, -1, 1, 1], [2, 4, 4, 8], ([2], [10])),
    ("cp", 1, {}, [-2, 3], [-5], ([2], [5])),
    ("hake", 4, {}, [-1, 2, 9, 8], [5, 6, -3, 4, 7, 8], ([1, 2], [3, 4])),
    ("rote", 2, {"bias": True}, [-1, 2, 9], [3, -4, 5], ([1, 2], [4, 5])),
    ("rotl", 2, {}, [-1, 2], [3, -4, 5], ([1, 2], [4, 5])),
    ("rotl", 2, {"relation_alpha": True}, [-1, 2], [3, -4, 5, 7], ([1, 2], [4, 5])),
    ("roth", 2, {}, [-1, 2, 9], [3, -4, 5, 7], ([1, 2], [4, 5])),
    ("atth", 2, {"bias": False}, [-1, 2], [1, 1, 3, 3, -4, 5, 7], ([1, 2], [4, 5])),
    ("murp", 2, {}, [-1, 2, 9], [3, -1, -4, 5, 7], ([1, 2], [3, 1, 4, 5])),
]


@pytest.mark.parametrize(("name", "dim", "options", "anchor", "relation", "expected"), MAGNITUDES)
def test_factors_by_hand(
    name: str,
    dim: int,
    options: dict[str, Any],
    anchor: list[float],
    relation: list[float],
    expected: tuple[list[float], list[float]],
) -> None:
    scorer = build(name, options, dim=dim)
    entity = torch.tensor([anchor], dtype=torch.float32)
    of_anchor, of_relation, of_answer = scorer.factors(entity, torch.tensor([relation], dtype=torch.float32), entity)
    torch.testing.assert_close(of_anchor, torch.tensor([expected[0]], dtype=torch.float32))
    torch.testing.assert_close(of_relation, torch.tensor([expected[1]], dtype=torch.float32))
    answer = [3.0] if name == "cp" else expected[0]
    torch.testing.assert_close(of_answer, torch.tensor([answer], dtype=torch.float32))


@pytest.mark.parametrize("name", list(SCORERS))
def test_compiles_without_a_graph_break(name: str) -> None:
    scorer = build(name, {}).eval()
    anchor, relation = rows(3, scorer.entity_width, 1), rows(3, scorer.relation_width, 2)
    compiled = torch.compile(scorer.query, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(anchor, relation), scorer.query(anchor, relation))


@pytest.mark.parametrize("name", list(SCORERS))
def test_autocast_stays_near_float32(name: str) -> None:
    scorer = build(name, {}).eval()
    anchor, relation = rows(3, scorer.entity_width, 1), rows(3, scorer.relation_width, 2)
    exact = scorer.query(anchor, relation)
    with torch.autocast("cpu", torch.bfloat16):
        near = scorer.query(anchor, relation).float()
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.03 * exact.abs().max().item())


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_every_tensor_lives_where_the_rows_do(name: str, options: dict[str, Any]) -> None:
    """On the meta device any tensor left on the CPU is an error."""
    scorer = build(name, options).to("meta").train()
    anchor = torch.empty(3, scorer.entity_width, device="meta")
    relation = torch.empty(3, scorer.relation_width, device="meta")
    query, candidates = scorer.query(anchor, relation), scorer.candidates(anchor)
    assert query.is_meta
    assert candidates.is_meta
    assert all(part.is_meta for part in scorer.factors(anchor, relation, anchor))
