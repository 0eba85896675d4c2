"""Workers that stay from run to run, so that only the first run of several waits for processes and their imports.

A run has its own process group, heartbeats, notes of failures and restarts. After a failure, whatever it was, all
workers are replaced.
"""

from __future__ import annotations

import threading
from itertools import count
from uuid import uuid4

import ray.train

from distkg.cluster.watch.failures import FailureNotes, in_short, left_nodes
from distkg.cluster.worker_group import WorkerGroup, WorkersFailed
from distkg.cluster.worker_task import WorkerTask
from distkg.config import RunConfig
from distkg.training.run_dir import Record

GROWTH_BYTES = 256 * 2**20
"""Bytes by which a worker may hold more memory after a run than after its first one, before it is replaced."""


class KeptWorkers:
    """Workers for runs, one run after another, with the number of workers and the cluster settings of ``config``.

    Attributes:
        name: beginning of the names of their placement groups; see `release_workers`.
    """

    def __init__(self, config: RunConfig) -> None:
        self.name, self._groups = f"kept-workers-{uuid4().hex}", count()
        self._workers, self._cluster = config.train.workers, config.cluster
        self._group: WorkerGroup | None = None
        self._held_first: list[int] = []
        self._changing, self._closed = threading.Lock(), False

    def are_ready(self) -> bool:
        """Return whether workers wait for a run; those that have died or grown since their first run are ended."""
        if self._group is None:
            return False
        try:
            held = self._group.memory()
        except WorkersFailed:
            self._end_group()
            return False
        self._held_first = self._held_first or held
        if any(now - first > GROWTH_BYTES for now, first in zip(held, self._held_first, strict=True)):
            self._end_group()
        return self._group is not None

    def train(self, task: WorkerTask, notes: FailureNotes) -> Record:
        """Train on the workers and return the first one's result; start them where there are none.

        Returns:
            A result with the key ``stopped`` if :meth:`close` ended the workers.

        Raises:
            WorkerGroupError: workers failed more often than ``cluster.max_failures`` allows.
            Exception: an error that a restart would repeat, as it was raised on a worker.
        """
        restarts_left = self._cluster.max_failures
        while (group := self._open()) is not None:
            try:
                return group.run(task.on_kept_worker)
            except WorkersFailed as failure:
                self._end_group()
                if self._closed:
                    break
                notes.after_exception(None, failure.errors)
                if left_nodes(failure.errors):
                    continue
                if not restarts_left:
                    text = "; ".join(in_short(error) for error in failure.errors.values())
                    raise ray.train.WorkerGroupError(text, failure.errors) from None
                restarts_left -= 1
        return {"stopped": None}

    def close(self) -> None:
        """End the workers, even in the middle of a run, for good."""
        with self._changing:
            self._closed = True
        self._end_group()

    def _open(self) -> WorkerGroup | None:
        """Return the group, a new one where there is none; None after :meth:`close`."""
        with self._changing:
            if self._group is None and not self._closed:
                self._group, self._held_first = self._new_group(), []
            return self._group

    def _new_group(self) -> WorkerGroup:
        return WorkerGroup(self._workers, self._cluster, name=f"{self.name}-{next(self._groups)}")

    def _end_group(self) -> None:
        with self._changing:
            group, self._group = self._group, None
        if group is not None:
            group.end()
