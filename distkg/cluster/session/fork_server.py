"""Server that forks worker processes of a private Ray from one process, which has imported what they import.

A worker spends most of its start, three seconds of a core, on imports. With this server they are paid for once, while
Ray starts, and its workers share the memory of the modules. Linux only.

``python -m distkg.cluster.session.fork_server FILE MODULE…`` answers ``forked_worker.py`` at the listening socket whose
open file is FILE, until its input ends. It starts no thread and computes nothing, as neither would survive a fork.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distkg.cluster.session.forked_worker import FORKED, HEADER_BYTES, STATUS_BYTES

MODULES = (
    "distkg.training.run",
    "distkg.embedding.build",
    "distkg.embedding.plan",
    "distkg.foundation.mining",
    "distkg.negatives.dans",
    "numba.core.typing.cffi_utils",
    "pandas",  # by Ray Train
    "pyarrow.fs",
    "scipy.sparse",
    "torch.distributed",
    "torch.fx.experimental.symbolic_shapes",  # by the first backward pass
)
"""Modules that a worker has imported at its first step, but for Ray's, which read the environment of one process."""


class ForkServer:
    """Running server, as its starter sees it.

    Attributes:
        path: its socket, at which requests wait while it imports.
    """

    def __init__(self, variables: Mapping[str, str], modules: Sequence[str] = MODULES) -> None:
        """Start it with ``variables`` besides the environment of this process; it imports ``modules``."""
        self._folder = tempfile.mkdtemp(prefix="distkg-")
        self.path = os.path.join(self._folder, "fork-server")
        # As Ray's processes, it leaves Ctrl-C to the one that has started it.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen(1024)
            file = listener.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(file), *modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # without it, workers start as Ray starts them
                env={**os.environ, **variables},
                pass_fds=[file],
            )
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def end(self) -> None:
        """End it; processes that it has forked go on."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def can_fork_workers() -> bool:
    """Return whether this system has what the server needs."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def main(file: int, modules: Sequence[str]) -> None:
    """Import modules, and answer at a listening socket until the input ends."""
    with socket.socket(fileno=file) as listener:
        path = listener.getsockname()
        for module in modules:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()  # a collection in a child would copy the pages of all modules
        request = _Server(listener, sys.stdin.fileno()).run()
    if request is not None:
        _become(request)
    else:  # the process that has started this one is gone
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)


@dataclass(frozen=True)
class _Child:
    pid: int
    pidfd: int
    connection: socket.socket

    def close(self) -> None:
        os.close(self.pidfd)
        self.connection.close()


class _Server:
    def __init__(self, listener: socket.socket, source: int) -> None:
        self._listener, self._source = listener, source
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}
        for file in (source, listener.fileno()):
            self._selector.register(file, selectors.EVENT_READ)

    def run(self) -> dict[str, Any] | None:
        """Fork for every request; return it in the child, and None in the server at the end of its input."""
        while True:
            for key, _ in self._selector.select():
                child: _Child = key.data
                if key.fd == self._source:
                    return None
                if key.fd == self._listener.fileno():
                    request = self._answer()
                    if request is not None:
                        return request
                elif key.fd == child.pidfd:
                    self._report_end(child)
                else:  # the process in whose place it runs was killed
                    self._selector.unregister(child.connection)
                    os.kill(child.pid, signal.SIGKILL)

    def _answer(self) -> dict[str, Any] | None:
        """Fork for one request, and return it in the child."""
        connection, _ = self._listener.accept()
        request, files = _receive(connection)
        pid = -1
        if request is not None:
            with suppress(OSError):  # it has not waited
                connection.sendall(FORKED)
                pid = os.fork()
        if pid == 0:
            self._leave(connection)
            for number, file in enumerate(files):
                os.dup2(file, number)
        for file in files:
            os.close(file)
        if pid == 0:
            return request
        if pid < 0:
            connection.close()
            return None
        child = self._children[pid] = _Child(pid, os.pidfd_open(pid), connection)
        for watched in (child.pidfd, connection):
            self._selector.register(watched, selectors.EVENT_READ, child)
        return None

    def _leave(self, connection: socket.socket) -> None:
        """Close in a child what belongs to the server."""
        self._selector.close()
        connection.close()
        for other in self._children.values():
            other.close()

    def _report_end(self, child: _Child) -> None:
        self._selector.unregister(child.pidfd)
        with suppress(KeyError):
            self._selector.unregister(child.connection)
        _, status = os.waitpid(child.pid, 0)
        with suppress(OSError):
            child.connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(STATUS_BYTES, "little", signed=True))
        child.close()
        del self._children[child.pid]


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return a request and its three files; None in place of one that is not whole or wants another environment."""
    header, files, _, _ = socket.recv_fds(connection, HEADER_BYTES, 3)
    size, data = int.from_bytes(header, "little"), bytearray()
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    if not header or len(data) < size:
        return None, list(files)
    request: dict[str, Any] = json.loads(data)
    # The modules have read these variables when they were imported; Ray's are not among them.
    differ = (name for name, value in request["variables"].items() if os.environ.get(name) != value)
    return request if all(name.startswith("RAY_") for name in differ) else None, list(files)


def _become(request: dict[str, Any]) -> None:
    """Run the script of a request in this process as Python would in a new one."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.nice(request["niceness"] - os.nice(0))
    script, *_ = sys.argv = request["arguments"]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
