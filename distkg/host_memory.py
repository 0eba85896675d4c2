"""Memory limit of the processes of this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil


def cgroup_limits(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> tuple[Path, ...]:
    """Return the files with the memory limits of the control groups of this process, version 1 and 2, and of the groups
    that contain them. In most containers the own group is the root."""
    limits = [root / "memory.max", root / "memory/memory.limit_in_bytes"]
    for line in _read(own).splitlines():
        _, controllers, group = line.split(":", 2)
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        if not controllers or "memory" in controllers.split(","):
            inner = base / group.lstrip("/")
            limits += [place / name for place in (inner, *inner.parents) if place.is_relative_to(base)]
    return tuple(dict.fromkeys(limits))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


CGROUP_LIMITS = cgroup_limits()


def memory_limit(container_limits: Iterable[Path] = CGROUP_LIMITS) -> int:
    """Return the bytes available to all processes: the machine's memory, or the container's limit if lower."""
    limits = [int(text) for text in map(_read, container_limits) if text.isdigit()]
    return min([psutil.virtual_memory().total, *limits])
