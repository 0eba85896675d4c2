"""Ray's multi-node test cluster with two nodes, in a process of its own, which a lost head may take with it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil

from benchmarks.common import BenchmarkError

STORE_BYTES = 100 * 2**20
"""Size of the object store of a node."""

CPUS = 2
ANSWER_SECONDS = 120.0
STARTS = 5
PIECE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Stored:
    """Bytes in the object stores of all nodes, and bytes that were spilled since their start."""

    used: int
    spilled: int


class TestCluster:
    """Two nodes on this machine with two CPUs each; drivers connect to the first, the head.

    Attributes:
        address: of the head, HOST:PORT.
    """

    __test__ = False  # for pytest

    def __init__(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._host = context.Process(target=_serve, args=(theirs,), name="soak-cluster")
        self._host.start()
        theirs.close()
        try:
            self.address: str = self._ask("start")
        except BenchmarkError:
            self.end()
            raise

    @classmethod
    def started(cls) -> TestCluster:
        """Return a new cluster; on a machine under load Ray gives up on its own start now and then."""
        for _ in range(STARTS - 1):
            with suppress(BenchmarkError):
                return cls()
        return cls()

    def second_node(self) -> list[psutil.Process]:
        """Return the raylet of the second node and all of its live descendants."""
        return _with_descendants(self._ask("second"))

    def head(self) -> list[psutil.Process]:
        """Return the live processes of Ray's control service (GCS) and of the first node's raylet."""
        return [process for pid in self._ask("head") if (process := _process(pid)) is not None]

    def replace_second_node(self) -> None:
        """Add a node in the place of the second one, which has died."""
        self._ask("replace")

    def stored(self) -> Stored | None:
        """Return what lies in the object stores; None if Ray does not answer."""
        found: Stored | None = self._ask("stored")
        return found

    def end(self) -> None:
        """Kill all processes of the cluster."""
        victims = [] if self._host.pid is None else _with_descendants(self._host.pid)
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._host.join()

    def _ask(self, command: str) -> Any:
        try:
            self._pipe.send(command)
            if not self._pipe.poll(ANSWER_SECONDS):
                raise BenchmarkError(f"Ray's test cluster has not answered {command!r} for {ANSWER_SECONDS:g} s")
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise BenchmarkError(f"Ray's test cluster died at {command!r}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def _process(pid: int) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid)
    return None


def _with_descendants(pid: int) -> list[psutil.Process]:
    process = _process(pid)
    if process is None:
        return []
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return [process]


def _serve(pipe: Connection) -> None:
    nodes = _Nodes()
    with suppress(EOFError):
        while True:
            command = pipe.recv()
            try:
                pipe.send(getattr(nodes, command)())
            except Exception as error:  # of Ray; the other side decides
                pipe.send(BenchmarkError(f"{type(error).__name__}: {error}"))


class _Nodes:
    """The cluster, in its own process."""

    def start(self) -> str:
        from ray.cluster_utils import Cluster

        self._node = {"num_cpus": CPUS, "object_store_memory": STORE_BYTES}
        self._cluster = Cluster(initialize_head=True, head_node_args={**self._node, "include_dashboard": False})
        self._second = self._cluster.add_node(**self._node)
        return str(self._cluster.address)

    def second(self) -> int:
        return _pid(self._second, "raylet")

    def head(self) -> list[int]:
        return [_pid(self._cluster.head_node, name) for name in ("gcs_server", "raylet")]

    def replace(self) -> None:
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._cluster.add_node(**self._node)

    def stored(self) -> Stored | None:
        from ray._private.internal_api import get_memory_info_reply

        node = self._cluster.head_node
        try:
            stats = get_memory_info_reply(None, node.node_ip_address, node.node_manager_port, 5.0).store_stats
        except Exception:  # of gRPC, while a node is lost
            return None
        return Stored(stats.object_store_bytes_used, stats.spilled_bytes_total)


def _pid(node: Any, kind: str) -> int:
    return int(node.all_processes[kind][0].process.pid)


def fill_object_store(address: str, seconds: float) -> None:
    """Put twice what the stores of both nodes hold, so that Ray spills; runs in a process of its own."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    rng, pieces = np.random.default_rng(os.getpid()), []
    for _ in range(2 * 2 * STORE_BYTES // PIECE_BYTES):
        pieces.append(ray.put(rng.integers(0, 256, PIECE_BYTES, dtype=np.uint8)))
    time.sleep(seconds)
    ray.shutdown()


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Return those that run or are stopped, zombies left out."""
    living = []
    for process in processes:
        with suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living
