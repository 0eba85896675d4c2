"""File of a lease, in a folder or in an object store: created once, replaced only if nobody else has replaced it."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from distkg.data.storage.objects import Seen
from distkg.data.storage.working_copy import WorkingCopy, copy_of, shown


class LeaseFile(Protocol):
    """File of a lease.

    Attributes:
        folder: name of its folder, for messages.
    """

    folder: str

    def create(self, content: bytes) -> bool:
        """Create the file atomically and only if there is none; return whether it was created."""
        ...

    def look(self) -> Seen | None:
        """Read the file; None if there is none."""
        ...

    def age(self, seen: Seen) -> float:
        """Return the seconds since the file was last written, by the clock of the storage."""
        ...

    def replace(self, content: bytes, seen: Seen) -> bool:
        """Replace the file that was seen; return False if another is there by now."""
        ...

    def guard(self) -> LeaseFile | None:
        """Return the file whose holder alone may call ``replace``; None where ``replace`` is atomic by itself."""
        ...

    def touch(self) -> None:
        """Write the file as it is, so that it is new again."""
        ...

    def delete(self) -> None:
        """Delete the file."""
        ...


def lease_file(run: Path, name: str) -> LeaseFile:
    """Return the file of a lease in a run folder; for the copy of a folder in a store, the one in the store."""
    copy = copy_of(run)
    return FolderLeaseFile(run / name) if copy is None else ObjectLeaseFile(copy, run, name)


class FolderLeaseFile:
    """File in a folder of a local or network file system."""

    def __init__(self, path: Path) -> None:
        self.folder, self._path = str(path.parent), path

    def create(self, content: bytes) -> bool:
        written = self._written(content)
        try:
            os.link(written, self._path)
        except FileExistsError:
            return os.stat(written).st_nlink == 2  # created by a first attempt whose reply the network lost
        except OSError:  # no hard links here
            return self._create_exclusively(content)
        else:
            return True
        finally:
            written.unlink(missing_ok=True)

    def _create_exclusively(self, content: bytes) -> bool:
        try:
            handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
        return True

    def look(self) -> Seen | None:
        try:
            with self._path.open("rb") as opened:
                return Seen(opened.read(), "", os.fstat(opened.fileno()).st_mtime)
        except FileNotFoundError:
            return None

    def age(self, seen: Seen) -> float:
        """Compare its time with that of a new file, because the clock may be a server's."""
        probe = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        try:
            probe.touch()
            return probe.stat().st_mtime - seen.age
        except OSError:
            return time.time() - seen.age
        finally:
            probe.unlink(missing_ok=True)

    def replace(self, content: bytes, seen: Seen) -> bool:
        again = self.look()
        if again is None or again.content != seen.content:
            return False
        os.replace(self._written(content), self._path)
        return True

    def guard(self) -> LeaseFile | None:
        return FolderLeaseFile(self._path.with_name(f"{self._path.name}.takeover"))

    def touch(self) -> None:
        os.utime(self._path)

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)

    def _written(self, content: bytes) -> Path:
        """Write the content to a file with a unique name and return its path."""
        own = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        own.write_bytes(content)
        return own


class ObjectLeaseFile:
    """Object of a store, written under a condition where the store has conditional writes."""

    def __init__(self, copy: WorkingCopy, run: Path, name: str) -> None:
        self.folder, self._objects = shown(run), copy.objects
        self._name = (run / name).relative_to(copy.path).as_posix()

    def create(self, content: bytes) -> bool:
        return self._objects.create(self._name, content)

    def look(self) -> Seen | None:
        return self._objects.look(self._name)

    def age(self, seen: Seen) -> float:
        return seen.age

    def replace(self, content: bytes, seen: Seen) -> bool:
        return self._objects.replace(self._name, content, seen.version)

    def guard(self) -> LeaseFile | None:
        return None

    def touch(self) -> None:
        seen = self.look()
        if seen is not None:
            with suppress(FileNotFoundError):
                self._objects.replace(self._name, seen.content, seen.version)

    def delete(self) -> None:
        self._objects.delete([self._name])
