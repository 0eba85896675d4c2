"""Environment variables of a worker process."""

from __future__ import annotations

from distkg.config import ClusterConfig
from distkg.torch_variables import TORCH_VARIABLES


def worker_environment(cluster: ClusterConfig) -> dict[str, str]:
    """Return the environment of a worker process, set before it imports torch."""
    threads = str(cluster.threads)
    return {**TORCH_VARIABLES, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
