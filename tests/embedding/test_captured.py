"""Captured steps on CPU: a graph stands for a call of the step on the memory that it was captured with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distkg.config import RunConfig
from distkg.embedding import build
from distkg.embedding.batches import Batch, SampledBatch
from distkg.embedding.model import TrainingModel
from distkg.embedding.steps.captured import MOST_SHAPES, WARM_UP, CapturedStep, Graph, captured
from distkg.embedding.steps.sampled import SampledStep
from distkg.embedding.steps.step import Step, StepResult
from distkg.sharding.ranks import Ranks
from tests.as_on_a_device import without_compiled_kernels
from tests.embedding.test_loop import config, train

ROWS, WIDTH = 6, 2


class FakeGraph:
    """Runs the step again where a graph would repeat its kernels, and writes to the same results."""

    def __init__(self, step: Callable[[], StepResult], error: float = 0.0) -> None:
        self._step, self._error, self.replays = step, error, 0
        self.result = StepResult(torch.full((), torch.nan), torch.full((ROWS, WIDTH), torch.nan))

    def replay(self) -> None:
        self.replays += 1
        again = self._step()
        if self.result.rows.shape != again.rows.shape:
            self.result.rows.resize_(again.rows.shape)
        self.result.loss.copy_(again.loss + self._error)
        self.result.rows.copy_(again.rows)


class Capturer:
    """Captures as a GPU would; ``error`` is added to the losses of graphs."""

    def __init__(self, error: float = 0.0, fails: bool = False) -> None:
        self.graphs: list[FakeGraph] = []
        self._error, self._fails = error, fails

    def __call__(self, step: Callable[[], StepResult]) -> tuple[Graph, StepResult]:
        if self._fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.graphs.append(FakeGraph(step, self._error))
        return self.graphs[-1], self.graphs[-1].result


class Squares:
    """Step whose loss is the sum of w · rows² of the anchors, with its gradients; it counts its calls."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.tensor(2.0))
        self.weight.grad = torch.zeros(())
        self.calls = 0

    def __call__(self, batch: Batch, rows: Tensor) -> StepResult:
        assert isinstance(batch, SampledBatch)
        self.calls += 1
        own = rows.detach().requires_grad_()
        loss = (self.weight * own[batch.anchor].square()).sum()
        loss.backward()
        assert own.grad is not None
        return StepResult(loss.detach(), own.grad)


def batch_of(*anchors: int, queries: int = 1) -> SampledBatch:
    anchor = torch.tensor(anchors)
    return SampledBatch(torch.arange(ROWS), anchor, anchor, anchor, anchor[None], 1, None, queries)


def gradient(squares: Squares) -> float:
    """Of the weight; it is cleared, as after an update."""
    assert squares.weight.grad is not None
    value = float(squares.weight.grad)
    squares.weight.grad.zero_()
    return value


def test_a_shape_is_captured_after_some_steps_and_then_replayed() -> None:
    squares, capturer = Squares(), Capturer()
    step = CapturedStep(squares, [squares.weight], capturer)
    for number in range(WARM_UP + 4):
        rows = torch.arange(ROWS * WIDTH).view(ROWS, WIDTH) + float(number)
        anchors = (number % ROWS, 5)
        result = step(batch_of(*anchors), rows)
        by_hand = sum(float(row.square().sum()) for row in (rows[anchors[0]], rows[5]))
        assert float(result.loss) == 2 * by_hand
        expected = torch.zeros(ROWS, WIDTH)
        for anchor in anchors:
            expected[anchor] += 4 * rows[anchor]
        assert torch.equal(result.rows, expected)
        assert gradient(squares) == by_hand
        assert len(capturer.graphs) == (number >= WARM_UP - 1)
    assert capturer.graphs[0].replays == 1 + 4  # one to try it


def test_every_shape_has_a_graph_up_to_a_number_of_them() -> None:
    squares, capturer = Squares(), Capturer()
    step = CapturedStep(squares, [squares.weight], capturer)
    for size in range(1, MOST_SHAPES + 3):
        for _ in range(WARM_UP + 1):
            step(batch_of(*range(size)), torch.ones(ROWS, WIDTH))
            assert gradient(squares) == size * WIDTH
    assert len(step.graphs) == len(capturer.graphs) == MOST_SHAPES
    assert [graph.replays for graph in capturer.graphs] == [2] * MOST_SHAPES


def test_numbers_of_a_batch_belong_to_its_shape() -> None:
    """A graph repeats the weight of queries, which is a number of the host."""
    squares, capturer = Squares(), Capturer()
    step = CapturedStep(squares, [squares.weight], capturer)
    for queries in (1, 2):
        for _ in range(WARM_UP):
            step(batch_of(0, queries=queries), torch.ones(ROWS, WIDTH))
            assert gradient(squares) == WIDTH
    assert len(step.graphs) == 2
    masked = replace(batch_of(0), mask=torch.zeros(1, 1, dtype=torch.bool))
    step(masked, torch.ones(ROWS, WIDTH))
    assert [graph.replays for graph in capturer.graphs] == [1, 1]


@pytest.mark.parametrize(
    ("capturer", "reason"),
    [(Capturer(error=1.0), "something else"), (Capturer(fails=True), "not permitted when stream is capturing")],
)
def test_a_graph_that_computes_something_else_is_not_used(
    capturer: Capturer, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    squares = Squares()
    step = CapturedStep(squares, [squares.weight], capturer)
    for _ in range(3 * WARM_UP):
        result = step(batch_of(1), torch.ones(ROWS, WIDTH))
        assert float(result.loss) == 4.0
        assert gradient(squares) == 2.0
    assert not step.graphs
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "and more" not in record.getMessage()


CASES: list[tuple[dict[str, Any], str, bool]] = [
    ({}, "cuda", True),
    ({}, "cpu", False),
    ({"train": {"overlap": True}}, "cuda", False),
    ({"model": {"dropout": 0.1}}, "cuda", False),
    ({"model": {"name": "conve", "dim": 32}}, "cuda", False),
]


@pytest.mark.parametrize(("sections", "device", "expected"), CASES)
def test_what_a_graph_would_not_repeat_is_not_captured(sections: dict[str, Any], device: str, expected: bool) -> None:
    run = config("store", **sections)
    model = TrainingModel(run, 5, 2, Ranks.single())
    model.ranks = Ranks(device=torch.device(device))
    step = SampledStep(model, run)
    assert isinstance(captured(step, model, run), CapturedStep) == expected


@pytest.mark.parametrize("negatives", [{"filter": True}, {"shared": False}])
def test_training_by_graphs_is_training(
    small_store: str, negatives: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all steps are replayed: those of an epoch have at most two shapes."""
    run = config(small_store, negatives=negatives, train={"batch_size": 100})
    without_compiled_kernels(monkeypatch)
    expected = train(Ranks.single(), run, 2)
    steps: list[CapturedStep] = []

    def capture(step: Step, model: TrainingModel, of: RunConfig) -> Step:
        parameters = [each for each in model.parameters() if each.requires_grad]
        steps.append(CapturedStep(step, parameters, Capturer()))
        return steps[-1]

    monkeypatch.setattr(build, "captured", capture)
    found = train(Ranks.single(), run, 2)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert 1 <= len(steps[0].graphs) <= 2
