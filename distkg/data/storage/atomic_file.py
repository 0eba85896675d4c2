"""Atomic replacement of files: a reader sees the old content or the new one, never a part."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distkg.data.errors import StoreError
from distkg.data.storage.file_changes import changed


class NotAFileError(StoreError):
    """The path of a file to write is a folder, a device or a pipe."""


def check_replaceable(path: Path) -> None:
    """Raise if a path exists and is not a regular file, since a rename would destroy it or fail.

    The important case is ``/dev/null``: as root, a rename over it removes it for every process of the machine.

    Raises:
        NotAFileError: a folder, device, pipe or socket is there.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise NotAFileError(f"{str(path)!r} is a folder: name a file to write, in it or elsewhere")
    if not stat.S_ISREG(mode):
        raise NotAFileError(f"{str(path)!r} is a device, pipe or socket: name a plain file to write")


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` to write to; it is renamed to ``path`` at the end.

    If the block raises, ``path`` is unchanged and the temporary file is removed.

    Raises:
        NotAFileError: a folder, device, pipe or socket is there.
    """
    check_replaceable(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
        changed(path)
    finally:
        unfinished.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write or replace a text file in UTF-8 atomically.

    Raises:
        NotAFileError: a folder, device, pipe or socket is there.
    """
    with replaced_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
