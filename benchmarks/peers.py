"""Runs a peer's program on the triples of a store, in an environment as its users have it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import BenchmarkError
from distkg.data.store.graph_store import Store

_REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class PeerResult:
    """What a peer reached.

    Attributes:
        rate: positive triples, or queries, per second; 0 for the task ``start``.
        peak_mb: resident memory (MB).
    """

    rate: float
    peak_mb: float


def run_pykeen(task: str, store: str, **options: Any) -> PeerResult:
    """A task of ``pykeen_peer.py`` on every core that this process may use.

    Raises:
        BenchmarkError: it failed; the message ends with its traceback.
    """
    cores = str(len(os.sched_getaffinity(0)))
    environment = {**os.environ, "OMP_NUM_THREADS": cores, "OMP_WAIT_POLICY": "passive"}
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.npz"
        write_graph(Store.open(store), graph)
        finished = subprocess.run(
            [sys.executable, "-m", "benchmarks.pykeen_peer", task, str(graph), cores, json.dumps(options)],
            cwd=_REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
        )
    if finished.returncode:
        raise BenchmarkError(f"PyKEEN's {task} {options} failed:\n{finished.stderr}")
    return PeerResult(**json.loads(finished.stdout.splitlines()[-1]))


def write_graph(store: Store, path: Path) -> None:
    """Write ``sizes`` (entities, relations) and the triples of each split as NumPy arrays, for a peer's program."""
    train, valid, test = (store.triples(split) for split in ("train", "valid", "test"))
    np.savez(path, sizes=[store.num_entities, store.num_relations], train=train, valid=valid, test=test)
