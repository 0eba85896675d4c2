"""Addresses of files: local paths and URIs of pyarrow's filesystems (``s3://bucket/x``, ``gs://…``, ``hdfs://…``)."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from distkg.data.errors import StoreError
from distkg.data.storage.atomic_file import replaced_file
from distkg.data.storage.local_path import check_length
from distkg.redaction import redact, redact_address

PIECE_BYTES = 1 << 22


@dataclass(frozen=True)
class Location:
    """File or folder on a pyarrow filesystem.

    Attributes:
        filesystem: pyarrow filesystem.
        path: path in the filesystem, without scheme or options.
    """

    filesystem: fs.FileSystem
    path: str

    @classmethod
    def of(cls, address: str) -> Location:
        """Resolve a local path or a URI with pyarrow's options, such as ``s3://bucket/x?region=eu-west-1``.

        Raises:
            StoreError: an empty address, a scheme unknown to pyarrow, or malformed options.
        """
        if not address:
            raise StoreError("the address is empty; name a folder, a file or a URI such as s3://bucket/folder")
        if "://" not in address:
            check_length(address)
            return cls(fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(address)))
        try:
            filesystem, path = fs.FileSystem.from_uri(address)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = redact(str(error).replace(address, without_secrets(address)))
            raise StoreError(f"{without_secrets(address)} is not an address that pyarrow can open: {reason}") from None
        return cls(filesystem, path.rstrip("/"))

    @property
    def name(self) -> str:
        """Last component of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def child(self, name: str) -> Location:
        return Location(self.filesystem, f"{self.path}/{name}")

    def within(self, name: str) -> Location:
        """Return a file or folder in this folder, to be read.

        Raises:
            StoreError: it is a link on a local file system that leads out of the folder.
        """
        child = self.child(name)
        if self.local and not os.path.realpath(child.path).startswith(os.path.join(os.path.realpath(self.path), "")):
            raise StoreError(
                f"{child.path} is a link that leads out of its folder. Replace it with a copy of its target"
            )
        return child

    def file_within(self, name: str) -> Location:
        """Return a file in this folder, to be read.

        Raises:
            StoreError: as ``within``, or it is not a regular file, such as a pipe.
        """
        file = self.within(name)
        if self.local and os.path.exists(file.path) and not stat.S_ISREG(os.stat(file.path).st_mode):
            raise StoreError(f"{file.path} cannot be read: it is not a plain file")
        return file

    def is_file(self) -> bool:
        return self.filesystem.get_file_info(self.path).type == fs.FileType.File

    def is_folder(self) -> bool:
        return self.filesystem.get_file_info(self.path).type == fs.FileType.Directory

    def names(self) -> set[str]:
        """Return the names in this folder; empty if the folder does not exist."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return {info.base_name for info in self.filesystem.get_file_info(selector)}

    def read_bytes(self, most: int | None = None) -> bytes:
        """Read a file, or at most its first ``most`` bytes."""
        with self.filesystem.open_input_stream(self.path, compression=None) as stream:
            return stream.read(most)

    def sha256(self) -> str:
        """Compute the SHA-256 of a file in hexadecimal, reading in pieces."""
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(self.path, compression=None) as stream:
            while piece := stream.read(PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def write_bytes(self, content: bytes) -> None:
        """Write a whole file atomically: a reader sees the old content or the new one."""
        with (
            self.replaced() as unfinished,
            unfinished.filesystem.open_output_stream(unfinished.path, compression=None) as stream,
        ):
            stream.write(content)

    @contextmanager
    def replaced(self) -> Iterator[Location]:
        """Yield a temporary location that replaces this file when the block ends: ``replaced_file`` for any storage.

        Raises:
            NotAFileError: on this machine, a folder, device, pipe or socket is there.
        """
        if self.local:
            with replaced_file(Path(self.path)) as unfinished_path:
                yield Location(self.filesystem, str(unfinished_path))
            return
        unfinished = Location(self.filesystem, f"{self.path}.part")
        try:
            yield unfinished
            self.filesystem.move(unfinished.path, self.path)
        except BaseException:
            if unfinished.is_file():
                self.filesystem.delete_file(unfinished.path)
            raise


def read_file(address: str, most: int) -> bytes:
    """Read a file at an address, at most its first ``most`` bytes.

    Raises:
        StoreError: a malformed address, there is no such file, or it cannot be read.
    """
    location, shown = Location.of(address), without_secrets(address)
    try:
        return location.read_bytes(most)
    except FileNotFoundError:
        raise StoreError(f"there is no file at {shown}. Correct the address, or write the file there first") from None
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{shown} cannot be read: {redact(str(error))}") from None


def make_folder(path: str | os.PathLike[str], *, private: bool) -> None:
    """Create a folder and its parents; with ``private``, readable by its owner only (mode 700).

    A folder that exists keeps its mode.
    """
    if parent := os.path.dirname(os.fspath(path)):
        os.makedirs(parent, exist_ok=True)
    if not os.path.isdir(path):
        os.makedirs(path, mode=0o700 if private else 0o777, exist_ok=True)


def without_secrets(address: str) -> str:
    """Remove user name, password and query from an address, for printing and recording (`distkg.redaction`)."""
    return redact_address(address)


def address_within(address: str, name: str) -> str:
    """Return the address of a file in the folder at ``address``, with the same options."""
    if "://" not in address:
        return f"{address.rstrip('/')}/{name}"
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))
