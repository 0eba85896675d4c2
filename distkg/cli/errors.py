"""Errors as the user sees them: one message and an exit code; a traceback only where it is asked for."""

from __future__ import annotations

import traceback
from pathlib import Path

FAILED, MISTAKE, REFUSED = 1, 2, 3
PACKAGE = Path(__file__).resolve().parent.parent


def explain(error: BaseException) -> tuple[str, int]:
    """What to print about an error, and the exit code.

    Mistakes that the user can mend (a ``ValueError`` that distkg defines, an error of the file system) exit with 2, a
    plan that refuses the run with 3, everything else with 1. An error that is none of these is a bug: its type, message
    and place are given, in one line.
    """
    error = _original(error)
    if _is_out_of_memory(error):
        detail = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return f"out of memory{detail}. Use a machine with more of it, or a smaller input", FAILED
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
    """The error of a Ray task, out of its wrapping, which has the traceback of the task in its message."""
    cause = getattr(error, "cause", None)
    wrapped = type(error).__module__.startswith("ray.") and isinstance(cause, BaseException)
    return cause if wrapped else error  # type: ignore[return-value]


def _is_out_of_memory(error: BaseException) -> bool:
    """Also torch's errors of its allocators, on CPU and on GPU, which are no MemoryError."""
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
    """File, line and function of distkg's own innermost frame."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(frame.filename).parents]
    if not frames:
        return "outside of distkg"
    last = frames[-1]
    return f"{Path(last.filename).relative_to(PACKAGE.parent)}:{last.lineno}, {last.name}"
