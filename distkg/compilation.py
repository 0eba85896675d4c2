"""``njit``, and where compiled code is kept: beside the package, else at home, else in a private temporary folder.

Numba writes its cache into the ``__pycache__`` of the package or below the user's home, and refuses to compile where
it can write to neither, as in a container that runs as another user. Everything that is compiled imports ``njit`` from
here, so the place is decided once in each process, driver and workers alike. A cache is code that will be run: a
temporary folder that another user could have made or can change is never used.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.misc.appdirs import AppDirs

PACKAGE = Path(__file__).resolve().parent
NUMBA_CACHE, TRITON_CACHE = "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR"
_PROBE_BYTES = 4096  # a full disk takes an empty file


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit(**options)``; with ``cache=True`` what is compiled is kept for later processes, where possible."""

    def compiled(function: Callable[..., Any]) -> Any:
        if options.get("cache") and _has_cache():
            with suppress(RuntimeError):  # a function without a file of its own has no cache
                return numba.njit(**options)(function)
        return numba.njit(**{name: value for name, value in options.items() if name != "cache"})(function)

    return compiled


def choose_cache(packages: Iterable[Path], home: Path) -> str | None:
    """Value of NUMBA_CACHE_DIR under which numba finds a place; empty where it finds one itself, None for no cache.

    Args:
        packages: folders of the modules that are compiled.
        home: numba's folder in the user's home.
    """
    configured = os.environ.get(NUMBA_CACHE, "")
    if configured and _is_writable(Path(configured)):
        return configured
    if all(_is_writable(package / "__pycache__") for package in packages) or _is_writable(home):
        return ""
    private = private_folder()
    return None if private is None else os.path.join(private, "numba")


@cache
def private_folder() -> str | None:
    """A folder in the temporary one that only this user can read or write; None where there can be none.

    It has one name for each user, so that processes share it. Where something else has that name, it is made anew for
    this process and those that it starts.
    """
    try:
        parent = tempfile.gettempdir()
        folder = os.path.join(parent, f"distkg-{os.geteuid()}")
        if not _keeps_owners_apart(parent):
            return None
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            if not _is_private(folder):
                folder = tempfile.mkdtemp(prefix="distkg-")
                atexit.register(shutil.rmtree, folder, ignore_errors=True)
    except OSError:
        return None
    return folder if _is_writable(Path(folder)) else None


@cache
def _has_cache() -> bool:
    """Decide where numba keeps compiled code; False where nothing can be kept."""
    packages = [PACKAGE, *(init.parent for init in PACKAGE.glob("*/**/__init__.py"))]
    chosen = choose_cache(packages, Path(AppDirs(appname="numba", appauthor=False).user_cache_dir))
    if chosen is None:
        return False
    numba.config.CACHE_DIR = chosen
    if chosen:
        os.environ[NUMBA_CACHE] = chosen  # for processes that this one starts
    return True


def keep_gpu_kernels() -> None:
    """Point Triton, which compiles into the user's home, to the private folder where that cannot be written to."""
    home = Path(os.environ.get("TRITON_HOME", os.path.expanduser("~")))
    if TRITON_CACHE in os.environ or _may_be_made(home / ".triton"):
        return
    private = private_folder()
    if private is not None:
        os.environ[TRITON_CACHE] = os.path.join(private, "triton")


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
    except OSError:
        return False
    return True


def _may_be_made(folder: Path) -> bool:
    """Whether a folder is writable or can be made; it is not made."""
    nearest = next((place for place in (folder, *folder.parents) if place.exists()), None)
    return nearest is not None and os.access(nearest, os.W_OK)


def _is_private(folder: str) -> bool:
    found = os.lstat(folder)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _keeps_owners_apart(folder: str) -> bool:
    """Whether nobody but root can replace what this user has in a folder."""
    found = os.stat(folder)
    others_write = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    return found.st_uid in (0, os.geteuid()) and not others_write
