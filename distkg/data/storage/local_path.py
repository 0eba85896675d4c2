"""Validation of paths on a local or shared file system, where addresses of object stores are not allowed."""

from __future__ import annotations

import re
from pathlib import Path

from distkg.data.errors import StoreError

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<slashes>/+)(?P<rest>.*)", re.DOTALL)

LONGEST, DEEPEST = 4095, 200


class NotLocalError(StoreError):
    """The given path is an address such as ``s3://bucket/folder``, but a path of a file system is needed."""


def check_length(path: str) -> None:
    """Raise if a path is too long for any system, before any of its folders is created.

    Raises:
        NotLocalError: the path is too long, or has too many folders.
    """
    if len(path) > LONGEST or path.count("/") > DEEPEST:
        raise NotLocalError(f"{path[:40]}…: the path is too long: at most {LONGEST:,} characters in {DEEPEST} folders")


def local_path(path: str | Path, what: str = "", kind: str = "folder") -> Path:
    """Return a path of the local or a shared file system, with ``~`` expanded.

    An address in the form of a :class:`pathlib.Path`, which has lost a slash (``s3:/bucket/x``), is recognised as well.
    A drive letter is not a scheme.

    Args:
        what: name of the option or argument in the message, such as ``run folder``.
        kind: ``folder`` or ``file``, for the message.

    Raises:
        NotLocalError: the path is an address, or too long; nothing was written.

    >>> local_path("runs/x", "run folder")
    PosixPath('runs/x')
    """
    scheme = _SCHEME.fullmatch(str(path))
    if scheme is None:
        check_length(str(path))
        try:
            return Path(path).expanduser()
        except RuntimeError as error:  # ~user of a user who is unknown here
            raise NotLocalError(f"{path}: {error}; write the folder out") from None
    slashes = scheme["slashes"] if len(scheme["slashes"]) > 1 else "//"
    # Without user name, password and options: messages may be logged.
    address = f"{scheme['scheme']}:{slashes}{scheme['rest'].partition('?')[0].rpartition('@')[2]}"
    named = f"{what} {address!r}".lstrip()
    if scheme["scheme"].lower() == "file":
        raise NotLocalError(f"{named} must be a {kind}, not an object store or a URL: write the path without file://")
    raise NotLocalError(
        f"{named} must be a {kind}, not an object store: give a path on this machine, or on a file system that all "
        "nodes share"
    )
