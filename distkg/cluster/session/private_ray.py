"""Private Ray on this machine, which listens on loopback only, requires a token, and leaves no process behind."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psutil
import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from distkg.termination import SignalHandling

MARK = "DISTKG_PRIVATE_RAY"
"""Environment variable of all processes of a private Ray; its value identifies the instance."""

ENDING_SECONDS = 5.0

# By default Ray listens on every interface of a machine; without clusters over several machines it uses loopback only.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class PrivateRay:
    """Processes of a Ray that this process has started.

    Attributes:
        lost: some of them have died, and Ray in this process is unusable.

    They are identified by their mark or by their parents: some of Ray's processes overwrite the memory of their
    environment when they set their title.
    """

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.lost = False
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
        deadline = time.monotonic() + seconds
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        while remaining := self.processes():  # repeated, because they may have had children
            for process in remaining:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(remaining, 1)


@contextmanager
def private_ray(signals: SignalHandling, **options: Any) -> Iterator[PrivateRay]:
    """Start Ray with the options of ``ray.init``, and end all of its processes afterwards, even if a signal leaves
    no time for a shutdown."""
    private = PrivateRay()
    # A token in the environment, so that nothing is read from or written to the user's home.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with (
        _environment({MARK: private.mark, **token, **_LOOPBACK}),
        _read_again(),
        signals.at_forced_end(partial(private.end, 0)),
    ):
        # Ray would print, for every run, that the cluster requires a token, which is already set.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        try:
            ray.init(address="local", log_to_driver=False, logging_level=logging.WARNING, **options)
            signals.install()  # Ray has set a handler of its own
            private.processes()
            yield private
        finally:
            # A command that was stopped has no time for Ray's own shutdown, and needs Ray no more.
            at_once = private.lost or (signals.whole_command and signals.received is not None)
            with suppress(Exception):
                private.processes()
                if not at_once:
                    ray.shutdown()
            private.end(0 if at_once else ENDING_SECONDS)
    _read_authentication()


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
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


@contextmanager
def _read_again() -> Iterator[None]:
    """Make Ray in this process read the environment again, and restore its settings afterwards."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    _read_authentication()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _read_authentication() -> None:
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
