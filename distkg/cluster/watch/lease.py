"""Lease of a run folder: a file that names the only driver that may write to it.

The lease is a file that gets its name by a hard link, which is atomic on local and network file systems alike (locks
such as ``flock`` are local to a machine on some of them); without hard links, it is created exclusively. In an object
store it is an object that is written under a condition (``distkg.cluster.watch.lease_files``). Its holder touches it
every ``REFRESH_SECONDS``. A lease is taken over if its holder has ended: on the holder's machine as soon as its process
has ended, and from elsewhere if it was not touched for ``STALE_SECONDS`` by the clock of the storage, which may have
been set meanwhile, and is not touched for another ``OBSERVE_SECONDS``.
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

from distkg.cluster.watch.lease_files import LeaseFile, lease_file
from distkg.cluster.watch.process_start import seconds_from_boot
from distkg.cluster.watch.run_folder import RunFolderError, claim
from distkg.data.storage.objects import Seen
from distkg.data.storage.working_copy import shown
from distkg.training.run_dir import LEASE

REFRESH_SECONDS = 15.0
STALE_SECONDS = 120.0
OBSERVE_SECONDS = 20.0  # more than REFRESH_SECONDS
ATTEMPTS = 100
POLL_SECONDS = 1.0


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
        pid, born: id of its process, and its start (s from the machine's boot), because process ids are reused; earlier
            versions of distkg wrote no ``born``.
        since: when the lease was taken, ISO 8601 with the time zone.
        job: Ray job in which it runs; empty outside of a job.
    """

    model_config = ConfigDict(frozen=True)

    token: str
    host: str
    machine: str
    pid: int
    born: float | None = None
    since: str
    job: str = ""

    @classmethod
    def this_process(cls) -> Holder:
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            born=seconds_from_boot(os.getpid()),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            job=_job(),
        )

    def __str__(self) -> str:
        job = f" (Ray job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    def is_alive(self) -> bool:
        """Return whether its process runs on this machine, which must be the holder's."""
        try:
            alike = self.born is None or seconds_from_boot(self.pid) == self.born
            return alike and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return True  # it exists, but may not be inspected


@dataclass(frozen=True)
class _Found:
    """Lease file that was read: its holder, None if unknown, and what was seen."""

    holder: Holder | None
    file: LeaseFile
    seen: Seen

    @property
    def token(self) -> str | None:
        return None if self.holder is None else self.holder.token

    def is_stale(self) -> bool:
        if self.holder is not None and self.holder.machine == _machine():
            return not self.holder.is_alive()
        # A time that lies ahead is as old: the clock was set back after it.
        return abs(self.file.age(self.seen)) > STALE_SECONDS and self._is_untouched()

    def _is_untouched(self) -> bool:
        """Return whether nobody touches the file while it is observed, once for each lease."""
        if self.seen.content in _untouched:
            return True
        before, started = self.file.age(self.seen), time.monotonic()
        time.sleep(OBSERVE_SECONDS)
        again = self.file.look()
        if again is None or again.content != self.seen.content:
            return False
        elapsed = time.monotonic() - started
        untouched = abs(self.file.age(again) - before - elapsed) < elapsed / 2
        if untouched:
            _untouched.add(self.seen.content)
        return untouched

    def __str__(self) -> str:
        return "a driver that is just starting" if self.holder is None else str(self.holder)


_untouched: set[bytes] = set()
"""Contents of the leases that were observed, and whose holders are gone."""


class Lease:
    """Lease that this process holds."""

    def __init__(self, run: Path, holder: Holder) -> None:
        self.run, self.token = run, holder.token
        self._file, self._ended = lease_file(run, LEASE), threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="run-lease", daemon=True)
        self._thread.start()

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            try:
                check_lease(self.run, self.token)
                self._file.touch()
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
            self._file.delete()


@contextmanager
def hold_lease(run: Path, notice: Callable[[str], None] = print) -> Iterator[Lease]:
    """Hold the lease of an existing run folder, so that no other driver writes to it.

    Args:
        notice: called with a message if the lease was taken over from a driver that has ended.

    Raises:
        RunInUseError: another driver holds it.
    """
    holder = Holder.this_process()
    before = _acquire(lease_file(run, LEASE), holder)
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
    found = _look(lease_file(run, LEASE)) if run.is_dir() else None
    if found is not None and not found.is_stale():
        raise _in_use(found)


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
    found = _look(lease_file(run, LEASE))
    if found is None or found.token != token:
        now = "its lease was deleted" if found is None else f"it is now held by {found}"
        raise RunTakenOverError(
            f"run folder {shown(run)} was taken over while this driver did not answer: {now}. This run ends"
        )


def _acquire(file: LeaseFile, holder: Holder, depth: int = 0) -> _Found | None:
    """Take a lease and return the one that was taken over, or None."""
    content = (holder.model_dump_json(indent=1) + "\n").encode()
    found = None
    for _ in range(ATTEMPTS):
        if file.create(content):
            return None
        found = _look(file)
        if found is None:
            continue  # it was released just now
        if depth == 2 or not found.is_stale():
            break
        if _replaced(file, holder, content, found, depth):
            return found
    raise _in_use(found or _Found(None, file, Seen(b"", "", 0.0)))


def _replaced(file: LeaseFile, holder: Holder, content: bytes, found: _Found, depth: int) -> bool:
    """Replace a stale lease.

    Where this is not atomic, only the holder of a second lease, beside the first, may do so: of two drivers that find
    the first stale, the later would otherwise replace the lease of the earlier.
    """
    guard = file.guard()
    if guard is None:
        return file.replace(content, found.seen)
    _acquire(guard, holder, depth + 1)
    try:
        return file.replace(content, found.seen)
    finally:
        guard.delete()


def _in_use(found: _Found) -> RunInUseError:
    return RunInUseError(
        f"run folder {found.file.folder} is in use by {found}. Wait until that run ends, stop it, or name another "
        f"folder. (A driver that died is noticed at once on its own machine, and elsewhere after {STALE_SECONDS:g} s.)"
    )


def _look(file: LeaseFile) -> _Found | None:
    """Read a lease; None if there is none."""
    seen = file.look()
    if seen is None:
        return None
    try:
        holder = Holder.model_validate_json(seen.content.decode("utf-8", "replace"))
    except ValidationError:
        holder = None
    return _Found(holder, file, seen)


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
