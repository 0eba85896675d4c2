"""Private Ray on this machine, which listens on loopback only, requires a token, and leaves no process behind."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import psutil
import ray
from ray._private import ray_constants
from ray._private import utils as ray_utils
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from distkg.cluster.session import forked_worker
from distkg.cluster.session.address import ClusterError
from distkg.cluster.session.fork_server import ForkServer, can_fork_workers
from distkg.termination import SignalHandling

MARK = "DISTKG_PRIVATE_RAY"
"""Environment variable of all processes of a private Ray; its value identifies the instance."""

ENDING_SECONDS = 5.0

LOOPBACK = "127.0.0.1"

# By default Ray listens on every interface of a machine; without clusters over several machines it uses loopback only.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

METRICS_PORT = "_metrics_export_port"
"""Option of ``ray.init``: port at which the node's agent exports metrics; without it, none are exported."""

STARTS = 3
_TIMED_OUT = "timed out during startup"


class PrivateRay:
    """Processes of a Ray that this process has started.

    Attributes:
        lost: some of them have died, and Ray in this process is unusable.
        users: functions that end the work of this process on them, called before Ray's shutdown.
        fork_server: server that forks workers.

    They are identified by their mark or by their parents: some of Ray's processes overwrite the memory of their
    environment when they set their title.
    """

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.lost = False
        self.users: list[Callable[[], None]] = []
        self.fork_server: ForkServer | None = None
        self._others = set(psutil.Process().children())
        self._seen: set[psutil.Process] = set()

    def processes(self) -> list[psutil.Process]:
        """Return the live processes, orphans included."""
        roots = set(psutil.Process().children()) - self._others
        self._seen |= roots | {process for process in psutil.process_iter() if self._is_marked(process)}
        for process in tuple(self._seen):
            with suppress(psutil.Error):
                self._seen.update(process.children(recursive=True))
        self._seen = {process for process in self._seen if _alive(process)}
        return list(self._seen)

    def _is_marked(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            return process.pid != os.getpid() and process.environ().get(MARK) == self.mark
        return False

    def end(self, seconds: float = ENDING_SECONDS) -> None:
        """Kill the remaining processes after ``seconds``."""
        if self.fork_server is not None:
            self.fork_server.end()
        deadline = time.monotonic() + seconds
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        while remaining := self.processes():  # repeated, because they may have had children
            for process in sorted(remaining, key=_is_no_daemon):
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(remaining, 1)


_running: list[PrivateRay] = []
"""Private Ray that this process has started and not yet ended."""


def on_private_ray() -> bool:
    """Return True while this process drives a private Ray.

    The process of a trial of a search does not: when it is stopped, Ray Train's own actors end its workers.
    """
    return bool(_running)


@contextmanager
def used_until(end: Callable[[], None]) -> Iterator[None]:
    """Register work of this process on its private Ray, with the function that ends it before Ray's shutdown.

    Ray would start anew for a call that comes after its shutdown.
    """
    (private,) = _running
    private.users.append(end)
    try:
        yield
    finally:
        private.users.remove(end)


@contextmanager
def private_ray(
    signals: SignalHandling, worker_environment: Mapping[str, str] | None = None, **options: Any
) -> Iterator[PrivateRay]:
    """Start Ray with the options of ``ray.init``, and end all of its processes afterwards, even if a signal leaves
    no time for a shutdown.

    Args:
        worker_environment: environment variables of processes that are forked by a server; others start one by one.
    """
    private = PrivateRay()
    # A token in the environment, so that nothing is read from or written to the user's home.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with (
        environment_with({MARK: private.mark, **token, **_LOOPBACK}),
        _read_again(),
        # Ray would copy the current folder and start each worker by `uv run`; here they share the driver's environment.
        replaced(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", False),
        _few_processes(dashboard=bool(options.get("include_dashboard")), metrics=METRICS_PORT in options),
        signals.at_forced_end(partial(private.end, 0)),
        ExitStack() as stack,
    ):
        if worker_environment is not None and can_fork_workers():
            private.fork_server = ForkServer(worker_environment)
            stack.enter_context(_workers_of(private.fork_server))
        # Ray would print, for every run, that the cluster requires a token, which is already set.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        try:
            _start(private, options)
            signals.install()  # Ray has set a handler of its own
            private.processes()
            _running.append(private)
            yield private
        finally:
            _running.clear()
            # A command that was stopped has no time for Ray's own shutdown, and needs Ray no more.
            at_once = private.lost or (signals.whole_command and signals.received is not None)
            with suppress(Exception):
                private.processes()
                if not at_once:
                    for end in tuple(private.users):
                        end()
                    ray.shutdown()
            private.end(0 if at_once else ENDING_SECONDS)
    read_settings()


def _start(private: PrivateRay, options: Mapping[str, Any]) -> None:
    """Start Ray, again if it gives up on its own daemon, which on an overloaded machine takes more than half a minute.

    Raises:
        ClusterError: it gave up ``STARTS`` times.
    """
    for _ in range(STARTS):
        try:
            ray.init(address="local", log_to_driver=False, logging_level=logging.WARNING, **options)
            return
        except Exception as error:
            if _TIMED_OUT not in str(error):
                raise
            with suppress(Exception):
                private.processes()
                ray.shutdown()
            private.end(0)
    raise ClusterError(
        f"Ray has not started on this machine in {STARTS} attempts of half a minute: the machine is overloaded. Start "
        "fewer commands at once, or name a cluster (cluster.address)"
    )


def _is_no_daemon(process: psutil.Process) -> bool:
    """Return False for Ray's daemons, which are killed first: a raylet would report each killed worker to this process,
    whose last line is written."""
    try:
        return process.name() not in ("raylet", "gcs_server")
    except psutil.Error:
        return True


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


@contextmanager
def environment_with(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def free_port(port: int) -> int:
    """Return a port of 127.0.0.1 at which nothing listens.

    Raises:
        ClusterError: it is taken. The agent would end, and Ray with it.
    """
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError as error:
        raise ClusterError(
            f"cluster.metrics_port={port}: {error.strerror or error}. Another command may export its metrics there: "
            "name another port"
        ) from None
    return port


@contextmanager
def _few_processes(*, dashboard: bool, metrics: bool) -> Iterator[None]:
    """Make Ray in this process start no daemon that a private Ray has no use for.

    Each daemon is a Python process that takes one to three seconds of a core, and the start waits for some: the
    autoscaler's monitor, the monitor that would bring the output of workers here, and without ``dashboard`` its server,
    which Ray starts for usage statistics even so. The dashboard's agent, with which a raylet ends, loads no module
    unless it exports ``metrics``; its own port, at which nobody asks it anything, is then any free one.
    """

    def start_nothing(node: Node, **_: object) -> None:
        node._webui_url = getattr(node, "_webui_url", None)

    start = Node.start_raylet

    def start_raylet(node: Node, *arguments: Any, **options: Any) -> None:
        node._ray_params.dashboard_agent_listen_port = 0
        start(node, *arguments, **options)

    with ExitStack() as stack:
        for name in ("start_monitor", "start_log_monitor", *(() if dashboard else ("start_api_server",))):
            stack.enter_context(replaced(Node, name, start_nothing))
        if metrics:
            stack.enter_context(replaced(Node, "start_raylet", start_raylet))
        elif not dashboard:
            stack.enter_context(replaced(ray_utils, "get_dashboard_dependency_error", lambda: "there is no dashboard"))
        yield


@contextmanager
def _workers_of(server: ForkServer) -> Iterator[None]:
    """Make Ray in this process have its workers forked by a server."""
    start = Node.start_raylet

    def start_raylet(node: Node, *arguments: Any, **options: Any) -> None:
        node._ray_params.setup_worker_path = forked_worker.__file__
        start(node, *arguments, **options)

    with environment_with({forked_worker.SERVER: server.path}), replaced(Node, "start_raylet", start_raylet):
        yield


@contextmanager
def replaced(place: Any, name: str, value: object) -> Iterator[None]:
    """Set an attribute of a module or class for a while."""
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


@contextmanager
def _read_again() -> Iterator[None]:
    """Make Ray in this process read the environment again, and restore its settings afterwards."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    read_settings()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def read_settings() -> None:
    """Make Ray in this process read its settings from the environment again."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
