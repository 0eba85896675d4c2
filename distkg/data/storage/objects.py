"""Folder of objects in an object store, or in a file system that is used like one.

An object is written by one request and is whole or absent. ``s3://`` is served by boto3, which has conditional writes
and uploads in parts that continue after a fault; other addresses (``gs://``, ``hdfs://``, ``abfs://``) by pyarrow's
file systems, which have neither. A request that fails for a reason that may pass is repeated, with growing pauses, for
``PATIENCE_SECONDS``; a mistake, such as a missing bucket or refused credentials, is raised at once.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

from pyarrow import fs

from distkg.data.errors import StoreError
from distkg.data.storage.location import PIECE_BYTES, Location, without_secrets
from distkg.redaction import redact

PATIENCE_SECONDS = 300.0
FIRST_SECONDS = 15.0
"""Patience of the first request to a store, whose address is more often wrong than its network is down."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 20.0
SETTLE_SECONDS = 3.0
_REFUSALS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT", "Permission denied", "Authentication")

T = TypeVar("T")


class StoreUnavailableError(OSError):
    """A store did not serve a request for as long as it was repeated; the message says which and why."""


class TransientError(Exception):
    """Failure of one request that may succeed when it is repeated."""


@dataclass(frozen=True)
class ObjectInfo:
    """Object in a listing: its name in the folder, and its size."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Seen:
    """Small object that was read.

    Attributes:
        version: differs between any two contents that were written.
        age: seconds since it was written, by the store's clock; negative if that was set back since.
    """

    content: bytes
    version: str
    age: float


class Objects(Protocol):
    """Folder of objects. Every method may raise ``StoreError`` for a mistake and ``StoreUnavailableError``.

    Attributes:
        address: address of the folder without secrets, for messages.
        conditional: True if ``create`` and ``replace`` are atomic.
    """

    address: str
    conditional: bool

    def entries(self, under: str = "") -> list[ObjectInfo]:
        """List the objects whose names begin with ``under``, which is empty or ends with a slash."""
        ...

    def read(self, name: str) -> bytes | None:
        """Read a small object; None if there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a small object."""
        ...

    def upload(self, name: str, path: Path) -> None:
        """Write or replace an object by the content of a file, in parts; a part that fails is sent again."""
        ...

    def download(self, name: str, path: Path) -> None:
        """Write an object to a file, and continue where a broken connection stopped.

        Raises:
            FileNotFoundError: there is no such object.
        """
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; absent ones are no error."""
        ...

    def look(self, name: str) -> Seen | None:
        """Read a small object with its version and age; None if there is none."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write a small object only if there is none; return whether it was written."""
        ...

    def replace(self, name: str, content: bytes, version: str) -> bool:
        """Replace a small object only if it has that version; return whether it was replaced."""
        ...

    def drop_unfinished(self, under: str) -> None:
        """Delete the parts of uploads that were never finished."""
        ...


def is_address(folder: str | Path) -> bool:
    """Return whether a folder is named by an address (``scheme://…``) instead of a path."""
    return "://" in str(folder)


def objects_at(address: str) -> Objects:
    """Open the folder at an address.

    Raises:
        StoreError: malformed address, unknown scheme, or a package that it needs is missing.
    """
    if address.lower().startswith("s3://"):
        from distkg.data.storage.s3_objects import S3Objects

        return S3Objects(address)
    location = Location.of(_with_short_retries(address))
    if location.local:
        raise StoreError(f"{without_secrets(address)} is on this machine: write the path without file://")
    return FilesystemObjects(location, without_secrets(address))


def _with_short_retries(address: str) -> str:
    """Return an address whose requests pyarrow itself repeats for seconds: for Google's store by default 15 minutes."""
    parts = urlsplit(address)
    if parts.scheme.lower() not in ("gs", "gcs") or "retry_limit_seconds" in parts.query:
        return address
    return urlunsplit(
        parts._replace(query="&".join(filter(None, [parts.query, f"retry_limit_seconds={FIRST_SECONDS:g}"])))
    )


def persist(work: Callable[[], T], what: str, seconds: float | None = None) -> T:
    """Repeat ``work`` while it raises ``TransientError``, with pauses that double, for ``seconds``.

    Raises:
        StoreUnavailableError: ``what`` still failed, and why.
    """
    began, tries, pause = time.monotonic(), 0, _FIRST_PAUSE
    patience = PATIENCE_SECONDS if seconds is None else seconds
    while True:
        tries += 1
        try:
            return work()
        except TransientError as error:
            passed = time.monotonic() - began
            if passed + pause > patience:
                raise StoreUnavailableError(
                    f"{what} failed {tries} times in {passed:.0f} s: {redact(str(error))}. Check the address, the "
                    "network and the state of the store, then run the command again"
                ) from None
        time.sleep(pause * random.uniform(0.5, 1.0))  # not all ranks at the same moment
        pause = min(2 * pause, _LONGEST_PAUSE)


class FilesystemObjects:
    """Folder on a file system of pyarrow: Google Cloud Storage, Azure, HDFS.

    pyarrow has no conditional write. ``create`` writes, waits for ``SETTLE_SECONDS``, and reads what is there: of
    several that write at once, the last one wins, and all of them see it.
    """

    conditional = False

    def __init__(self, location: Location, address: str) -> None:
        self.address, self._location, self._fs = address, location, location.filesystem
        self._by_request = self._fs.type_name in ("gcs", "abfs")  # an object appears when its stream is closed
        self._reached = False

    def _path(self, name: str) -> str:
        return f"{self._location.path}/{name}"

    def _request(self, work: Callable[[], T], what: str) -> T:
        def once() -> T:
            try:
                return work()
            except FileNotFoundError:
                raise
            except OSError as error:
                if isinstance(error, PermissionError) or any(word in str(error) for word in _REFUSALS):
                    raise StoreError(f"{self.address} refuses to {what}: {redact(str(error))}") from None
                raise TransientError(str(error)) from None

        value = persist(once, f"{self.address}: to {what}", None if self._reached else FIRST_SECONDS)
        self._reached = True
        return value

    def entries(self, under: str = "") -> list[ObjectInfo]:
        root = self._path(under).rstrip("/")
        selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
        found = self._request(lambda: self._fs.get_file_info(selector), "list it")
        start = len(self._location.path) + 1
        return [ObjectInfo(info.path[start:], info.size) for info in found if info.type == fs.FileType.File]

    def read(self, name: str) -> bytes | None:
        def work() -> bytes:
            with self._fs.open_input_stream(self._path(name), compression=None) as stream:
                content: bytes = stream.read()
                return content

        try:
            return self._request(work, f"read {name}")
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        self._put(name, lambda stream: stream.write(content))

    def upload(self, name: str, path: Path) -> None:
        def copy(stream: fs.NativeFile) -> None:
            with path.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    stream.write(piece)

        self._put(name, copy)

    def _put(self, name: str, fill: Callable[[fs.NativeFile], object]) -> None:
        """Write an object; where a file is seen while it is written, under another name first."""
        target = self._path(name)
        written = target if self._by_request else f"{target}.part"

        def work() -> None:
            self._fs.create_dir(target.rpartition("/")[0], recursive=True)
            with self._fs.open_output_stream(written, compression=None) as stream:
                fill(stream)
            if written != target:
                if self._fs.get_file_info(target).type == fs.FileType.File:
                    self._fs.delete_file(target)  # HDFS does not rename over a file
                self._fs.move(written, target)

        self._request(work, f"write {name}")

    def download(self, name: str, path: Path) -> None:
        def work() -> None:
            with self._fs.open_input_stream(self._path(name), compression=None) as stream, path.open("wb") as file:
                while piece := stream.read(PIECE_BYTES):
                    file.write(piece)

        self._request(work, f"read {name}")

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                self._request(lambda name=name: self._fs.delete_file(self._path(name)), f"delete {name}")  # type: ignore[misc]
            except FileNotFoundError:
                continue

    def look(self, name: str) -> Seen | None:
        content = self.read(name)
        if content is None:
            return None
        info = self._request(lambda: self._fs.get_file_info(self._path(name)), f"look at {name}")
        written = info.mtime.timestamp() if info.mtime is not None else time.time()
        return Seen(content, _version(content), time.time() - written)

    def create(self, name: str, content: bytes) -> bool:
        return self.read(name) is None and self._written(name, content)

    def replace(self, name: str, content: bytes, version: str) -> bool:
        found = self.read(name)
        return found is not None and _version(found) == version and self._written(name, content)

    def _written(self, name: str, content: bytes) -> bool:
        self.write(name, content)
        time.sleep(SETTLE_SECONDS)
        return self.read(name) == content

    def drop_unfinished(self, under: str) -> None:
        self.delete(info.name for info in self.entries(under) if info.name.endswith(".part"))


def _version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
