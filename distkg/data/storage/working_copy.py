"""Local copy of a folder that lies in an object store: a run, a search, an export.

Code that reads and writes the files of such a folder works on its local copy. Small files are fetched when the folder
is opened, and sent in the background when they are written; large ones (``*.safetensors``) are fetched when somebody
needs them. Each process has a copy of its own, below ``$DISTKG_SCRATCH`` or the system's folder for temporary files,
and processes of a machine share the large files that they fetch. A copy is deleted when it is closed; one that a killed
process left is deleted by the next process that opens the same address.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType

from distkg.data.errors import StoreError
from distkg.data.storage.file_changes import add_listener, changed, remove_listener
from distkg.data.storage.objects import Objects, is_address, objects_at
from distkg.redaction import name_copies, redact_address

LARGE = ".safetensors"
SCRATCH = "DISTKG_SCRATCH"
SMALL_BYTES = 8 << 20
SEND_SECONDS = 1.0
"""Shortest time between two transfers of one small file."""

KNOWN = (
    "config.yaml",
    "provenance.json",
    "metrics.jsonl",
    "checkpoints.jsonl",
    "notices.jsonl",
    "failures.jsonl",
    "result.json",
    "model.json",
    "model/model.json",
    "space.yaml",
    "method.yaml",
    "search.jsonl",
)
"""Files of runs, models and searches."""
KNOWN_OF_TRIALS = ("parameters.json", "rung.json", "workers.txt", "error.txt")

_FETCHES_AT_ONCE = 8
_SHARED = "shared"
_open: list[WorkingCopy] = []


class WorkingCopy:
    """Local copy of a folder of objects, for one process.

    Attributes:
        objects: the folder in the store.
        opened_at: the address with its secrets, and ``fetch``.
        address: its address without secrets.
        path: folder of the copy.
        shared: folder for large files, shared by the processes of this machine.
    """

    def __init__(self, address: str, *, fetch: bool = True) -> None:
        """Prepare a copy; without ``fetch`` it begins empty, for files that are only written."""
        self._fetches, self.opened_at = fetch, (address, fetch)
        self.objects: Objects = objects_at(address)
        self.address = self.objects.address
        place = _scratch() / hashlib.sha256(redact_address(address, options=True).encode()).hexdigest()[:16]
        self._alive = _reserved(place, self.address)
        self.path, self.shared = self._alive.path.with_suffix(""), place / _SHARED
        self._seen: set[str] = set()
        self._own: set[str] = set()
        self._unsent: deque[str] = deque()
        self._sending = threading.Lock()
        self._wake, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._send_in_background, name="send-to-store", daemon=True)

    def __enter__(self) -> WorkingCopy:
        _open.append(self)
        add_listener(self.changed)
        name_copies(str(self.path.parent), self.address)
        try:
            if self._fetches:
                self.refresh()
        except BaseException:
            self._discard()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._wake.set()
        self._thread.join()
        try:
            if kind is None:
                self.flush()
            else:
                with suppress(Exception):  # the first error is the one to report
                    self.flush()
        finally:
            self._discard()

    def _discard(self) -> None:
        remove_listener(self.changed)
        _open.remove(self)
        shutil.rmtree(self.path, ignore_errors=True)
        self._alive.release()
        for folder in (self.shared, self.path.parent):
            with suppress(OSError):  # other copies are open
                folder.rmdir()

    def refresh(self, names: Iterable[str] | None = None) -> None:
        """Fetch the small files of the folder, or some of them by name, but those that this process writes.

        A listing may lag, so files of runs and searches, and those that were seen before, are asked for by name.
        """
        if names is None:
            listed = {entry.name for entry in self.objects.entries() if not entry.name.endswith(LARGE)}
            names = listed | self._seen | set(KNOWN)
        with ThreadPoolExecutor(_FETCHES_AT_ONCE) as threads:
            list(threads.map(self._fetch_small, names))

    def _fetch_small(self, name: str) -> None:
        if name in self._own or not _is_plain(name):
            return
        content = self.objects.read(name)
        path = self.path / name
        if content is None:
            path.unlink(missing_ok=True)
            self._seen.discard(name)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.fetched")
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
        self._seen.add(name)

    def changed(self, path: Path) -> None:
        """Note that a file was written, to be sent within about a second, or deleted, which is done at once.

        Files are sent in the order in which they were written, so that one that completes others comes after them.
        """
        if self.path not in path.parents:
            return
        name = path.relative_to(self.path).as_posix()
        self.keep(name)
        if not path.exists():
            self.objects.delete([name])
            self._seen.discard(name)
        elif not self._unsent or self._unsent[-1] != name:
            self._unsent.append(name)
        self._wake.set()

    def keep(self, name: str) -> None:
        """Never fetch a file again, because it is written here."""
        self._own.add(name)

    def flush(self) -> None:
        """Send what was written so far, and has not been sent in the background.

        Raises:
            StoreUnavailableError, StoreError: the store does not take it.
        """
        with self._sending:
            while self._unsent:
                name = self._unsent.popleft()
                try:
                    self._send_one(name)
                except BaseException:
                    self._unsent.appendleft(name)
                    raise

    def _send_one(self, name: str) -> None:
        path = self.path / name
        if name in self._unsent or not path.exists():
            return  # sent after what was written in between, or deleted
        if path.stat().st_size > SMALL_BYTES:
            self.objects.upload(name, path)
            return
        content = path.read_bytes()
        self.objects.write(name, content)
        self._seen.add(name)

    def _send_in_background(self) -> None:
        while not self._over.is_set():
            self._wake.wait()
            self._wake.clear()
            with suppress(Exception):  # what is unsent stays so: the next flush sends it, or raises
                self.flush()
            self._over.wait(SEND_SECONDS)


def copy_of(path: Path) -> WorkingCopy | None:
    """Return the open copy that holds a path, or None for a path of no copy."""
    return next((copy for copy in _open if copy.path == path or copy.path in path.parents), None) if _open else None


def refresh(path: Path) -> None:
    """Fetch the small files that others have written, if a folder is a copy of one in a store."""
    copy = copy_of(path)
    if copy is not None:
        copy.refresh()


def fetch(path: Path) -> None:
    """Make a large file of a folder in a store readable; do nothing elsewhere, or if there is no such file."""
    copy = copy_of(path)
    if copy is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            copy.objects.download(path.relative_to(copy.path).as_posix(), path)


def refresh_below(folder: Path) -> None:
    """Fetch the small files of one folder of those in a store, with the files of runs by name."""
    copy = copy_of(folder)
    if copy is not None:
        prefix = f"{folder.relative_to(copy.path).as_posix()}/"
        listed = {entry.name for entry in copy.objects.entries(prefix) if not entry.name.endswith(LARGE)}
        copy.refresh(listed | {f"{prefix}{name}" for name in (*KNOWN, *KNOWN_OF_TRIALS)})


def delete_folder(folder: Path) -> None:
    """Delete a folder and its files, here and in the store of which it is a copy."""
    copy = copy_of(folder)
    if copy is not None:
        prefix = f"{folder.relative_to(copy.path).as_posix()}/"
        copy.objects.delete([entry.name for entry in copy.objects.entries(prefix)])
    shutil.rmtree(folder, ignore_errors=True)


def names_in(folder: Path) -> set[str]:
    """Return the names of the files in a folder, also of those that a store has and its copy here has not."""
    copy = copy_of(folder)
    here = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if copy is None:
        return here
    within = folder.relative_to(copy.path).as_posix()
    prefix = "" if within == "." else f"{within}/"
    return here | {entry.name[len(prefix) :].partition("/")[0] for entry in copy.objects.entries(prefix)}


def delete(path: Path) -> None:
    """Delete a file, here and in the store of which its folder is a copy; an absent one is no error."""
    path.unlink(missing_ok=True)
    changed(path)


def name_of(folder: Path) -> str:
    """Return the last part of the name of a folder, for headings."""
    return folder.resolve().name if copy_of(folder) is None else shown(folder).rpartition("/")[2]


def flush(path: Path) -> None:
    """Send what was written in the copy that holds a path, if it lies in one."""
    copy = copy_of(path)
    if copy is not None:
        copy.flush()


def shown(path: Path) -> str:
    """Return the name of a folder for messages, and by which processes of several machines know it: its path, or the
    address of the store's folder of which it is a copy, without secrets."""
    copy = copy_of(path)
    if copy is None:
        return str(path)
    within = path.relative_to(copy.path).as_posix()
    return copy.address if within == "." else f"{copy.address}/{within}"


@contextmanager
def folder_at(folder: str | Path, *, fetch: bool = True) -> Iterator[Path]:
    """Yield a folder's path, or for an address the local copy of the folder there while the context is open.

    A copy that this process has open is used again.

    Args:
        fetch: fetch the small files of the folder; False for one that is only written to.

    Raises:
        StoreError, StoreUnavailableError: the store cannot be used.
    """
    if not is_address(folder):
        yield Path(folder)
        return
    shared = next((copy for copy in _open if copy.opened_at == (str(folder), fetch)), None)
    with WorkingCopy(str(folder), fetch=fetch) if shared is None else nullcontext(shared) as copy:
        yield copy.path


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold a lock of this machine beside a file, so that one process at a time fetches it."""
    lock = _Lock(file.with_name(f".{file.name}.lock"))
    try:
        yield
    finally:
        lock.release()


class _Lock:
    """Exclusive lock on a local file; it ends with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            self._file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(self._file).st_ino:
                    return
            os.close(self._file)  # its last holder has deleted it

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._file)


def _reserved(place: Path, address: str) -> _Lock:
    """Make the folders of a new copy in ``place``, and return the lock that shows that its process lives.

    Raises:
        StoreError: they cannot be made.
    """
    while True:
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            _clear(place)
            lock = _Lock(place / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.lock")
            lock.path.with_suffix("").mkdir(mode=0o700)
            (place / _SHARED).mkdir(mode=0o700, exist_ok=True)
            return lock
        except FileNotFoundError:
            continue  # the last copy of another process was just closed, and the place removed with it
        except OSError as error:
            raise StoreError(
                f"there is no place for a copy of {address}: {error.strerror} ({place}). Name a folder with room in "
                f"{SCRATCH}"
            ) from None


def _clear(place: Path) -> None:
    """Delete the copies of processes that have ended, and their shared files once no copy is left."""
    locks = list(place.glob("*.lock"))
    for path in locks:
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
        finally:
            os.close(file)
    if not any(place.glob("*.lock")):
        shutil.rmtree(place / _SHARED, ignore_errors=True)


def _scratch() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(os.environ.get(SCRATCH) or tempfile.gettempdir()) / f"distkg-{user}"


def _is_plain(name: str) -> bool:
    """Return whether the name of an object is that of a file in a folder, and leads nowhere else."""
    return all(part not in ("", ".", "..") for part in name.split("/")) and "\0" not in name
