"""Addresses: local paths and everything pyarrow's filesystems reach (``s3://bucket/x``, ``gs://…``, ``hdfs://…``)."""

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
    """A file or folder on a pyarrow filesystem.

    Attributes:
        filesystem: pyarrow filesystem.
        path: path inside it, without scheme or options.
    """

    filesystem: fs.FileSystem
    path: str

    @classmethod
    def of(cls, address: str) -> Location:
        """Resolve a local path or a URI with pyarrow's options, such as ``s3://bucket/x?region=eu-west-1``.

        Raises:
            StoreError: empty address, a scheme that pyarrow does not know, malformed options.
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
        """A file or folder of this folder that is to be read.

        Raises:
            StoreError: on this machine, it is a link that leads out of the folder.
        """
        child = self.child(name)
        if self.local and not os.path.realpath(child.path).startswith(os.path.join(os.path.realpath(self.path), "")):
            raise StoreError(f"{child.path} is a link that leads out of its folder. Put what it leads to there")
        return child

    def file_within(self, name: str) -> Location:
        """As ``within``, of a file.

        Raises:
            StoreError: as ``within``, or it is no plain file, such as a pipe.
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
        """Names in this folder; empty where there is no such folder."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return {info.base_name for info in self.filesystem.get_file_info(selector)}

    def read_bytes(self, most: int | None = None) -> bytes:
        """Content of a file; at most its first ``most`` bytes."""
        with self.filesystem.open_input_stream(self.path, compression=None) as stream:
            return stream.read(most)

    def sha256(self) -> str:
        """Checksum of a file, in hexadecimal; its bytes pass by in pieces."""
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(self.path, compression=None) as stream:
            while piece := stream.read(PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def write_bytes(self, content: bytes) -> None:
        """Write a whole file; a reader sees the old content or the new one, never a part."""
        with self.replaced() as half, half.filesystem.open_output_stream(half.path, compression=None) as stream:
            stream.write(content)

    @contextmanager
    def replaced(self) -> Iterator[Location]:
        """Yield a place to write a file to, which takes this one's when the block ends: ``replaced_file`` anywhere.

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


def make_folder(path: str | os.PathLike[str], *, private: bool) -> None:
    """Make a folder and those on the way to it; a ``private`` one is readable by its owner alone (mode 700).

    A folder that exists keeps its mode.
    """
    if parent := os.path.dirname(os.fspath(path)):
        os.makedirs(parent, exist_ok=True)
    if not os.path.isdir(path):
        os.makedirs(path, mode=0o700 if private else 0o777, exist_ok=True)


def without_secrets(address: str) -> str:
    """The address as it is printed and stored: without user name, password and query (`distkg.redaction`)."""
    return redact_address(address)


def address_within(address: str, name: str) -> str:
    """The address of something in the folder at an address, with the same options."""
    if "://" not in address:
        return f"{address.rstrip('/')}/{name}"
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))
