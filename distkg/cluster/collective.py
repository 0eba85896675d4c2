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

import torch

from distkg.cluster.session.address import resolve_address
from distkg.cluster.session.placement import total_resources, usable_nodes, worker_nodes
from distkg.cluster.session.ray_session import ClusterError, ray_session
from distkg.cluster.session.remote_errors import mistake_of
from distkg.cluster.worker_group import WorkerGroup, WorkersFailed
from distkg.config import ClusterConfig, RunConfig
from distkg.data.storage.working_copy import folder_at
from distkg.sharding.ranks import Ranks
from distkg.training.family import GraphChoice, Predictor, family_of_folder
from distkg.training.run_dir import RunFolder

JOIN_SECONDS = 300

T = TypeVar("T")


def ask_workers(folder: str | Path, choice: GraphChoice, workers: int, question: Callable[[Predictor, Ranks], T]) -> T:
    """Open a trained model on ``workers`` Ray workers, and return what the first one gets from ``question``.

    Joins the cluster of RAY_ADDRESS, as in a job, else starts Ray on this machine. On a cluster, workers are placed on
    the nodes that the run of the model chose for its own. Model and store must be at the same addresses on every node.

    Args:
        folder: path of a run or model, or its address in an object store.
        question: function that all workers call on the opened model; picklable, collective.

    Raises:
        ClusterError: there is no such cluster, or it has no room for so many workers.
        ConfigError: the configuration of the run cannot be read.
        ValueError: opening the model or the question raised it; any error of distkg as it was raised there.
        RemoteTaskError: a worker was lost.
    """
    config = RunConfig.model_validate({"train": {"workers": workers}})
    if resolve_address(config.cluster) != "local":
        config.cluster = _placement_of(folder)
    threads = config.cluster.threads
    answer = _Answer(os.getcwd(), folder, replace(choice, tell=None), question, threads)
    with ray_session(config) as session:
        _check_room(workers, config.cluster)
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


def _placement_of(folder: str | Path) -> ClusterConfig:
    """Return settings with the nodes on which the workers of a run were placed; any nodes for a model without a run."""
    with folder_at(folder) as opened:
        run = RunFolder(opened)
        if not run.config.is_file():
            return ClusterConfig()
        trained = run.read_config().cluster
    return ClusterConfig(label_selector=trained.label_selector, accelerator_type=trained.accelerator_type)


def _check_room(workers: int, cluster: ClusterConfig) -> None:
    """Validate that the cluster has a CPU for each worker.

    Raises:
        ClusterError: the cluster has fewer CPUs, or no node with the labels of the run.
    """
    chosen, nodes = worker_nodes(cluster), usable_nodes()
    missing = chosen.describe_missing(nodes)
    if missing is not None:
        raise ClusterError(
            f"workers are placed where those of the run were, and {missing}. Read the model without --workers, or "
            "change the key in config.yaml of the run"
        )
    total = total_resources(chosen.admitted(nodes)).get("CPU", 0)
    if total < workers:
        there = "the cluster has" if chosen.is_any else f"nodes with {chosen} have"
        raise ClusterError(f"{workers} workers need {workers} CPUs, and {there} {total:g}. Lower --workers")


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
