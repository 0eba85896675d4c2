"""Objectives with sampled negatives against numbers written by hand and their papers' sums written as loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distkg.config import ObjectiveConfig
from distkg.objectives import EXCLUDED, SAMPLED, SampledObjective
from distkg.objectives.sampled import Logistic
from distkg.registry import UnknownNameError

LN2, LN3 = math.log(2), math.log(3)
EVERY = pytest.mark.parametrize("name", ["margin", "logistic", "self_adversarial", "sampled_softmax"])


def objective(name: str, margin: float = 1.0, temperature: float = 1.0) -> SampledObjective:
    return SAMPLED[name](ObjectiveConfig(name=name, margin=margin, temperature=temperature))


@pytest.mark.parametrize(
    ("name", "positive", "negatives", "expected"),
    [
        ("margin", 2.0, [1.5, 0.0, 3.0], (0.5 + 0 + 2) / 3),
        ("margin", 9.0, [8.0, 0.0, 3.0], 0.0),
        ("logistic", 0.0, [0.0, LN3], LN2 + (LN2 + 2 * LN2) / 2),
        # Margin 1; the negatives weigh 1/4 and 3/4.
        ("self_adversarial", -1.0, [-1.0, -1.0 + LN3], LN2 + 0.25 * LN2 + 0.75 * 2 * LN2),
        ("sampled_softmax", 0.0, [0.0, LN2], 2 * LN2),
    ],
)
def test_numbers_written_by_hand(name: str, positive: float, negatives: list[float], expected: float) -> None:
    loss = objective(name)(torch.tensor([positive]), torch.tensor([negatives]))
    assert loss.tolist() == pytest.approx([expected], abs=1e-6)


def test_temperature_sharpens_the_weights_of_self_adversarial() -> None:
    negatives = torch.tensor([[-1.0, -1.0 + LN3]])  # weights 1/10 and 9/10
    loss = objective("self_adversarial", temperature=2.0)(torch.tensor([-1.0]), negatives)
    assert loss.item() == pytest.approx(LN2 + 0.1 * LN2 + 0.9 * 2 * LN2)


def test_at_temperature_0_negatives_weigh_the_same_and_those_left_out_nothing() -> None:
    negatives = torch.tensor([[-1.0, -1.0 + LN3, EXCLUDED]])
    loss = objective("self_adversarial", temperature=0.0)(torch.tensor([-1.0]), negatives)
    assert loss.item() == pytest.approx(LN2 + (LN2 + 2 * LN2) / 2)


def test_the_weights_of_self_adversarial_are_constants_to_the_gradient() -> None:
    negatives = torch.tensor([[-1.0, -1.0 + LN3]], requires_grad=True)
    objective("self_adversarial")(torch.tensor([-1.0]), negatives).sum().backward()
    assert negatives.grad is not None
    assert negatives.grad.flatten().tolist() == pytest.approx([0.25 * 0.5, 0.75 * 0.75])  # weight times σ(γ + s)


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def loop(name: str, positive: float, negatives: list[float], margin: float, temperature: float) -> float:
    count = len(negatives)
    if name == "margin":
        return sum(max(0.0, margin - positive + negative) for negative in negatives) / count
    if name == "logistic":
        return -log_sigmoid(positive) - sum(log_sigmoid(-negative) for negative in negatives) / count
    if name == "sampled_softmax":
        return math.log(sum(math.exp(score) for score in [positive, *negatives])) - positive
    total = sum(math.exp(temperature * negative) for negative in negatives)
    weighted = (math.exp(temperature * s) / total * log_sigmoid(-margin - s) for s in negatives)
    return -log_sigmoid(margin + positive) - sum(weighted)


scores = st.floats(-8, 8, width=32)


@EVERY
@given(
    rows=st.integers(1, 7).flatmap(
        lambda count: st.lists(
            st.tuples(scores, st.lists(scores, min_size=count, max_size=count)), min_size=1, max_size=4
        )
    ),
    margin=st.floats(0, 6, width=32),
    temperature=st.floats(0.25, 2, width=32),
)
def test_every_objective_is_its_loop(
    name: str, rows: list[tuple[float, list[float]]], margin: float, temperature: float
) -> None:
    positive, negative = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    loss = objective(name, margin, temperature)(positive, negative)
    assert loss.shape == (len(rows),)
    assert loss.tolist() == pytest.approx([loop(name, *row, margin, temperature) for row in rows], rel=2e-5, abs=2e-6)


def with_gradients(name: str, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    positive, negative = positive.clone().requires_grad_(), negative.clone().requires_grad_()
    loss = objective(name)(positive, negative)
    (loss * torch.arange(1.0, len(loss) + 1)).sum().backward()
    assert positive.grad is not None
    assert negative.grad is not None
    return loss.detach(), positive.grad, negative.grad


@EVERY
def test_negatives_left_out_change_nothing(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(5, generator=generator), torch.randn(5, 4, generator=generator)
    excluded = torch.full((5, 3), EXCLUDED)
    mixed = torch.cat([excluded[:, :1], negative[:, :2], excluded[:, :2], negative[:, 2:]], 1)
    loss, to_positive, to_negative = with_gradients(name, positive, mixed)
    plain_loss, plain_positive, plain_negative = with_gradients(name, positive, negative)
    torch.testing.assert_close(loss, plain_loss)
    torch.testing.assert_close(to_positive, plain_positive)
    torch.testing.assert_close(to_negative[:, [1, 2, 5, 6]], plain_negative)
    assert not to_negative[:, [0, 3, 4]].any()


@EVERY
def test_rows_differ_in_how_many_take_part(name: str) -> None:
    positive, negative = torch.tensor([0.5, 0.5]), torch.tensor([[1.0, -0.5, 2.0], [1.0, EXCLUDED, EXCLUDED]])
    loss = objective(name)(positive, negative)
    alone = torch.cat([objective(name)(positive[:1], negative[:1]), objective(name)(positive[1:], negative[1:, :1])])
    torch.testing.assert_close(loss, alone)


@pytest.mark.parametrize(
    ("name", "of_positive"),
    [("margin", 0.0), ("logistic", LN2), ("self_adversarial", 0.3132617), ("sampled_softmax", 0.0)],
)
def test_with_every_negative_left_out_the_answer_stands_alone(name: str, of_positive: float) -> None:
    loss, to_positive, to_negative = with_gradients(name, torch.zeros(1), torch.full((1, 3), EXCLUDED))
    assert loss.item() == pytest.approx(of_positive)
    assert to_positive.isfinite().all()
    assert not to_negative.any()


@EVERY
def test_large_scores_stay_finite_and_nan_is_not_hidden(name: str) -> None:
    large = torch.tensor([[1e4, -1e4]])
    for positive in (1e4, -1e4):
        parts = with_gradients(name, torch.tensor([positive]), large)
        assert all(part.isfinite().all() for part in parts)
    broken = objective(name)(torch.zeros(2), torch.tensor([[0.0, math.nan, EXCLUDED], [0.0, 1.0, 2.0]]))
    assert broken.isnan().tolist() == [True, False]


@EVERY
def test_no_queries_give_no_losses(name: str) -> None:
    assert objective(name)(torch.zeros(0), torch.zeros(0, 5)).shape == (0,)


@EVERY
@given(
    columns=st.integers(0, 40),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    spread=st.sampled_from([0.01, 1.0, 30.0]),
    grows=st.booleans(),
    seed=st.integers(0, 100),
)
def test_the_compiled_pass_is_the_plain_form_in_double_precision(
    name: str, columns: int, share: float, spread: float, grows: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    positive = spread * torch.randn(3, generator=generator)
    negative = spread * torch.randn(3, columns, generator=generator)
    negative[torch.rand(3, columns, generator=generator) < share] = EXCLUDED
    growth = torch.rand(3, generator=generator) if grows else None
    chosen = objective(name, 2.0, 0.5)
    exact = chosen.with_gradients(positive.double(), negative.double(), None if growth is None else growth.double())
    assert chosen.compiled is not None
    for got, expected in zip(chosen.with_gradients(positive, negative, growth), exact, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=2e-6)


@EVERY
def test_the_compiled_pass_hides_no_nan(name: str) -> None:
    for positive, negative in ((math.nan, [1.0, 2.0]), (0.0, [1.0, math.nan])):
        loss, *_ = objective(name).with_gradients(torch.tensor([positive, 0.0]), torch.tensor([negative, [1.0, 2.0]]))
        assert loss.isnan().tolist() == [True, False]


def test_an_unknown_objective_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="logistic, margin, sampled_softmax, self_adversarial"):
        SAMPLED["hinge"]


@pytest.mark.parametrize(
    ("name", "positive", "negatives", "expected"),
    [
        # Margin 1, grown to 3.
        ("margin", 2.0, [1.5, 0.0, 3.0], (2.5 + 1 + 4) / 3),
        ("self_adversarial", -3.0, [-3.0, -3.0 + LN3], LN2 + 0.25 * LN2 + 0.75 * 2 * LN2),
        # Without a margin there is nothing to grow.
        ("logistic", 0.0, [0.0, LN3], LN2 + (LN2 + 2 * LN2) / 2),
        ("sampled_softmax", 0.0, [0.0, LN2], 2 * LN2),
    ],
)
def test_a_grown_margin_by_hand(name: str, positive: float, negatives: list[float], expected: float) -> None:
    loss = objective(name)(torch.tensor([positive]), torch.tensor([negatives]), torch.tensor([3.0]))
    assert loss.tolist() == pytest.approx([expected], abs=1e-6)


@EVERY
def test_a_margin_that_has_not_grown_changes_nothing(name: str) -> None:
    positive, negative = torch.randn(5), torch.randn(5, 4)
    negative[2, 1] = EXCLUDED
    plain = objective(name)(positive, negative)
    assert torch.allclose(objective(name)(positive, negative, torch.ones(5)), plain)


def test_a_loss_of_its_own_is_not_computed_as_its_parents() -> None:
    class Halved(Logistic):
        def __call__(self, positive: Tensor, negative: Tensor, growth: Tensor | None = None) -> Tensor:
            return super().__call__(positive, negative, growth) / 2

    scores = torch.tensor([0.0]), torch.tensor([[0.0, 0.0]])
    loss, to_positive, _ = Halved(ObjectiveConfig()).with_gradients(*scores)
    assert loss.item() == pytest.approx(math.log(2))  # of log 2 for the answer and the negatives each, half
    assert to_positive.item() == pytest.approx(-0.25)
