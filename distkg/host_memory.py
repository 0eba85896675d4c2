"""Memory limit of the processes of this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_limit(container_limits: Iterable[Path] = CGROUP_LIMITS) -> int:
    """Return the bytes available to all processes: the machine's memory, or the container's limit if lower."""
    limits = [int(text) for text in map(_read, container_limits) if text.isdigit()]
    return min([psutil.virtual_memory().total, *limits])


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""
