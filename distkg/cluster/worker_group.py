"""Group of Ray actors that run one collective function after another, each in a process group of its own.

Its processes stay, with all that they have imported. A function starts in a process that has left the process group of
the one before, and has returned its memory to the system.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import ray
from ray.util.placement_group import (
    get_placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distkg.cluster.process_group import (
    TIMEOUT_SECONDS,
    backend_name,
    bind_gloo_to_node_address,
    join_group,
    leave_process_group,
    open_meeting_point,
)
from distkg.cluster.session.placement import reserve, worker_nodes
from distkg.cluster.session.ray_session import worker_resources
from distkg.cluster.session.worker_environment import worker_environment
from distkg.config import ClusterConfig
from distkg.process_memory import private_memory, return_freed_memory

ENDING_SECONDS = 5.0
OTHER_ERRORS_SECONDS = 2.0
"""Maximum wait, after the first error, for those of other workers: the cause of the first may be among them."""

T = TypeVar("T")


class WorkersFailed(Exception):
    """Error of a group of which at least one worker has failed.

    Attributes:
        errors: errors by rank, in the order in which they arrived; a RayError if the process of a worker was lost.
    """

    def __init__(self, errors: dict[int, Exception]) -> None:
        super().__init__("; ".join(f"worker {rank}: {error}" for rank, error in errors.items()))
        self.errors = errors


class WorkerGroup:
    """Group of workers, each with the resources of ``cluster`` on one of its nodes; usable until a function has failed
    on it."""

    def __init__(self, workers: int, cluster: ClusterConfig, *, strategy: str = "PACK", name: str = "") -> None:
        """Request the workers; they start when the cluster has room for all of them.

        Args:
            strategy: Ray's strategy for their placement on nodes.
            name: name of their placement group, by which `release_workers` finds it; default: none.
        """
        resources, self._backend = worker_resources(cluster), backend_name(cluster.gpus_per_worker)
        self._places = reserve([(resources, worker_nodes(cluster))] * workers, strategy, name)
        options = {
            "num_cpus": resources["CPU"],
            "num_gpus": resources.get("GPU", 0),
            "runtime_env": {"env_vars": worker_environment(cluster)},
        }
        worker = ray.remote(_Worker)
        places = (PlacementGroupSchedulingStrategy(self._places, place) for place in range(workers))
        self._actors = [worker.options(**options, scheduling_strategy=place).remote() for place in places]
        self._calls: list[ray.ObjectRef] = []
        self._ordered = False

    def run(self, function: Callable[[int], T], timeout_s: int = TIMEOUT_SECONDS) -> T:
        """Return ``function(0)`` of the first worker; collective: the worker of rank r calls ``function(r)``.

        Args:
            function: picklable; torch's default process group is that of the workers.
            timeout_s: maximum seconds of a collective.

        Raises:
            WorkersFailed: it raised on a worker, or a worker was lost; the group must be ended.
        """
        workers = len(self._actors)
        if not self._ordered:
            self._order(self._each("node"))
        (meeting,) = self._results([self._actors[0].meet.remote(workers, timeout_s)])
        join = partial(join_group, self._backend, workers=workers, meeting=meeting, timeout_s=timeout_s)
        first: T = self._results([actor.run.remote(rank, join, function) for rank, actor in enumerate(self._actors)])[0]
        return first

    def memory(self) -> list[int]:
        """Return the bytes of memory that each worker holds beside what it shares with others.

        Raises:
            WorkersFailed: a worker was lost.
        """
        return [int(held) for held in self._each("memory")]

    def end(self) -> None:
        """Kill the workers and release their resources."""
        with suppress(ray.exceptions.RayError):  # if Ray is gone, so are the workers
            for actor in self._actors:  # others may wait for one that has failed
                ray.kill(actor)
            for call in self._calls:  # Ray prints errors that nobody has looked at
                with suppress(Exception):
                    ray.get(call, timeout=ENDING_SECONDS)
            remove_placement_group(self._places)

    def _order(self, nodes: Sequence[str]) -> None:
        """Give neighbouring ranks to the workers of a node."""
        first = {node: place for place, node in reversed(list(enumerate(nodes)))}
        places = sorted(range(len(nodes)), key=lambda place: (first[nodes[place]], place))
        self._actors, self._ordered = [self._actors[place] for place in places], True

    def _each(self, method: str) -> list[Any]:
        return self._results([getattr(actor, method).remote() for actor in self._actors])

    def _results(self, calls: list[ray.ObjectRef]) -> list[Any]:
        """Return the results of one call of each worker, in rank order.

        Raises:
            WorkersFailed: soon after the first error.
        """
        self._calls = waiting = calls
        errors: dict[int, Exception] = {}
        while waiting and not errors:
            ended, waiting = ray.wait(waiting)
            errors |= _errors(calls, ended)
        if errors:
            ended, _ = (
                ray.wait(waiting, num_returns=len(waiting), timeout=OTHER_ERRORS_SECONDS) if waiting else ([], [])
            )
            raise WorkersFailed(errors | _errors(calls, ended))
        results: list[Any] = ray.get(calls)
        return results


def release_workers(prefix: str) -> None:
    """Release the resources of groups whose owner was lost, by the beginning of their names.

    Ray ends the workers of a lost actor, but keeps their placement group for as long as its driver lives.
    """
    for group in placement_group_table().values():
        if group["name"].startswith(prefix) and group["state"] != "REMOVED":
            with suppress(ValueError):  # it was removed in the meantime
                remove_placement_group(get_placement_group(group["name"]))


def _errors(calls: Sequence[ray.ObjectRef], ended: Sequence[ray.ObjectRef]) -> dict[int, Exception]:
    """Return the errors among the ended calls, by the rank of their worker."""
    errors: dict[int, Exception] = {}
    for call in ended:
        try:
            ray.get(call)
        except Exception as error:
            errors[calls.index(call)] = error
    return errors


class _Worker:
    """Actor that runs functions on one rank."""

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def memory(self) -> int:
        return private_memory()

    def meet(self, workers: int, timeout_s: int) -> tuple[str, int]:
        bind_gloo_to_node_address()
        return open_meeting_point(workers, timeout_s)

    def run(self, rank: int, join: Callable[..., None], function: Callable[[int], T]) -> T | None:
        bind_gloo_to_node_address()
        join(rank=rank)
        try:
            value = function(rank)
        finally:
            leave_process_group()
            return_freed_memory()
        return value if rank == 0 else None
