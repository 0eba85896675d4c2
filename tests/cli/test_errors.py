"""What an error says, and how the process exits."""

from __future__ import annotations

import errno

import pytest
import ray

from distkg.cli.errors import explain
from distkg.cluster.ray_train.launch import TrainingError
from distkg.config import ConfigError
from distkg.data.errors import StoreError
from distkg.planning.plan import PlanError


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (ConfigError("model.dim: no"), "model.dim: no", 2),
        (TrainingError("workers were lost"), "workers were lost", 1),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.tsv"), "x.tsv: No such file or directory", 2),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "a -> b: Invalid cross-device link", 2),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device", 2),
        (PermissionError("no access"), "no access", 2),
        (OSError(), "OSError", 2),
    ],
)
def test_mistakes_say_what_they_say(error: Exception, message: str, code: int) -> None:
    assert explain(error) == (message, code)


def test_a_plan_that_refuses_exits_with_3() -> None:
    plan_error = PlanError.__new__(PlanError)
    ValueError.__init__(plan_error, "too large")
    assert explain(plan_error)[1] == 3


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7 TiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_said(error: Exception) -> None:
    message, code = explain(error)
    assert message.startswith("out of memory (")
    assert code == 1


@pytest.mark.parametrize("error", [RecursionError("deep"), OverflowError("big"), ValueError("x\n\ny"), KeyError("k")])
def test_anything_else_is_a_bug_in_one_line(error: Exception) -> None:
    message, code = explain(error)
    assert code == 1
    assert "\n" not in message
    assert message.startswith(f"{type(error).__name__}: ")
    assert "This is a bug in distkg: run it again as `distkg --debug …`" in message


def test_a_bug_is_placed_where_distkg_was() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        explain(1 // 0)  # type: ignore[arg-type]
    assert "(outside of distkg)" in explain(caught.value)[0]


def test_a_mistake_in_a_task_of_ray_is_the_mistake() -> None:
    mistake = StoreError("no such store")
    wrapped = ray.exceptions.RayTaskError("task", "Traceback (most recent call last)", mistake).as_instanceof_cause()
    assert explain(wrapped) == ("no such store", 2)
