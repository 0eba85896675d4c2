"""Questions to a trained model that several Ray workers answer together.

Each worker reads its range of rows from the files of a checkpoint, whatever number of workers wrote it. Workers are
plain actors: an answer takes seconds to minutes, and one whose worker is lost is asked again by its user.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
import torch

from distkg.cluster.session.ray_session import ClusterError, ray_session, worker_threads
from distkg.cluster.session.remote_errors import mistake_of
from distkg.cluster.worker_group import WorkerGroup, WorkersFailed
from distkg.config import RunConfig
from distkg.data.storage.working_copy import folder_at
from distkg.sharding.ranks import Ranks
from distkg.training.family import GraphChoice, Predictor, family_of_folder

JOIN_SECONDS = 300

T = TypeVar("T")


def ask_workers(folder: str | Path, choice: GraphChoice, workers: int, question: Callable[[Predictor, Ranks], T]) -> T:
    """Open a trained model on ``workers`` Ray workers, and return what the first one gets from ``question``.

    Joins the cluster of RAY_ADDRESS, as in a job, else starts Ray on this machine. Model and store must be at the same
    addresses on every node.

    Args:
        folder: path of a run or model, or its address in an object store.
        question: function that all workers call on the opened model; picklable, collective.

    Raises:
        ClusterError: there is no such cluster, or it has no room for so many workers.
        ValueError: opening the model or the question raised it; any error of distkg as it was raised there.
        RemoteTaskError: a worker was lost.
    """
    config = RunConfig.model_validate({"train": {"workers": workers}})
    threads = worker_threads(config.cluster)
    answer = _Answer(os.getcwd(), folder, replace(choice, tell=None), question, threads)
    with ray_session(config) as session:
        _check_room(workers)
        group = WorkerGroup(workers, config.cluster, strategy="SPREAD")
        try:
            value, told = session.run(lambda: group.run(answer, JOIN_SECONDS))
        except WorkersFailed as failure:
            error = next(iter(failure.errors.values()))
            raise mistake_of(error, f"reading {folder} on {workers} workers") from None
        finally:
            group.end()
    if choice.tell is not None:
        for report in told:
            choice.tell(report)
    return value


def _check_room(workers: int) -> None:
    """Validate that the cluster has a CPU for each worker.

    Raises:
        ClusterError: the cluster has fewer CPUs.
    """
    total = ray.cluster_resources().get("CPU", 0)
    if total < workers:
        raise ClusterError(f"{workers} workers need {workers} CPUs, and the cluster has {total:g}. Lower --workers")


@dataclass(frozen=True)
class _Answer(Generic[T]):
    """Question to a model, as each worker receives it."""

    directory: str
    folder: str | Path
    choice: GraphChoice
    question: Callable[[Predictor, Ranks], T]
    threads: int

    def __call__(self, rank: int) -> tuple[T, list[Any]]:
        told: list[Any] = []
        torch.set_num_threads(self.threads)
        ranks = Ranks.from_process_group(torch.device("cpu"))
        choice = replace(self.choice, tell=told.append)
        # In the driver's directory, so that relative paths of model, store and output mean the same.
        with (
            chdir(self.directory),
            folder_at(self.folder) as folder,
            family_of_folder(folder).open(folder, ranks, choice) as predictor,
        ):
            return self.question(predictor, ranks), told
