"""Windows of batches, of which the next one is made while the steps of the present one compute."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from distkg.embedding.batches import Batch, Batches
from distkg.kernels.threads import use_one_thread

Steps = tuple[int, int, int]
"""Epoch, first step, and the step after the last."""


class Windows:
    """Windows of batches in their order.

    A process with several CPUs makes the next window on a thread of its own, if batches allow it (``ahead``). With one
    CPU the thread would only take it away from the steps. Batches are the same either way.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._thread: ThreadPoolExecutor | None = None
        self._coming: dict[Steps, Future[Sequence[Batch]]] = {}

    def take(self, epoch: int, first: int, last: int, following: int) -> Sequence[Batch]:
        """Return the batches of the steps first … last - 1, and begin with those of last … following - 1."""
        coming, self._coming = self._coming, {}
        made = {steps: window.result() for steps, window in coming.items()}  # one that is no longer wanted ends first
        window = made.get((epoch, first, last)) or self._batches.window(epoch, first, last)
        if following > last and self._batches.ahead and torch.get_num_threads() > 1:
            self._thread = self._thread or ThreadPoolExecutor(1, "batches", use_one_thread)
            steps = epoch, last, following
            self._coming[steps] = self._thread.submit(self._batches.window, *steps)
        return window
