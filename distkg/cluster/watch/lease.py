"""One writer for each run folder: a lease in it names the driver that writes, and refuses every other one.

The lease is a file that takes its name by a hard link, which is atomic on local and network file systems alike (locks
such as ``flock`` are local to a machine on some of them), or is created exclusively where there are no links. Its
holder touches it every ``REFRESH_SECONDS``. A lease is taken over where its holder is gone: on the holder's machine as
soon as its process has ended, from elsewhere when it was not touched for ``STALE_SECONDS`` by the file system's clock.
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
SAME_START_SECONDS = 2.0  # the start of a process, as two looks at it may give it


class RunInUseError(RunFolderError):
    """Another driver writes to the run folder; the message says which, since when, and what to do."""


class RunTakenOverError(ValueError):
    """Another driver has taken over the run folder: this one must not write to it any more."""


class Holder(BaseModel):
    """The driver that holds a lease.

    Attributes:
        token: of this lease alone.
        host: name of its machine.
        machine: differs between machines, between starts of one, and between containers.
        pid, started: of its process; the start, in Unix time, tells it from a later process of the same number.
        since: when the lease was taken, ISO 8601 with the time zone.
        job: Ray job in which it runs; empty outside of one.
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
        """Whether its process runs on this machine, which must be the holder's."""
        try:
            process = psutil.Process(self.pid)
            alike = abs(process.create_time() - self.started) < SAME_START_SECONDS
            return alike and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return True  # it is there, and may not be looked at


@dataclass(frozen=True)
class _Found:
    """A lease file as it was read: its holder, None where it cannot be told, and when it was last touched."""

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
    """A lease that this process holds."""

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
                return  # the workers say so
            except OSError:
                continue  # a network file system that is away for a while

    def release(self) -> None:
        """Give the lease back, unless it was taken over."""
        self._ended.set()
        self._thread.join()
        with suppress(RunTakenOverError, OSError):
            check_lease(self.run, self.token)
            self._file.unlink()


@contextmanager
def hold_lease(run: Path, notice: Callable[[str], None] = print) -> Iterator[Lease]:
    """Be the only driver that writes to a run folder, which exists.

    Args:
        notice: hears where the lease was taken over from a driver that is gone.

    Raises:
        RunInUseError: another driver holds it.
    """
    holder = Holder.this_process()
    before = _acquire(run / LEASE, holder)
    lease = Lease(run, holder)
    try:
        if before is not None:
            notice(f"the run folder was held by {before}, which is gone: going on in its place")
        yield lease
    finally:
        lease.release()


def refuse_if_held(run: Path) -> None:
    """Raise where another driver writes to the folder; nothing is written.

    Raises:
        RunInUseError: names the driver.
    """
    found = _look(run / LEASE) if run.is_dir() else None
    if found is not None and not found.is_stale():
        raise _in_use(run / LEASE, found)


def wait_until_free(run: Path, seconds: float) -> None:
    """Wait until no other driver writes to the folder, at most so long.

    Raises:
        RunInUseError: one does still.
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
    """Make the run folder or accept the one that is there, as ``run_folder.claim``, and be its only writer.

    Raises:
        RunFolderError: as ``run_folder.claim``.
        RunInUseError: another driver writes to it.
    """
    refuse_if_held(run)
    claim(run, resume=resume, private=private)
    with hold_lease(run) as lease:
        claim(run, resume=resume)  # again: another driver may have begun and ended in between
        yield lease


def check_lease(run: Path, token: str) -> None:
    """Raise where the lease is no longer the one of that token.

    Raises:
        RunTakenOverError: names the new holder.
    """
    found = _look(run / LEASE)
    if found is None or found.token != token:
        now = "its lease was deleted" if found is None else f"it is now held by {found}"
        raise RunTakenOverError(f"run folder {run} was taken over while this run was not heard of: {now}. It ends here")


def _acquire(file: Path, holder: Holder, depth: int = 0) -> _Found | None:
    """Take a lease; the one that was taken over, None where there was none.

    Only the holder of a second lease, beside it, may replace a stale one: of two that find it stale, the later would
    else replace that of the earlier.
    """
    for _ in range(ATTEMPTS):
        if _create(file, holder):
            return None
        found = _look(file)
        if found is None:
            continue  # it was given back just now
        if depth == 2 or not found.is_stale():
            raise _in_use(file, found)
        guard = file.with_name(f"{file.name}.takeover")
        _acquire(guard, holder, depth + 1)
        try:
            again = _look(file)
            if again is not None and again.token == found.token:
                os.replace(_written(file, holder), file)
                return found
        finally:
            guard.unlink(missing_ok=True)
    raise _in_use(file, found or _Found(None, file.parent, 0))


def _in_use(file: Path, found: _Found) -> RunInUseError:
    return RunInUseError(
        f"run folder {file.parent} is in use by {found}. Wait until that run ends, stop it, or name another folder. "
        f"(A driver that died is noticed at once on its own machine, and elsewhere after {STALE_SECONDS:g} s.)"
    )


def _create(file: Path, holder: Holder) -> bool:
    """Make the file, whole and only if there is none; whether it was made."""
    written = _written(file, holder)
    try:
        os.link(written, file)
    except FileExistsError:
        return os.stat(written).st_nlink == 2  # made by a first attempt of which a network lost the reply
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
    """A file of the lease's content under a name of its own."""
    own = file.with_name(f".{file.name}.{holder.token}")
    own.write_text(holder.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return own


def _look(file: Path) -> _Found | None:
    """A lease as it stands; None where there is none."""
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
    """Time by the clock that stamps the files of a folder, which may be a server's."""
    probe = folder / f".{LEASE}.{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        probe.unlink(missing_ok=True)


def _machine() -> str:
    """Equal for processes that see each other's numbers, and for no others."""
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
    """The Ray job of this process, as `ray job list` names it."""
    try:
        settings = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""))
        return str(settings["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return ""
