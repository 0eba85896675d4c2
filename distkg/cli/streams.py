"""Standard output and error when they are a pipe without a reader, a full disk, another encoding, or closed."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any

from distkg.cli.errors import MISTAKE, explain

READER_GONE = 141
"""Exit code if the reader of the output has closed the pipe: 128 + SIGPIPE, as of other programs of a pipeline."""


def write_anything() -> None:
    """Make both streams accept every text; characters that their encoding lacks are written as escapes such as
    ``\\xe9``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def ascii_only() -> bool:
    """Return whether standard output cannot encode every character, so that JSON and YAML must escape them."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return not encoding.lower().startswith("utf")


def reader_gone() -> bool:
    """Return whether standard output is a pipe whose reader has closed it."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return False


def silence() -> None:
    """Redirect standard output to the null device, so that buffered output for a closed pipe causes no error at
    exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def exit_code_after_flush(code: Any) -> Any:
    """Flush standard output and return the exit code of the process."""
    if sys.stdout is None:
        return code
    if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # click has found a pipe without a reader
        return READER_GONE
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence()
        return READER_GONE
    except OSError as error:
        silence()
        print(f"error: the output could not be written: {explain(error)[0]}", file=sys.stderr)
        return code or MISTAKE
    return code
