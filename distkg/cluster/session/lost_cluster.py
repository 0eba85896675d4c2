"""Detection of a lost cluster, before Ray ends the process with a dump of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import ray
from ray._private import worker as ray_worker

from distkg.cluster.session.address import split_address

LOOK_SECONDS = 0.2
ASK_HEAD_SECONDS = 2.0
HEAD_SILENT_SECONDS = 40.0
"""Seconds without an answer after which the head counts as lost. A head may be restarted; after a minute without one
Ray ends every process of its cluster."""


class LostClusterError(RuntimeError):
    """Error of a run whose Ray processes have died."""


class ClusterWatch:
    """Monitor of this node's raylet and of the head; calls ``lost(reason)`` once, in a thread of its own."""

    def __init__(self, lost: Callable[[str], None]) -> None:
        self.reason: str | None = None
        self._lost, self._over = lost, threading.Event()
        self._raylet = _raylet()
        self._head = split_address(ray.get_runtime_context().gcs_address)
        self._head_seen = self._head_asked = time.monotonic()
        self._thread = threading.Thread(target=self._look, name="cluster-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()

    def check(self) -> str | None:
        """Return why the cluster is lost; None if it is alive."""
        if self._raylet is not None and not _runs(self._raylet):
            return "Ray's process on this machine (raylet) has died"
        now = time.monotonic()
        if now - self._head_asked >= ASK_HEAD_SECONDS:
            self._head_asked = now
            with suppress(OSError):
                socket.create_connection(self._head, timeout=ASK_HEAD_SECONDS).close()
                self._head_seen = time.monotonic()
        if now - self._head_seen > HEAD_SILENT_SECONDS:
            return f"its head has not answered for {HEAD_SILENT_SECONDS:.0f} s"
        return None

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self.reason = self.check()
            if self.reason is not None:
                self._lost(self.reason)
                return


def _raylet() -> psutil.Process | None:
    """Return the raylet to which this driver is connected; None if it is not visible, as from another container."""
    node = ray_worker._global_node
    if node is None:
        return None
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "raylet" and f"--raylet_socket_name={node.raylet_socket_name}" in process.cmdline():
                return process
    return None


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
