"""Lease of a run folder: a file that names the only driver that may write to it.

The lease is a file that gets its name by a hard link, which is atomic on local and network file systems alike (locks
such as ``flock`` are local to a machine on some of them); without hard links, it is created exclusively. Its holder
touches it every ``REFRESH_SECONDS``. A lease is taken over if its holder has ended: on the holder's machine as soon as
its process has ended, and from elsewhere if it was not touched for ``STALE_SECONDS`` by the file system's clock.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from distkg.cluster.watch.run_folder import RunFolderError, claim
from distkg.training.run_dir import LEASE

REFRESH_SECONDS = 15.0
STALE_SECONDS = 120.0
ATTEMPTS = 100
POLL_SECONDS = 1.0
SAME_START_SECONDS = 2.0  # difference of two measurements of one process's start


class RunInUseError(RunFolderError):
    """Error of a run folder to which another driver writes; the message says which, since when, and what to do."""


class RunTakenOverError(ValueError):
    """Error of a driver whose run folder another driver has taken over; this one must not write to it any more."""


class Holder(BaseModel):
    """Driver that holds a lease.

    Attributes:
        token: unique token of this lease.
        host: name of its machine.
        machine: identifier that differs between machines, between boots of one, and between containers.
        pid, started: id and start (Unix time) of its process; the start distinguishes processes with a reused id.
        since: when the lease was taken, ISO 8601 with the time zone.
        job: Ray job in which it runs; empty outside of a job.
    """

    model_config = ConfigDict(frozen=True)

    token: str
    host: str
    machine: str
    pid: int
    started: float
    since: str
    job: str = ""

    @classmethod
    def this_process(cls) -> Holder:
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            job=_job(),
        )

    def __str__(self) -> str:
        job = f" (Ray job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    def is_alive(self) -> bool:
        """Return whether its process runs on this machine, which must be the holder's."""
        try:
            process = psutil.Process(self.pid)
            alike = abs(process.create_time() - self.started) < SAME_START_SECONDS
            return alike and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return True  # it exists, but may not be inspected


@dataclass(frozen=True)
class _Found:
    """Lease file that was read: its holder, None if unknown, and the time of its last touch."""

    holder: Holder | None
    folder: Path
    touched: float

    @property
    def token(self) -> str | None:
        return None if self.holder is None else self.holder.token

    def is_stale(self) -> bool:
        if self.holder is not None and self.holder.machine == _machine():
            return not self.holder.is_alive()
        return _now(self.folder) - self.touched > STALE_SECONDS

    def __str__(self) -> str:
        return "a driver that is just starting" if self.holder is None else str(self.holder)


class Lease:
    """Lease that this process holds."""

    def __init__(self, run: Path, holder: Holder) -> None:
        self.run, self.token = run, holder.token
        self._file, self._ended = run / LEASE, threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="run-lease", daemon=True)
        self._thread.start()

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            try:
                check_lease(self.run, self.token)
                os.utime(self._file)
            except RunTakenOverError:
                return  # the workers report it
            except OSError:
                continue  # a network file system may be unavailable for a while

    def release(self) -> None:
        """Release the lease, unless it was taken over."""
        self._ended.set()
        self._thread.join()
        with suppress(RunTakenOverError, OSError):
            check_lease(self.run, self.token)
            self._file.unlink()


@contextmanager
def hold_lease(run: Path, notice: Callable[[str], None] = print) -> Iterator[Lease]:
    """Hold the lease of an existing run folder, so that no other driver writes to it.

    Args:
        notice: called with a message if the lease was taken over from a driver that has ended.

    Raises:
        RunInUseError: another driver holds it.
    """
    holder = Holder.this_process()
    before = _acquire(run / LEASE, holder)
    lease = Lease(run, holder)
    try:
        if before is not None:
            notice(f"the run folder was held by {before}, which has ended: this run takes it over")
        yield lease
    finally:
        lease.release()


def refuse_if_held(run: Path) -> None:
    """Raise if another driver writes to the folder; nothing is written.

    Raises:
        RunInUseError: names the driver.
    """
    lease_file = _look(run / LEASE) if run.is_dir() else None
    if lease_file is not None and not lease_file.is_stale():
        raise _in_use(run / LEASE, lease_file)


def wait_until_free(run: Path, seconds: float) -> None:
    """Wait until no other driver writes to the folder, at most ``seconds``.

    Raises:
        RunInUseError: another driver still does.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            refuse_if_held(run)
        except RunInUseError:
            if time.monotonic() >= end:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return


@contextmanager
def claimed(run: Path, *, resume: bool, private: bool = False) -> Iterator[Lease]:
    """Create the run folder or accept an existing one, as ``run_folder.claim``, and hold its lease.

    Raises:
        RunFolderError: as ``run_folder.claim``.
        RunInUseError: another driver writes to it.
    """
    refuse_if_held(run)
    claim(run, resume=resume, private=private)
    with hold_lease(run) as lease:
        claim(run, resume=resume)  # repeated, because another driver may have started and ended in between
        yield lease


def check_lease(run: Path, token: str) -> None:
    """Raise if the lease no longer has that token.

    Raises:
        RunTakenOverError: names the new holder.
    """
    lease_file = _look(run / LEASE)
    if lease_file is None or lease_file.token != token:
        now = "its lease was deleted" if lease_file is None else f"it is now held by {lease_file}"
        raise RunTakenOverError(
            f"run folder {run} was taken over while this driver did not answer: {now}. This run ends"
        )


def _acquire(file: Path, holder: Holder, depth: int = 0) -> _Found | None:
    """Take a lease and return the one that was taken over, or None.

    Only the holder of a second lease, beside the first, may replace a stale one: of two drivers that find it stale, the
    later would otherwise replace the lease of the earlier.
    """
    for _ in range(ATTEMPTS):
        if _create(file, holder):
            return None
        lease_file = _look(file)
        if lease_file is None:
            continue  # it was released just now
        if depth == 2 or not lease_file.is_stale():
            raise _in_use(file, lease_file)
        guard = file.with_name(f"{file.name}.takeover")
        _acquire(guard, holder, depth + 1)
        try:
            again = _look(file)
            if again is not None and again.token == lease_file.token:
                os.replace(_written(file, holder), file)
                return lease_file
        finally:
            guard.unlink(missing_ok=True)
    raise _in_use(file, lease_file or _Found(None, file.parent, 0))


def _in_use(file: Path, found: _Found) -> RunInUseError:
    return RunInUseError(
        f"run folder {file.parent} is in use by {found}. Wait until that run ends, stop it, or name another folder. "
        f"(A driver that died is noticed at once on its own machine, and elsewhere after {STALE_SECONDS:g} s.)"
    )


def _create(file: Path, holder: Holder) -> bool:
    """Create the file atomically and only if there is none; return whether it was created."""
    written = _written(file, holder)
    try:
        os.link(written, file)
    except FileExistsError:
        return os.stat(written).st_nlink == 2  # created by a first attempt whose reply the network lost
    except OSError:  # no hard links here
        return _create_exclusively(file, written.read_bytes())
    else:
        return True
    finally:
        written.unlink(missing_ok=True)


def _create_exclusively(file: Path, content: bytes) -> bool:
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as opened:
        opened.write(content)
    return True


def _written(file: Path, holder: Holder) -> Path:
    """Write the lease to a file with a unique name and return its path."""
    own = file.with_name(f".{file.name}.{holder.token}")
    own.write_text(holder.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return own


def _look(file: Path) -> _Found | None:
    """Read a lease; None if there is none."""
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            content, touched = opened.read(), os.fstat(opened.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        holder = Holder.model_validate_json(content)
    except ValidationError:
        holder = None
    return _Found(holder, file.parent, touched)


def _now(folder: Path) -> float:
    """Return the time of the clock that stamps the files of a folder, which may be a server's."""
    probe = folder / f".{LEASE}.{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        probe.unlink(missing_ok=True)


def _machine() -> str:
    """Return an identifier that is equal for processes that share a process id space, and for no others."""
    return "/".join([socket.gethostname(), _boot(), _process_space()])


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{psutil.boot_time() // 60:.0f}"


def _process_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _job() -> str:
    """Return the Ray job of this process, with the id of `ray job list`."""
    try:
        settings = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""))
        return str(settings["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return ""
