"""Which entities share a partition, so that few edges join different ones.

``metis`` (Karypis and Kumar 1998, through DGL) and ``ldg`` (Stanton and Kliot 2012, restreamed as in Nishimura and
Ugander 2013; no DGL needed) answer the same question; both give partitions of exactly the sizes that
``part_offsets`` says.
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
    """Assigns nodes to parts.

    Args of a call:
        edges: integer [m, 2], nodes in [0, n); directions, loops and repeats do not matter.
        n: nodes.
        parts: how many parts.
        seed: decides the order in which nodes are looked at.

    Returns:
        int32 [n], the part of each node; part p has ``diff(part_offsets(n, parts))[p]`` nodes.
    """

    def __call__(self, edges: np.ndarray, n: int, parts: int, seed: int) -> NDArray[np.int32]: ...


def part_offsets(n: int, parts: int) -> NDArray[np.int64]:
    """Ends of equal contiguous ranges: int64 [parts + 1]; all have ceil(n / parts) ids but the last ones."""
    return np.minimum(np.arange(parts + 1, dtype=np.int64) * -(-n // parts), n)


def choose_partitioner() -> tuple[str, Partitioner]:
    """METIS where DGL is installed, else its plain counterpart; with its name."""
    try:
        import_dgl("ldg")
    except MissingDglError as error:
        _log.warning("partitions are made by ldg, not by METIS: %s", error.cause)
        return "ldg", ldg
    return "metis", metis


def metis(edges: np.ndarray, n: int, parts: int, seed: int) -> NDArray[np.int32]:
    """Multilevel k-way partitioning of METIS; see ``Partitioner``.

    The seed decides the order in which METIS sees the nodes; ties among equally good cuts may still fall either
    way from call to call.
    """
    import torch  # here, so that reading files does not wait for it

    dgl = import_dgl("the partitioner ldg")
    shuffle = np.random.default_rng(seed).permutation(n)
    # METIS may hang or abort on loops and parallel edges: in a knowledge graph small parts have many of both.
    simple = np.unique(np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1), axis=0)
    source, target = (torch.from_numpy(shuffle[simple[:, column]]) for column in (0, 1))
    with contextlib.redirect_stdout(io.StringIO()):
        assignment = dgl.metis_partition_assignment(dgl.graph((source, target), num_nodes=n), parts)
    return equalised(assignment.numpy()[shuffle].astype(np.int32), Csr.undirected(edges, n), parts)


def ldg(edges: np.ndarray, n: int, parts: int, seed: int) -> NDArray[np.int32]:
    """Linear deterministic greedy, streamed over the nodes several times in random order; see ``Partitioner``."""
    graph, rng = Csr.undirected(edges, n), np.random.default_rng(seed)
    assignment = np.full(n, -1, dtype=np.int32)
    sizes = np.full(parts, int(np.ceil(SLACK * n / parts)), dtype=np.int64)
    for _ in range(STREAMS):
        _stream(rng.permutation(n), graph.offsets, graph.neighbours, sizes, assignment)
    return equalised(assignment, graph, parts)


def equalised(assignment: NDArray[np.int32], graph: Csr, parts: int) -> NDArray[np.int32]:
    """Move the least attached nodes of overfull parts to parts with room, next to their neighbours there."""
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
    """DGL cannot be used on this machine; the message names what does the same without it.

    Attributes:
        cause: why it cannot.
    """

    def __init__(self, cause: str, twin: str) -> None:
        super().__init__(f"{cause}. Use {twin} instead, which does the same without it.")
        self.cause = cause


def import_dgl(twin: str) -> Any:
    """DGL on its PyTorch backend.

    Args:
        twin: what to use instead, for the message of the error.

    Raises:
        MissingDglError: it is not installed, or does not work with what is.
    """
    os.environ.setdefault("DGLBACKEND", "pytorch")  # else the import writes a configuration file at home
    try:
        return importlib.import_module("dgl")
    except Exception as error:  # whatever a library built for another torch raises
        if isinstance(error, ModuleNotFoundError) and error.name == "dgl":
            cause = "DGL is not installed (its wheels end at Python 3.11)"
        else:
            cause = f"DGL does not work here ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    raise MissingDglError(cause, twin)


@njit(cache=True)
def _stream(
    order: np.ndarray, offsets: np.ndarray, neighbours: np.ndarray, sizes: np.ndarray, assignment: np.ndarray
) -> None:
    """Give each node of ``order`` the part with most of its neighbours, weighted by the room left there."""
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
