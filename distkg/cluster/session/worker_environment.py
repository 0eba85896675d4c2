"""Threads and environment variables of a worker process."""

from __future__ import annotations

import math

from distkg.config import ClusterConfig


def worker_threads(cluster: ClusterConfig) -> int:
    """Return the number of threads of one worker: its CPUs, at least one."""
    return max(1, math.floor(cluster.cpus_per_worker))


def worker_environment(cluster: ClusterConfig) -> dict[str, str]:
    """Return the environment of a worker process, set before it imports torch.

    Huge pages halve the time that large row exchanges spend on page faults; passive waiting keeps the idle OpenMP
    threads of one worker off the cores of the others.
    """
    threads = str(worker_threads(cluster))
    return {
        "THP_MEM_ALLOC_ENABLE": "1",
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
        "NUMBA_NUM_THREADS": threads,
    }
