"""``njit`` with a safe cache folder: in the package, else in the user's home, else in a private temporary folder.

Numba writes its cache into the ``__pycache__`` of the package or the user's home, and refuses to compile if it can
write to neither, as in a container that runs as another user. All compiled code imports ``njit`` from here, so the
folder is chosen once in each process, driver and workers alike. A cache is code that will be run: a temporary folder
that another user could have created or can change is never used.
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
from importlib import import_module
from pathlib import Path
from typing import Any

import numba
from numba.misc.appdirs import AppDirs
from numba.np import linalg


def _know_of_blas() -> None:
    """Let numba take for granted that there is BLAS, which ``np.dot`` in a kernel would need.

    Before the first kernel it imports ``scipy.linalg`` to find out: a third of a second in every process.
    """
    looks = linalg.ensure_blas
    linalg.ensure_blas = lambda: None
    try:
        import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = looks


_know_of_blas()

PACKAGE = Path(__file__).resolve().parent
NUMBA_CACHE, TRITON_CACHE = "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR"
_PROBE_BYTES = 4096  # an empty file can be written even to a full disk


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return ``numba.njit(**options)``; ``cache=True`` keeps compiled code for later processes, if possible."""

    def compiled(function: Callable[..., Any]) -> Any:
        if options.get("cache") and _has_cache():
            with suppress(RuntimeError):  # a function without a source file cannot be cached
                return numba.njit(**options)(function)
        return numba.njit(**{name: value for name, value in options.items() if name != "cache"})(function)

    return compiled


def choose_cache(packages: Iterable[Path], home: Path) -> str | None:
    """Return a usable value of NUMBA_CACHE_DIR; empty if numba's default works, None if no cache is possible.

    Args:
        packages: folders of the compiled modules.
        home: numba's cache folder in the user's home.
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
    """Return a temporary folder that only this user can read or write; None if it cannot be created.

    Its name depends on the user, so that processes share it. If the name is taken by something else, a new folder is
    created for this process and its child processes.
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
    """Choose the cache folder of numba; False if no cache is possible."""
    packages = [PACKAGE, *(init.parent for init in PACKAGE.glob("*/**/__init__.py"))]
    chosen = choose_cache(packages, Path(AppDirs(appname="numba", appauthor=False).user_cache_dir))
    if chosen is None:
        return False
    numba.config.CACHE_DIR = chosen
    if chosen:
        os.environ[NUMBA_CACHE] = chosen  # for child processes
    return True


def cache_folder() -> str | None:
    """Return the folder that keeps compiled kernels; empty if it is the package's own or numba's, None if there is
    none."""
    return os.environ.get(NUMBA_CACHE, "") if _has_cache() else None


def keep_gpu_kernels() -> None:
    """Set Triton's cache to the private folder if its default, the user's home, is not writable."""
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
    """Return True if a folder is writable or could be created; does not create it."""
    nearest = next((place for place in (folder, *folder.parents) if place.exists()), None)
    return nearest is not None and os.access(nearest, os.W_OK)


def _is_private(folder: str) -> bool:
    status = os.lstat(folder)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077


def _keeps_owners_apart(folder: str) -> bool:
    """Return True if only root and this user can replace this user's files in a folder."""
    status = os.stat(folder)
    others_write = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
    return status.st_uid in (0, os.geteuid()) and not others_write
