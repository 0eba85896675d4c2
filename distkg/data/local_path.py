"""Paths of the local or a shared file system: where an address of an object store must not stand."""

from __future__ import annotations

import re
from pathlib import Path

from distkg.data.errors import StoreError

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<slashes>/+)(?P<rest>.*)", re.DOTALL)


class NotLocalError(StoreError):
    """An address such as ``s3://bucket/folder`` where a path of the local file system is needed."""


def local_path(path: str | Path, what: str = "", kind: str = "folder") -> Path:
    """Return a path of the local or a shared file system, with ``~`` expanded.

    A :class:`pathlib.Path` made of an address, which has lost a slash (``s3:/bucket/x``), is recognised as well. A
    drive letter is no scheme.

    Args:
        what: the option or argument, for the message, such as ``run folder``.
        kind: what it must be, ``folder`` or ``file``.

    Raises:
        NotLocalError: it is an address; nothing was written.

    >>> local_path("runs/x", "run folder")
    PosixPath('runs/x')
    """
    scheme = _SCHEME.fullmatch(str(path))
    if scheme is None:
        return Path(path).expanduser()
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
