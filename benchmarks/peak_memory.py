"""The memory of a process; imports nothing, so that it adds nothing."""


def peak_mb() -> float:
    """Most memory that this process has held so far (resident MB).

    Not ``getrusage``: a process that another one spawned starts there with its parent's peak.

    Raises:
        OSError: not Linux.
    """
    with open("/proc/self/status", encoding="utf-8") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status has no VmHWM: the benchmarks of memory need Linux")


def proportional_mb() -> float:
    """Memory of this process now, where a page that n processes map counts as one n-th (proportional set size, MB).

    Raises:
        OSError: not Linux.
    """
    with open("/proc/self/smaps_rollup", encoding="utf-8") as rollup:
        for line in rollup:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/smaps_rollup has no Pss: the benchmarks of memory need Linux")
