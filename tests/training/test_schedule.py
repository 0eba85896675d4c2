"""Learning-rate factors at points written by hand, by epochs and by a time limit."""

from __future__ import annotations

import pytest

from distkg.config import OptimizerConfig
from distkg.training.schedule import Schedule


def schedule(name: str, warmup: float = 0.0) -> Schedule:
    return Schedule(OptimizerConfig.model_validate({"schedule": name, "warmup_epochs": warmup}), epochs=10)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0]), ("cosine", [1, 0.853553, 0.5, 0])],
)
def test_factors_over_the_epochs(name: str, expected: list[float]) -> None:
    made = schedule(name)
    assert [made.factor(epoch) for epoch in (0, 2.5, 5, 10)] == pytest.approx(expected, abs=1e-6)


def test_warm_up_comes_first() -> None:
    made = schedule("linear", warmup=2)
    assert [made.factor(epoch) for epoch in (0.5, 1, 2, 6, 10)] == pytest.approx([0.25, 0.5, 1, 0.5, 0])


def test_time_or_epochs_whichever_is_further() -> None:
    made = schedule("linear")
    made.time_gone = 0.6
    assert [made.factor(epoch) for epoch in (0, 5, 8)] == pytest.approx([0.4, 0.4, 0.2])
    made.time_gone = 1.2  # the last window of steps runs past the limit
    assert made.factor(1) == 0


def test_plateaus_halve_the_rate() -> None:
    made = schedule("plateau")
    for evaluations_without_gain in (0, 1, 2, 3, 4):
        made.after_evaluation(evaluations_without_gain)
    assert made.factor(3) == 0.25
