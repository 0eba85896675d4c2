"""Cluster and graph that a plan is made for, when neither is there yet.

A cluster is a YAML file, or ``preset:NAME`` from ``distkg/presets/clusters``::

    nodes: 4
    workers_per_node: 48
    memory_gb: 768        # GiB of a node
    network_gbit: 100     # of a node, in each direction
    worker: {gflops: 50, memory_gb_per_s: 4}   # optional: the rates of a worker while its whole node computes
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from distkg.config import CLUSTERS, ConfigError, preset_file
from distkg.config.strict import StrictModel, did_you_mean
from distkg.documents import DocumentError, read_yaml
from distkg.planning.machine import Machine

GIGABIT = 1e9 / 8  # bytes per second


class ClusterFileError(ConfigError):
    """Error of an invalid description of a cluster, or of counts of a graph; the message says what to do."""


class WorkerRates(StrictModel):
    """Rates of one worker while all workers of its node compute.

    Attributes:
        gflops: 10⁹ float32 operations per second in matrix products.
        memory_gb_per_s: 10⁹ bytes per second that a copy reads and writes.
    """

    gflops: float = Field(gt=0)
    memory_gb_per_s: float = Field(gt=0)


class Cluster(StrictModel):
    """Equal nodes with equal workers.

    Attributes:
        nodes, workers_per_node: their numbers.
        memory_gb: memory of a node (GiB); with GPUs, that of the host.
        network_gbit: network of a node in each direction (10⁹ bits per second).
        gpu_memory_gb: memory of each worker's GPU (GiB); None for workers on CPUs.
        worker: rates of a worker; None for those of one core of this machine.
    """

    nodes: int = Field(ge=1)
    workers_per_node: int = Field(ge=1)
    memory_gb: float = Field(gt=0)
    network_gbit: float = Field(gt=0)
    gpu_memory_gb: float | None = Field(default=None, gt=0)
    worker: WorkerRates | None = None

    @property
    def workers(self) -> int:
        return self.nodes * self.workers_per_node

    @property
    def memory_of_worker(self) -> int:
        """Bytes of memory for each worker."""
        return int(self.memory_gb * 2**30 / self.workers_per_node)

    @property
    def gpu_memory(self) -> int | None:
        """Bytes of memory of each worker's GPU; None for workers on CPUs."""
        return None if self.gpu_memory_gb is None else int(self.gpu_memory_gb * 2**30)

    def machine(self, measured: Machine | None) -> Machine:
        """Return the rates of one worker with its part of the network; ``measured`` is used if none are stated."""
        if self.worker is not None:
            measured = Machine(self.worker.gflops * 1e9, self.worker.memory_gb_per_s * 1e9)
        assert measured is not None
        network = self.network_gbit * GIGABIT / self.workers_per_node
        return measured if self.nodes == 1 else measured.on_nodes(self.nodes, network)


@dataclass(frozen=True)
class StatedGraph:
    """Counts of a graph that is not there; the fields are those of a store's manifest."""

    entities: int
    relations: int
    triples: dict[str, int] = field(default_factory=dict)


def read_cluster(source: str) -> Cluster:
    """Read a cluster from a YAML file or ``preset:NAME``.

    Raises:
        ClusterFileError: no such file or preset, or one that is invalid; names every wrong key.
    """
    path = preset_file(source, CLUSTERS, "cluster", ClusterFileError) or Path(source)
    try:
        tree = read_yaml(path, f"cluster {source}")
    except DocumentError as error:
        raise ClusterFileError(
            f"{error}. A cluster is a YAML file, or preset:NAME; `distkg presets` lists some"
        ) from None
    if not isinstance(tree, dict):
        raise ClusterFileError(
            f"cluster {source} must hold keys such as `nodes: 4`; known: {', '.join(Cluster.model_fields)}"
        )
    try:
        return Cluster.model_validate(tree)
    except ValidationError as error:
        raise ClusterFileError("\n".join(_explain(problem, source) for problem in error.errors())) from None


def _explain(problem: Any, source: str) -> str:
    location = [str(part) for part in problem["loc"]]
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        known = list(WorkerRates.model_fields if location[:-1] == ["worker"] else Cluster.model_fields)
        message = f"is no key of a cluster; known: {', '.join(known)}{did_you_mean(location[-1], known)}"
    return f"cluster {source}: {'.'.join(location)}: {message}"


def read_counts(text: str) -> StatedGraph:
    """Read ``ENTITIES,RELATIONS,TRIPLES``, such as ``86054151,14824,304727650``; ``_`` may separate digits.

    Raises:
        ClusterFileError: other than three whole numbers of at least 1.
    """
    try:
        entities, relations, triples = (int(part) for part in text.split(","))
    except ValueError:
        entities = relations = triples = 0
    if min(entities, relations, triples) < 1:
        raise ClusterFileError(
            f"--graph {text!r} must be three whole numbers of at least 1, ENTITIES,RELATIONS,TRIPLES of training, "
            "such as 86054151,14824,304727650"
        )
    return StatedGraph(entities, relations, {"train": triples})
