"""Graph partitioning with few edges between parts.

``metis`` (Karypis and Kumar 1998, through DGL) and ``ldg`` (Stanton and Kliot 2012, restreamed as in Nishimura and
Ugander 2013, without DGL) are interchangeable; both return parts of exactly the sizes of ``part_offsets``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.graph.csr import Csr

_log = logging.getLogger(__name__)

STREAMS = 10
SLACK = 1.05


class Partitioner(Protocol):
    """Graph partitioner.

    Args of a call:
        edges: integer [m, 2], nodes in [0, n); directions, loops and repeats do not matter.
        n: number of nodes.
        parts: number of parts.
        seed: random seed of the order in which nodes are visited.

    Returns:
        int32 [n], part of each node; part p has ``diff(part_offsets(n, parts))[p]`` nodes.
    """

    def __call__(self, edges: np.ndarray, n: int, parts: int, seed: int) -> NDArray[np.int32]: ...


def part_offsets(n: int, parts: int) -> NDArray[np.int64]:
    """Return the bounds of equal contiguous ranges: int64 [parts + 1]; all but the last ones have ceil(n / parts)."""
    return np.minimum(np.arange(parts + 1, dtype=np.int64) * -(-n // parts), n)


def choose_partitioner() -> tuple[str, Partitioner]:
    """Return the name and function of METIS if DGL works, else of ``ldg``."""
    try:
        import_dgl("ldg")
    except MissingDglError as error:
        _log.warning("partitions are made by ldg, not by METIS: %s", error.cause)
        return "ldg", ldg
    return "metis", metis


def metis(edges: np.ndarray, n: int, parts: int, seed: int) -> NDArray[np.int32]:
    """Partition with the multilevel k-way algorithm of METIS; see ``Partitioner``.

    The seed permutes the nodes for METIS; ties between equally good cuts may still differ between calls.
    """
    import torch  # here, so that reading files does not wait for it

    dgl = import_dgl("the partitioner ldg")
    shuffle = np.random.default_rng(seed).permutation(n)
    # METIS may hang or abort on loops and parallel edges, of which small knowledge graphs have many.
    simple = np.unique(np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1), axis=0)
    source, target = (torch.from_numpy(shuffle[simple[:, column]]) for column in (0, 1))
    with contextlib.redirect_stdout(io.StringIO()):
        assignment = dgl.metis_partition_assignment(dgl.graph((source, target), num_nodes=n), parts)
    return equalised(assignment.numpy()[shuffle].astype(np.int32), Csr.undirected(edges, n), parts)


def ldg(edges: np.ndarray, n: int, parts: int, seed: int) -> NDArray[np.int32]:
    """Partition by linear deterministic greedy, restreamed over the nodes in random order; see ``Partitioner``."""
    graph, rng = Csr.undirected(edges, n), np.random.default_rng(seed)
    assignment = np.full(n, -1, dtype=np.int32)
    sizes = np.full(parts, int(np.ceil(SLACK * n / parts)), dtype=np.int64)
    for _ in range(STREAMS):
        _stream(rng.permutation(n), graph.offsets, graph.neighbours, sizes, assignment)
    return equalised(assignment, graph, parts)


def equalised(assignment: NDArray[np.int32], graph: Csr, parts: int) -> NDArray[np.int32]:
    """Move the least attached nodes of overfull parts to parts with room, preferably with their neighbours."""
    sizes = np.diff(part_offsets(len(assignment), parts))
    surplus = np.maximum(np.bincount(assignment, minlength=parts) - sizes, 0)
    inside = assignment[graph.sources] == assignment[graph.neighbours]
    attached = np.bincount(graph.sources[inside], minlength=len(assignment))
    order = np.lexsort((attached, assignment))
    starts = np.searchsorted(assignment[order], np.arange(parts))
    moved = np.concatenate([order[start : start + extra] for start, extra in zip(starts, surplus, strict=True)])
    result = assignment.copy()
    result[moved] = -1
    _stream(moved, graph.offsets, graph.neighbours, sizes, result)
    return result


class MissingDglError(ValueError):
    """DGL cannot be used on this machine; the message names a replacement without DGL.

    Attributes:
        cause: why DGL cannot be used.
    """

    def __init__(self, cause: str, twin: str) -> None:
        super().__init__(f"{cause}. Use {twin} instead, which does the same without DGL.")
        self.cause = cause


def import_dgl(twin: str) -> Any:
    """Import DGL with its PyTorch backend.

    Args:
        twin: replacement without DGL, for the error message.

    Raises:
        MissingDglError: DGL is not installed, or does not work with the installed torch.
    """
    os.environ.setdefault("DGLBACKEND", "pytorch")  # otherwise the import writes a file to the home folder
    try:
        return importlib.import_module("dgl")
    except Exception as error:  # a library built for another torch may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == "dgl":
            cause = "DGL is not installed (its wheels end at Python 3.11)"
        else:
            cause = f"DGL does not work here ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    raise MissingDglError(cause, twin)


@njit(cache=True)
def _stream(
    order: np.ndarray, offsets: np.ndarray, neighbours: np.ndarray, sizes: np.ndarray, assignment: np.ndarray
) -> None:
    """Assign each node of ``order`` to the part with most of its neighbours, weighted by the free room of the part."""
    room = sizes.copy()
    for part in assignment:
        if part >= 0:
            room[part] -= 1
    near = np.zeros(sizes.size, dtype=np.int64)
    for node in order:
        if assignment[node] >= 0:
            room[assignment[node]] += 1
        near[:] = 0
        for edge in range(offsets[node], offsets[node + 1]):
            part = assignment[neighbours[edge]]
            if part >= 0:
                near[part] += 1
        best, best_score = -1, -1.0
        for part in range(sizes.size):
            if room[part] > 0:
                score = (near[part] + 1e-3) * room[part] / sizes[part]
                if score > best_score:
                    best, best_score = part, score
        assignment[node] = best
        room[best] -= 1
