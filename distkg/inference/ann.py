"""An index for approximate nearest answers, made with FAISS, of an exported entity table.

Query vectors are those of the scorer (``scorer.query``); the best answers to one are its neighbours in the index.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from distkg.scoring.base import Scorer

INDEX = "index.faiss"

_FLAT_BELOW = 100_000  # rows up to which an exhaustive index answers within milliseconds
_ROWS_AT_ONCE = 1 << 15
_SAMPLE_PER_LIST = 64  # FAISS asks for 39 or more to place a list's centre
_PROBED = 16  # one list in so many is searched


class AnnError(ValueError):
    """An index that cannot be made or read; the message says why and what to use instead."""


def write_index(entities: Path, scorer: Scorer) -> Path:
    """Index the answers' vectors of an exported table as ``index.faiss`` beside it.

    Exhaustive (``IndexFlat``) up to 100,000 rows; above that ``IndexIVFFlat`` with 4√N lists, of which one in 16
    is searched. The index is built in memory: as many bytes as the vectors.

    Args:
        entities: ``entities.safetensors``.
        scorer: takes the answer's part from rows, and names the similarity.

    Raises:
        AnnError: a similarity other than product and L2, or FAISS is not installed.
    """
    faiss = _faiss()
    metric = _metric(faiss, scorer)
    with safe_open(entities, framework="pt") as file:
        rows = file.get_slice("vectors")
        count = rows.get_shape()[0]
        width = scorer.candidates(rows[:1]).shape[1]
        index = _empty_index(faiss, metric, count, width)
        if not index.is_trained:
            index.train(_sample(rows, count, index.nlist * _SAMPLE_PER_LIST, scorer))
        for low in range(0, count, _ROWS_AT_ONCE):
            index.add(_candidates(rows[low : min(low + _ROWS_AT_ONCE, count)], scorer))
    path = entities.with_name(INDEX)
    faiss.write_index(index, str(path))
    return path


class EntityIndex:
    """An index written by ``write_index``, opened for search."""

    def __init__(self, path: Path, scorer: Scorer) -> None:
        """
        Raises:
            AnnError: no such file, FAISS is not installed, or the scorer has another similarity.
        """
        faiss = _faiss()
        if not path.is_file():
            raise AnnError(f"there is no index at {path}. Make one with `distkg export RUN --to DIR --index`")
        self._index = faiss.read_index(str(path))
        if self._index.metric_type != _metric(faiss, scorer):
            raise AnnError(f"{path} was made for another similarity than {scorer.similarity.name}; export again")
        self._similarity = scorer.similarity.name

    def search(self, query: Tensor, top: int) -> tuple[np.ndarray, np.ndarray]:
        """Best answers to query vectors float32 [q, Q]: scores float32 and entity ids int64, [q, top] each.

        Scores are the scorer's own. Where fewer are found ids are -1 and scores -inf.
        """
        values, entities = self._index.search(query.detach().float().cpu().contiguous().numpy(), top)
        if self._similarity != "dot":
            values = -values if self._similarity == "squared_l2" else -np.sqrt(np.maximum(values, 0))
        return np.where(entities < 0, -np.inf, values).astype(np.float32), entities


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError:
        raise AnnError("an ANN index needs FAISS, which is not installed: pip install 'distkg[ann]'") from None
    module: ModuleType = faiss
    return module


def _metric(faiss: ModuleType, scorer: Scorer) -> int:
    metrics = {"dot": faiss.METRIC_INNER_PRODUCT, "squared_l2": faiss.METRIC_L2, "l2": faiss.METRIC_L2}
    name = scorer.similarity.name
    if name not in metrics:
        raise AnnError(
            f"{type(scorer).__name__} compares by {name}; an ANN index is made for product and L2 similarities "
            "only. Use `distkg predict`, which is exact for every scorer"
        )
    return int(metrics[name])


def _empty_index(faiss: ModuleType, metric: int, count: int, width: int) -> Any:
    flat = faiss.IndexFlat(width, metric)
    if count <= _FLAT_BELOW:
        return flat
    lists = int(4 * math.sqrt(count))
    index = faiss.IndexIVFFlat(flat, width, lists, metric)
    index.nprobe = max(1, lists // _PROBED)
    flat.this.disown()
    index.own_fields = True
    return index


def _sample(rows: Any, count: int, size: int, scorer: Scorer) -> np.ndarray:
    """About ``size`` candidate vectors, in short runs spread evenly over the table."""
    runs = 256
    length = min(-(-size // runs), max(1, count // runs))
    lows = np.linspace(0, count - length, runs).astype(np.int64)
    return np.concatenate([_candidates(rows[low : low + length], scorer) for low in lows.tolist()])


def _candidates(rows: Tensor, scorer: Scorer) -> np.ndarray:
    with torch.no_grad():
        vectors: np.ndarray = scorer.candidates(rows).contiguous().numpy()
    return vectors
