"""Steps on a GPU as CUDA graphs: the kernels of a step are queued by one call, not one after the other.

A graph repeats kernels on the memory that they were captured with. So it serves batches of the same shapes, which are
copied into that memory, as those of sampled training are that a device makes: unique ids have a fixed number.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distkg.config import RunConfig
from distkg.embedding.batches import ONLY_REPORTED, Batch
from distkg.embedding.model import TrainingModel
from distkg.embedding.steps.step import Step, StepResult

WARM_UP = 3
"""Steps of a shape that are computed kernel by kernel: libraries choose and set up their kernels in them."""
MOST_SHAPES = 2
"""Graphs that are kept, each with the memory of a step. With one rank, the steps of an epoch differ by one triple, so
they have two shapes. With several, ids are as many as there are, and hardly any shape recurs."""
_MOST_COUNTED = 256
_TOLERANCE = 1e-3

_log = logging.getLogger(__name__)


class Graph(Protocol):
    """Captured kernels, as ``torch.cuda.CUDAGraph``."""

    def replay(self) -> None:
        """Queue the kernels again."""
        ...


Capture = Callable[[Callable[[], StepResult]], tuple[Graph, StepResult]]
"""Function that captures the kernels of a step without running them: the graph, and the memory of its results."""


@dataclass(frozen=True)
class CapturedShape:
    """Graph of the batches of one shape, and the memory that it reads and writes."""

    graph: Graph
    batch: Batch
    rows: Tensor
    result: StepResult

    def __call__(self, batch: Batch, rows: Tensor) -> StepResult:
        for place, value in zip(_tensors(self.batch), _tensors(batch), strict=True):
            place.copy_(value)
        self.rows.copy_(rows)
        self.graph.replay()
        return self.result


class CapturedStep:
    """Step that is a graph for the shapes of batches that recur; results are valid until the next step.

    A shape is computed as usual at first, and captured after that. A graph is used only if it repeats loss and
    gradients of the step that it was captured from; else, or if capturing fails, all steps stay as they were, and a
    warning says so.

    Attributes:
        graphs: graphs by shape.
    """

    def __init__(self, step: Step, parameters: Sequence[nn.Parameter], capture: Capture) -> None:
        """``parameters`` are those whose gradients the step computes, in memory that stays and is zero before it."""
        self._step, self._parameters, self._capture = step, parameters, capture
        self.graphs: dict[Hashable, CapturedShape] = {}
        self._seen: Counter[Hashable] = Counter()
        self._capturing = True

    def __call__(self, batch: Batch, rows: Tensor) -> StepResult:
        shape = _shape_of([batch, rows])
        if shape in self.graphs:
            return self.graphs[shape](batch, rows)
        result = self._step(batch, rows)
        if self._is_due(shape):
            self._try_to_capture(shape, batch, rows, result)
        return result

    def _is_due(self, shape: Hashable) -> bool:
        """Count a step of a shape, and return whether to capture it."""
        if not self._capturing or len(self.graphs) == MOST_SHAPES or len(self._seen) > _MOST_COUNTED:
            return False
        self._seen[shape] += 1
        return self._seen[shape] == WARM_UP

    def _try_to_capture(self, shape: Hashable, batch: Batch, rows: Tensor, result: StepResult) -> None:
        """Capture the step that gave a result, and leave its gradients of parameters as they are."""
        gradients = [_gradient(parameter).clone() for parameter in self._parameters]
        try:
            captured = self._captured(batch, rows)
            alike = self._repeats(captured, batch, rows, result, gradients)
        except RuntimeError as error:
            self._give_up(str(error).partition("\n")[0])
            return
        finally:
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                _gradient(parameter).copy_(gradient)
        if alike:
            self.graphs[shape] = captured
        else:
            self._give_up("the graph computed something else")

    def _captured(self, batch: Batch, rows: Tensor) -> CapturedShape:
        own_batch, own_rows = _copy(batch), rows.clone()
        graph, result = self._capture(lambda: self._step(own_batch, own_rows))
        return CapturedShape(graph, own_batch, own_rows, result)

    def _repeats(
        self, captured: CapturedShape, batch: Batch, rows: Tensor, expected: StepResult, gradients: Sequence[Tensor]
    ) -> bool:
        """Return whether a graph computes what the step computed: loss, and gradients of rows and parameters."""
        for parameter in self._parameters:
            _gradient(parameter).zero_()
        found = captured(batch, rows)
        pairs = [(found.loss, expected.loss), (found.rows, expected.rows)]
        pairs += [(_gradient(parameter), each) for parameter, each in zip(self._parameters, gradients, strict=True)]
        return all(_is_near(ours, theirs) for ours, theirs in pairs)

    def _give_up(self, reason: str) -> None:
        self._capturing = False
        self.graphs.clear()
        _log.warning("steps are not captured as CUDA graphs, and queued kernel by kernel: %s", reason)


def captured(step: Step, model: TrainingModel, config: RunConfig) -> Step:
    """Return a step that is captured on a GPU, or the step itself where a graph would not compute the same.

    That is: on other devices; with ``train.overlap``, where results outlive the next step; with dropout, whose masks
    differ; and for scorers with batch statistics, which every trial would change.
    """
    changing = config.train.overlap or not isinstance(model.dropout, nn.Identity) or any(True for _ in model.buffers())
    if model.ranks.device.type != "cuda" or changing:
        return step
    return CapturedStep(step, [each for each in model.parameters() if each.requires_grad], capture_on_gpu)


def capture_on_gpu(step: Callable[[], StepResult]) -> tuple[Graph, StepResult]:
    """Capture the kernels of a step; other threads may use the GPU meanwhile."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = step()
    return graph, result


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _is_near(found: Tensor, expected: Tensor) -> bool:
    """Return whether tensors differ by rounding, relative to the largest value."""
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max()) if expected.numel() else True


def _values(record: Any) -> list[Any]:
    return [getattr(record, field.name) for field in fields(record) if field.metadata != ONLY_REPORTED]


def _tensors(record: Any) -> list[Tensor]:
    """Return the tensors of a dataclass and of those in it, in order."""
    parts = [_tensors(value) if is_dataclass(value) else [value] for value in _values(record)]
    return [value for part in parts for value in part if isinstance(value, Tensor)]


def _shape_of(value: Any) -> Hashable:
    """Return everything of a value that a graph would repeat: shapes and data types of tensors, and other values."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape)
    if isinstance(value, list):
        return tuple(map(_shape_of, value))
    return (type(value), *map(_shape_of, _values(value))) if is_dataclass(value) else value


def _copy(record: Any) -> Any:
    """Return a dataclass with copies of its tensors."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    copies = {name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}
    return replace(record, **copies, **{name: _copy(value) for name, value in values.items() if is_dataclass(value)})
