"""Windows of batches made ahead of the steps."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from distkg.embedding.batches import Batches
from distkg.embedding.windows import Windows
from distkg.kernels.threads import computing_threads


class CountedWindows:
    """Batches that are their own names, and that note who asked for them."""

    steps, triples = 10, 100
    order: Any = None

    def __init__(self, ahead: bool = True) -> None:
        self.ahead = ahead
        self.made: list[tuple[int, int, int]] = []
        self.threads: list[int] = []
        self.may_end = threading.Event()
        self.may_end.set()

    def window(self, epoch: int, first: int, last: int) -> Sequence[Any]:
        self.may_end.wait(10)
        if first == 6:
            raise LookupError("step 6")
        self.made.append((epoch, first, last))
        self.threads.append(torch.get_num_threads() if threading.current_thread().name != "MainThread" else 0)
        return [(epoch, step) for step in range(first, last)]

    def begin(self, batch: Any) -> None: ...


def taken(batches: Batches, *asked: tuple[int, int, int, int]) -> list[list[Any]]:
    windows = Windows(batches)
    return [list(windows.take(*steps)) for steps in asked]


def test_the_next_window_is_made_on_another_thread() -> None:
    batches = CountedWindows()
    with computing_threads(2):
        assert taken(batches, (3, 0, 2, 4), (3, 2, 4, 4)) == [[(3, 0), (3, 1)], [(3, 2), (3, 3)]]
    assert batches.made == [(3, 0, 2), (3, 2, 4)]
    assert batches.threads == [0, 1]


@pytest.mark.parametrize(("threads", "ahead"), [(1, True), (2, False)])
def test_with_one_cpu_or_batches_of_the_moment_windows_are_made_when_they_are_taken(threads: int, ahead: bool) -> None:
    batches = CountedWindows(ahead)
    with computing_threads(threads):
        assert taken(batches, (3, 0, 2, 4)) == [[(3, 0), (3, 1)]]
        assert batches.made == [(3, 0, 2)]
        assert taken(batches, (3, 0, 2, 4), (3, 2, 4, 4))[1] == [(3, 2), (3, 3)]
    assert batches.threads == [0, 0, 0]


def test_a_window_that_is_no_longer_wanted_ends_before_another_is_made() -> None:
    batches = CountedWindows()
    with computing_threads(2):
        windows = Windows(batches)
        windows.take(0, 0, 2, 4)
        batches.may_end.clear()
        threading.Timer(0.05, batches.may_end.set).start()
        assert windows.take(1, 0, 2, 2) == [(1, 0), (1, 1)]
    assert batches.made == [(0, 0, 2), (0, 2, 4), (1, 0, 2)]


def test_what_the_thread_raises_is_raised_when_the_window_is_taken() -> None:
    with computing_threads(2):
        windows = Windows(CountedWindows())
        windows.take(0, 4, 6, 8)
        with pytest.raises(LookupError, match="step 6"):
            windows.take(0, 6, 8, 8)
