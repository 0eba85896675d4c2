"""FAISS index of an exported entity table for approximate nearest-answer search.

Query vectors are those of the scorer (``scorer.query``); the best answers to a query are its neighbours in the index.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distkg.embedding.scorers.base import Scorer
from distkg.inference.exported_rows import ExportedRows
from distkg.kernels.nearest_neighbours import AnnError, VectorIndex, load_faiss, metric_of

INDEX = "index.faiss"

_ROWS_AT_ONCE = 1 << 15


def write_index(folder: Path, scorer: Scorer) -> Path:
    """Index the candidate vectors of an exported table as ``index.faiss`` beside it.

    The index is exhaustive (``IndexFlat``) up to 100,000 rows, and above that ``IndexIVFFlat`` with 4√N lists, of which
    one in 16 is searched. It is built in memory and takes as many bytes as the vectors.

    Args:
        folder: export that holds the entity rows.
        scorer: computes candidate vectors from rows, and names the similarity.

    Raises:
        AnnError: the similarity is neither the inner product nor L2, or FAISS is not installed.
    """
    metric_of(scorer.similarity)
    table = ExportedRows(folder)
    index = VectorIndex.empty(scorer.similarity, table.count, scorer.candidates(table.rows(0, 1)).shape[1])
    if index.wanted_sample:
        index.train(_sample(table, index.wanted_sample, scorer))
    for low in range(0, table.count, _ROWS_AT_ONCE):
        index.add(_candidates(table.rows(low, min(low + _ROWS_AT_ONCE, table.count)), scorer))
    path = folder / INDEX
    load_faiss().write_index(index.index, str(path))
    return path


class EntityIndex:
    """Index written by ``write_index``, opened for search."""

    def __init__(self, path: Path, scorer: Scorer) -> None:
        """Open the index.

        Raises:
            AnnError: the file is missing, FAISS is not installed, or the scorer has another similarity.
        """
        faiss = load_faiss()
        if not path.is_file():
            raise AnnError(f"there is no index at {path}. Create it with `distkg export RUN --to DIR --index`")
        index = faiss.read_index(str(path))
        if index.metric_type != metric_of(scorer.similarity):
            raise AnnError(
                f"{path} was built for another similarity than {scorer.similarity.name}; run "
                "`distkg export` with --index again"
            )
        self._index = VectorIndex(index, scorer.similarity)

    def search(self, query: Tensor, top: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best answers to query vectors float32 [q, Q]: scores float32 and entity ids int64, [q, top] each.

        Scores are the scorer's own. If fewer are found, ids are -1 and scores -inf.
        """
        scores, entities = self._index.search(query, top)
        return scores.numpy(), entities.numpy()


def _sample(table: ExportedRows, size: int, scorer: Scorer) -> Tensor:
    """Return about ``size`` candidate vectors, in short runs spread evenly over the table."""
    runs = 256
    length = min(-(-size // runs), max(1, table.count // runs))
    lows = np.linspace(0, table.count - length, runs).astype(np.int64)
    return torch.cat([_candidates(table.rows(low, low + length), scorer) for low in lows.tolist()])


def _candidates(rows: Tensor, scorer: Scorer) -> Tensor:
    with torch.no_grad():
        return scorer.candidates(rows)
