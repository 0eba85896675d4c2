"""Every similarity against its formula in float64: scores, gradients, guards, and what becomes of NaN."""

from __future__ import annotations

import math

import plain_similarity
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from plain_similarity import HYPERBOLIC, HYPERBOLIC_BIASED, PLAIN, POLAR, ROTL, Plain, query_width
from torch import Tensor

from distkg.kernels.scores import similarity as module
from distkg.kernels.scores.polar_distance import PolarSimilarity
from distkg.kernels.scores.similarity import (
    AFFINE_L1,
    DOT,
    L1,
    L2,
    MODULUS,
    SCALED_L1,
    SQUARED_L2,
    RotLSimilarity,
    Similarity,
)

EVERY = pytest.mark.parametrize(("similarity", "plain"), PLAIN, ids=[similarity.name for similarity, _ in PLAIN])
ROUNDING = 4e-6  # float32, with room for sums of some tens of terms


def slack(similarity: Similarity, query: Tensor, candidates: Tensor) -> Tensor:
    """How far float32 may stray from the formula, [B, N]; inputs float64."""
    if similarity in (HYPERBOLIC, HYPERBOLIC_BIASED):
        return slack_in_the_ball(query, candidates, similarity is HYPERBOLIC_BIASED)
    q, c = query[:, None], candidates
    squares = ROUNDING * (q.square().sum(-1) + c.square().sum(-1))
    distance = -plain_similarity.l2(q, c) if similarity in (L2, ROTL) else torch.zeros(())
    nearly = squares / torch.maximum(distance, squares.sqrt()).clamp_min(1e-12) + ROUNDING * distance + 1e-9
    if similarity is L2:
        return nearly
    if similarity is ROTL:
        gap = (1 - plain_similarity.dot(q, c)).abs().clamp_min(0.01)
        x = 1.5 * distance / gap
        return torch.exp(x.clamp_max(10)) * (1 + x) * 2 * (1.5 * nearly / gap + x * squares / gap) + 1e-7
    if similarity is SCALED_L1:
        width = candidates.shape[-1]
        return ROUNDING * (q[..., :width].abs() + (q[..., width:] * c).abs()).sum(-1) + 1e-12
    if similarity is AFFINE_L1:
        return slack_of_affine(q, c)
    if similarity is POLAR:
        sizes = (q[..., :2].abs() + (q[..., 2:4] * c[..., :2]).abs()).sum(-1)
        return ROUNDING * sizes + slack_of_affine(q[..., 4:], c[..., 2:])
    if similarity in (DOT, SQUARED_L2):
        return squares + 1e-12
    return ROUNDING * (q.abs() + c.abs()).sum(-1) + 1e-12


def slack_of_affine(q: Tensor, c: Tensor) -> Tensor:
    half = c.shape[-1] // 2
    return ROUNDING * (q[..., :half].abs().sum(-1) + (q[..., half:] * c).abs().sum(-1)) + 1e-12


def slack_in_the_ball(query: Tensor, candidates: Tensor, bias: bool) -> Tensor:
    """As ``slack``: sinh² of half the distance is known to some part of its largest value, that of opposite points."""
    c = torch.nn.functional.softplus(query[:, None, -1]).clamp_min(1e-4)
    width = candidates.shape[1] - bias
    q, v = query[:, :width].norm(dim=1)[:, None], candidates[:, :width].norm(dim=1)
    farthest = torch.sinh(sum((c.sqrt() * x).clamp_max(math.atanh(0.996)) for x in (q, v)))
    doubt = ROUNDING * 15 * farthest.square()
    plain = plain_similarity.hyperbolic_biased if bias else plain_similarity.hyperbolic
    biases = query[:, None, width] + candidates[:, width] if bias else torch.zeros(())
    distance = biases - plain(query[:, None], candidates)
    half = torch.sinh((c * distance).sqrt() / 2).square()
    ends = [4 / c * torch.asinh((half + sign * doubt).clamp_min(0).sqrt()).square() for sign in (-1, 1)]
    sizes = distance + (query[:, None, width].abs() + candidates[:, width].abs() if bias else 0)
    return torch.maximum(distance - ends[0], ends[1] - distance) + 5 * ROUNDING * sizes + 1e-12


@st.composite
def problems(draw: st.DrawFn, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """Queries and candidates of any small shape: rows of zeros, rows equal to a query, and large norms among them."""
    width = 2 * draw(st.integers(1, 7))
    wide = query_width(similarity, width)
    element = st.floats(-1, 1, width=32, allow_subnormal=False)
    query = draw(arrays.arrays("float32", (draw(st.integers(1, 4)), wide), elements=element))
    candidates = draw(arrays.arrays("float32", (draw(st.integers(1, 6)), width), elements=element))
    query, candidates = torch.from_numpy(query), torch.from_numpy(candidates)
    scale = 0.2 if similarity is ROTL else draw(st.sampled_from([1.0, 1e-3, 30.0, 1e4]))
    candidates[0] = draw(st.sampled_from([candidates[0], query[0, :width], torch.zeros(width)]))
    query[-1] = draw(st.sampled_from([query[-1], torch.zeros(wide)]))
    return query * scale, candidates * scale


@EVERY
@settings(max_examples=50)
@given(data=st.data())
def test_scores_are_the_formula_in_every_form(similarity: Similarity, plain: Plain, data: st.DataObject) -> None:
    query, candidates = data.draw(problems(similarity))
    expected = plain(query.double()[:, None], candidates.double())
    allowed = slack(similarity, query.double(), candidates.double())
    count = len(candidates)
    own = torch.tensor(data.draw(st.lists(st.permutations(range(count)), min_size=len(query), max_size=len(query))))
    one_by_one = similarity.pairs(query.repeat_interleave(count, 0), candidates.repeat(len(query), 1))
    forms = {
        "scores": (similarity.scores(query, candidates), None),
        "block": (similarity.block(query, candidates), None),
        "pairs": (one_by_one.view(len(query), count), None),
        "indexed": (similarity.indexed(query, candidates, own), own),
        "indexed, shared": (similarity.indexed(query, candidates, own[:1]), own[:1].expand(len(query), -1)),
    }
    for name, (scores, places) in forms.items():
        want, room = (t if places is None else t.gather(1, places) for t in (expected, allowed))
        assert scores.dtype == torch.float32
        assert ((scores - want).abs() <= room).all(), f"{name}: {scores} is not {want}"


def test_numbers_written_by_hand() -> None:
    query, candidates = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0], [1.0, 2.0]])
    assert DOT.scores(query, candidates).tolist() == [[1.0, 5.0]]
    assert SQUARED_L2.scores(query, candidates).tolist() == [[-13.0, 0.0]]
    assert L2.scores(query, candidates)[0].tolist() == pytest.approx([-3.6055513, -1e-6])
    assert L1.scores(query, candidates).tolist() == [[-5.0, 0.0]]
    scaled = torch.tensor([[1.0, 2.0, 2.0, -3.0]])  # |1 - 2·3| + |2 - (-3)(-1)|, |1 - 2·1| + |2 - (-3)·2|
    assert SCALED_L1.scores(scaled, candidates).tolist() == [[-6.0, -9.0]]
    affine = torch.tensor([[1.0, 2.0, -3.0]])  # |1 + 2·3 − 3·(−1)|, |1 + 2·1 − 3·2|
    assert AFFINE_L1.scores(affine, candidates).tolist() == [[-10.0, -3.0]]
    # |(3, 4) − (1, 2) ∘ (0, 0)| and |1 + 2·1 + 3·2|
    polar, target = torch.tensor([[3.0, 4.0, 1.0, 2.0, 1.0, 2.0, 3.0]]), torch.tensor([[0.0, 0.0, 1.0, 2.0]])
    assert PolarSimilarity(moduli=2).scores(polar, target).tolist() == [[-14.0]]
    point, target = torch.tensor([[1.0, 0.0, 4.0, 0.0]]), torch.tensor([[-2.0, 0.0, 0.0, 5.0]])
    assert MODULUS.scores(point, target).tolist() == [[-10.0]]  # |3 + 4i| + |0 - 5i|


def test_rotl_numbers_written_by_hand() -> None:
    query, candidate = torch.tensor([[0.5, 0.0]]), torch.tensor([[-0.5, 0.0]])
    # |q - c| = 1, 1 - q·c = 1.25: φ(0.8) = 0.8 e^0.8, and φ(1.6) where α = 2
    assert RotLSimilarity().scores(query, candidate).item() == pytest.approx(-1.7804327)
    assert RotLSimilarity(2.0).scores(query, candidate).item() == pytest.approx(-7.9248519)


def test_rotl_stays_finite_where_the_denominator_vanishes() -> None:
    query = torch.tensor([[1.0, 0.0]], requires_grad=True)
    candidates = torch.tensor([[1.0, 5.0], [1.0, 0.0]], requires_grad=True)
    scores = RotLSimilarity().block(query, candidates)
    # Distance 5 over the smallest denominator is 500: on the tangent at 10, e^10 (10 + 11 · 490). And φ(10^-4).
    assert scores[0].tolist() == pytest.approx([-118942915.3, -1.0001e-4], rel=1e-5)
    scores.sum().backward()
    assert query.grad is not None
    assert candidates.grad is not None
    assert query.grad.isfinite().all()
    # d score / d c = -e^10 · 11 / 0.01 along the unit vector from q to c.
    assert candidates.grad[0].tolist() == pytest.approx([0.0, -math.exp(10) * 1100], rel=1e-4, abs=1.0)


def random_problem(similarity: Similarity, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries [5, ·], candidates [9, 12], indices [5, 7] with repeats, and gradients of scores [5, 9]."""
    generator = torch.Generator().manual_seed(seed)
    spread = 0.25 if similarity is ROTL else 1.0
    query = torch.randn(5, query_width(similarity, 12), generator=generator) * spread
    candidates = torch.randn(9, 12, generator=generator) * spread
    index = torch.randint(9, (5, 7), generator=generator)
    index[:, 3] = index[:, 0]
    return query, candidates, index, torch.randn(5, 9, generator=generator)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def close(got: Tensor | None, expected: Tensor | None) -> bool:
    assert got is not None
    assert expected is not None
    got, expected = got.detach().double(), expected.detach().double()
    return torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@EVERY
def test_gradients_of_blocks_are_those_of_the_formula(similarity: Similarity, plain: Plain) -> None:
    query, candidates, _, grad = random_problem(similarity)
    got, want = leaves(query, candidates), leaves(query.double(), candidates.double())
    similarity.block(*got).backward(grad)
    plain(want[0][:, None], want[1]).backward(grad.double())
    assert close(got[0].grad, want[0].grad)
    assert close(got[1].grad, want[1].grad)


@EVERY
def test_gradients_agree_with_finite_differences(similarity: Similarity, plain: Plain) -> None:
    query, candidates, _, grad = random_problem(similarity, seed=1)
    to_query, to_candidates = similarity.gradients(grad, similarity.scores(query, candidates), query, candidates)

    def total(q: Tensor, c: Tensor) -> float:
        return float((grad.double() * plain(q[:, None], c)).sum())

    exact = query.double(), candidates.double()
    for which, got in enumerate((to_query, to_candidates)):
        for place in [(0, 0), (4, 5), (2, got.shape[1] - 1)]:
            step = torch.zeros_like(exact[which])
            step[place] = 1e-6
            ends = [[t + sign * step if i == which else t for i, t in enumerate(exact)] for sign in (1, -1)]
            slope = (total(*ends[0]) - total(*ends[1])) / 2e-6
            assert float(got[place]) == pytest.approx(slope, rel=1e-3, abs=1e-3 * float(got.abs().max()))


@EVERY
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_of_indexed_rows_are_those_of_the_formula(similarity: Similarity, plain: Plain, shared: bool) -> None:
    query, rows, index, grad = random_problem(similarity, seed=2)
    index = index[:1] if shared else index
    got, want = leaves(query, rows), leaves(query.double(), rows.double())
    similarity.indexed(*got, index).backward(grad[:, :7])
    plain(want[0][:, None], want[1][index]).backward(grad[:, :7].double())
    assert close(got[0].grad, want[0].grad)
    assert close(got[1].grad, want[1].grad)


@EVERY
def test_gradients_of_pairs_are_those_of_the_formula(similarity: Similarity, plain: Plain) -> None:
    query, candidates, _, grad = random_problem(similarity, seed=3)
    got, want = leaves(query, candidates[:5]), leaves(query.double(), candidates[:5].double())
    similarity.pairs(*got).backward(grad[:, 0])
    plain(*want).backward(grad[:, 0].double())
    assert close(got[0].grad, want[0].grad)
    assert close(got[1].grad, want[1].grad)


@pytest.mark.parametrize("similarity", [SQUARED_L2, L2, L1, MODULUS], ids=lambda similarity: similarity.name)
def test_a_distance_of_zero_pulls_nowhere(similarity: Similarity) -> None:
    query, rows = leaves(torch.ones(2, 4), torch.ones(3, 4))
    index = torch.tensor([[0, 1], [2, 2]])
    total = similarity.block(query, rows).sum() + similarity.indexed(query, rows, index).sum()
    (total + similarity.pairs(query, rows[:2]).sum()).backward()
    assert query.grad is not None
    assert rows.grad is not None
    assert not query.grad.any()
    assert not rows.grad.any()


@EVERY
@pytest.mark.parametrize("shared", [False, True])
def test_the_compiled_path_and_the_plain_one_agree(
    similarity: Similarity, plain: Plain, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, rows, index, grad = random_problem(similarity, seed=4)
    index = index[:1] if shared else index

    def outcome() -> list[Tensor | None]:
        q, c = leaves(query, rows)
        block, some = similarity.block(q, c), similarity.indexed(q, c, index)
        ((block * grad).sum() + (some * grad[:, :7]).sum()).backward()
        return [block, some, q.grad, c.grad]

    compiled = outcome()
    monkeypatch.setattr(module, "on_cpu", lambda *tensors: False)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * query.numel() * 2 + 8)  # two candidates at a time
    for got, want in zip(outcome(), compiled, strict=True):
        assert close(got, want)


@EVERY
def test_slices_of_wider_rows_are_compared_like_copies(similarity: Similarity, plain: Plain) -> None:
    query, candidates, index, grad = random_problem(similarity, seed=5)
    wide_query, wide_rows = torch.cat([query, query], 1), torch.cat([candidates, candidates], 1)
    sliced = wide_query[:, : query.shape[1]], wide_rows[:, :12]
    assert close(similarity.scores(*sliced), similarity.scores(query, candidates))
    assert close(similarity.indexed(*sliced, index), similarity.indexed(query, candidates, index))
    scores = similarity.scores(query, candidates)
    expected = similarity.gradients(grad, scores, query, candidates)
    for got, want in zip(similarity.gradients(grad, scores, *sliced), expected, strict=True):
        assert close(got, want)


@EVERY
def test_weighted_gradients_are_those_of_weighted_queries(similarity: Similarity, plain: Plain) -> None:
    query, candidates, _, grad = random_problem(similarity)
    weight = torch.tensor([0.5, 0.0, -2.0, 1.0, 3.0])
    scores = similarity.scores(query, candidates)
    expected = similarity.gradients(grad * weight[:, None], scores, query, candidates)
    got = similarity.weighted_gradients(grad.clone(), weight, scores, query, candidates)
    for ours, want in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, want)


@EVERY
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [(3, 4, 6), (70, 90, 32)], ids=["small", "large"])
def test_a_broken_vector_never_gets_a_finite_score(
    similarity: Similarity, plain: Plain, value: float, size: tuple[int, int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, count, width = size
    query = 0.1 * torch.randn(queries, query_width(similarity, width), generator=generator)
    candidates = 0.1 * torch.randn(count, width, generator=generator)
    query[1, 0], candidates[2, 1] = value, value
    index = torch.arange(count).expand(queries, -1).contiguous()
    broken = torch.zeros(queries, count, dtype=torch.bool)
    broken[1], broken[:, 2] = True, True
    for scores in (
        similarity.scores(query, candidates),
        similarity.indexed(query, candidates, index),
        similarity.pairs(query.repeat_interleave(count, 0), candidates.repeat(queries, 1)).view(queries, count),
    ):
        unusable = scores.isnan() if math.isnan(value) else ~scores.isfinite()
        assert torch.equal(unusable, broken)


@EVERY
def test_no_candidates_and_no_queries_give_empty_scores(similarity: Similarity, plain: Plain) -> None:
    query, candidates, index, _ = random_problem(similarity)
    assert similarity.scores(query, candidates[:0]).shape == (5, 0)
    assert similarity.scores(query[:0], candidates).shape == (0, 9)
    assert similarity.indexed(query[:0], candidates, index[:0]).shape == (0, 7)
