"""Standard output and error where they lead to a pipe without a reader, a full disk, another encoding, or nowhere."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any

from distkg.cli.errors import MISTAKE, explain

READER_GONE = 141
"""Exit code of a process whose reader has gone, 128 + SIGPIPE, as other programs of a pipeline have it."""


def write_anything() -> None:
    """Let both streams write every text: what their encoding lacks appears as an escape such as ``\\xe9``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def ascii_only() -> bool:
    """Whether standard output cannot hold every character, so that JSON and YAML must escape them."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return not encoding.lower().startswith("utf")


def reader_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return False


def silence() -> None:
    """Let what is still buffered for a reader that is gone go nowhere, so that the end of the process is quiet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def exit_code_after_flush(code: Any) -> Any:
    """The exit code of the process once its output is written, where it can be."""
    if sys.stdout is None:
        return code
    if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # click met a pipe without a reader
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
