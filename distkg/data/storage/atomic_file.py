"""Files that are replaced in one step: a reader sees the old content or the new one, never a part."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distkg.data.errors import StoreError


class NotAFileError(StoreError):
    """A folder, a device or a pipe where a file is to be written."""


def check_replaceable(path: Path) -> None:
    """Refuse a path that names something else than a plain file, which a rename would destroy or cannot replace.

    ``/dev/null`` is the case that matters: as root, a rename over it takes it from every process of the machine.

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
    """Yield a path beside ``path`` to write to, which takes its name when the block ends.

    A block that raises leaves ``path`` as it was, and nothing beside it.

    Raises:
        NotAFileError: a folder, device, pipe or socket is there.
    """
    check_replaceable(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, or replace it, in one step.

    Raises:
        NotAFileError: a folder, device, pipe or socket is there.
    """
    with replaced_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
