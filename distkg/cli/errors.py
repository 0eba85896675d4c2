"""Errors of the command line: one message and an exit code; a traceback only on request."""

from __future__ import annotations

import traceback
from pathlib import Path

FAILED, MISTAKE, REFUSED = 1, 2, 3
PACKAGE = Path(__file__).resolve().parent.parent


def explain(error: BaseException) -> tuple[str, int]:
    """Return the message for an error, and the exit code.

    Mistakes that the user can correct (a ``ValueError`` that distkg defines, an error of the file system) exit with 2,
    a plan that refuses the run with 3, all other errors with 1. Any other error is a bug: its type, message and
    location are given, on one line.
    """
    error = _original(error)
    if _is_out_of_memory(error):
        detail = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return f"out of memory{detail}. Use a machine with more memory, or a smaller input", FAILED
    if _is_ours(error):
        if type(error).__name__ == "PlanError":
            return str(error), REFUSED
        return str(error), MISTAKE if isinstance(error, ValueError | OSError) else FAILED
    if isinstance(error, OSError):
        return _system_message(error), MISTAKE
    message = " ".join(str(error).split())[:500]
    described = f"{type(error).__name__}: {message}" if message else type(error).__name__
    advice = "This is a bug in distkg: run it again as `distkg --debug …`, and report the traceback"
    return f"{described} ({_place(error)}). {advice}", FAILED


def _original(error: BaseException) -> BaseException:
    """Return the original error of a Ray task; Ray's wrapper has the traceback of the task in its message."""
    cause = getattr(error, "cause", None)
    wrapped = type(error).__module__.startswith("ray.") and isinstance(cause, BaseException)
    return cause if wrapped else error  # type: ignore[return-value]


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a MemoryError or an error of torch's allocators, on CPU or GPU."""
    allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or allocator or type(error).__name__ == "OutOfMemoryError"


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] == "distkg"


def _system_message(error: OSError) -> str:
    if error.strerror is None:
        return str(error) or type(error).__name__
    if error.filename is None:
        return error.strerror
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(files)}: {error.strerror}"


def _place(error: BaseException) -> str:
    """Return file, line and function of distkg's own innermost frame."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(frame.filename).parents]
    if not frames:
        return "outside of distkg"
    last = frames[-1]
    return f"{Path(last.filename).relative_to(PACKAGE.parent)}:{last.lineno}, {last.name}"
