"""Paths of the local or a shared file system: where an address of an object store must not stand."""

from __future__ import annotations

import re
from pathlib import Path

from distkg.data.errors import StoreError

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<slashes>/+)(?P<rest>.*)", re.DOTALL)

LONGEST, DEEPEST = 4095, 200


class NotLocalError(StoreError):
    """An address such as ``s3://bucket/folder`` where a path of the local file system is needed."""


def check_length(path: str) -> None:
    """Refuse a path that no system takes, before folders of it are made one in the other.

    Raises:
        NotLocalError: it is too long, or has too many folders.
    """
    if len(path) > LONGEST or path.count("/") > DEEPEST:
        raise NotLocalError(f"{path[:40]}…: the path is too long: at most {LONGEST:,} characters in {DEEPEST} folders")


def local_path(path: str | Path, what: str = "", kind: str = "folder") -> Path:
    """Return a path of the local or a shared file system, with ``~`` expanded.

    A :class:`pathlib.Path` made of an address, which has lost a slash (``s3:/bucket/x``), is recognised as well. A
    drive letter is no scheme.

    Args:
        what: the option or argument, for the message, such as ``run folder``.
        kind: what it must be, ``folder`` or ``file``.

    Raises:
        NotLocalError: it is an address, or longer than any path; nothing was written.

    >>> local_path("runs/x", "run folder")
    PosixPath('runs/x')
    """
    scheme = _SCHEME.fullmatch(str(path))
    if scheme is None:
        check_length(str(path))
        try:
            return Path(path).expanduser()
        except RuntimeError as error:  # the home of a user that this machine does not have
            raise NotLocalError(f"{path}: {error}; write the folder out") from None
    slashes = scheme["slashes"] if len(scheme["slashes"]) > 1 else "//"
    # Without user name, password and options: a message may be kept.
    address = f"{scheme['scheme']}:{slashes}{scheme['rest'].partition('?')[0].rpartition('@')[2]}"
    named = f"{what} {address!r}".lstrip()
    if scheme["scheme"].lower() == "file":
        raise NotLocalError(f"{named} must be a {kind}, not an object store or a URL: write the path without file://")
    raise NotLocalError(
        f"{named} must be a {kind}, not an object store: give a path on this machine, or on a file system that all "
        "nodes share"
    )
