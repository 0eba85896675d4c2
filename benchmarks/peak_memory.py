"""The memory of a process; imports nothing, so that it adds nothing."""


def peak_mb() -> float:
    """Most memory that this process has held so far (resident MB).

    Not ``getrusage``: a process that another one spawned starts there with its parent's peak.

    Raises:
        OSError: not Linux.
    """
    return _megabytes("/proc/self/status", "VmHWM:")


def proportional_mb(process: int | str = "self") -> float:
    """Memory of a process now, where a page that n processes map counts as one n-th (proportional set size, MB).

    Raises:
        OSError: not Linux, or no such process.
    """
    return _megabytes(f"/proc/{process}/smaps_rollup", "Pss:")


def _megabytes(path: str, field: str) -> float:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(field):
                return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{path} has no {field} The benchmarks of memory need Linux")
