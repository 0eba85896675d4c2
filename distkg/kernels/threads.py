"""Threads with which a thread of this process computes, and work in parts for them.

torch's number of threads is that of the CPUs that a process has. Compiled kernels release the GIL and use one thread
each, so their callers cut the work into parts. No result depends on which thread computes a part. Unless a function
says otherwise, none depends on the number of parts either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch


@contextmanager
def computing_threads(count: int) -> Iterator[None]:
    """Let torch and numba use ``count`` threads for what this thread computes in the context."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def for_each(tasks: Sequence[tuple[Any, ...]], work: Callable[..., object]) -> None:
    """Call ``work(*task)`` for each task, on as many threads as torch uses; within one of these, one after the other.

    An exception of a task is raised when all tasks before it have ended.
    """
    threads = min(torch.get_num_threads(), len(tasks))
    if threads < 2:
        for task in tasks:
            work(*task)
        return
    for done in [_pool(threads).submit(work, *task) for task in tasks]:
        done.result()


def for_each_part(count: int, work: Callable[[int, int], object], fewest: int = 1) -> None:
    """Call ``work(low, high)`` for contiguous parts of range(count): one per thread, of at least ``fewest`` each."""
    parts = min(torch.get_num_threads(), count // fewest)
    if parts < 2:
        work(0, count)
    else:
        for_each(list(pairwise(np.linspace(0, count, parts + 1).astype(int).tolist())), work)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernels", initializer=use_one_thread)


def use_one_thread() -> None:
    """Let torch compute on this thread alone what it is asked for here."""
    torch.get_num_threads()  # the first call takes over the number of another thread, whatever was set here before
    torch.set_num_threads(1)
