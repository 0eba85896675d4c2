"""Start of a process by a clock that nobody sets, which tells it apart from a later process with the same id."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def seconds_from_boot(pid: int) -> float:
    """Return the seconds from the boot of this machine to the start of a process, as the kernel recorded them.

    ``psutil.Process.create_time`` adds the time of the boot by the wall clock, so that it changes when that clock is
    set, and by a second when it is slewed. Systems other than Linux have no better one.

    Raises:
        psutil.NoSuchProcess: there is none with this id.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return psutil.Process(pid).create_time()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")
