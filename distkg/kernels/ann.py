"""Approximate nearest vectors, by FAISS: exhaustive for few vectors, inverted lists for many."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.scores.similarity import Similarity

_FLAT_BELOW = 100_000  # rows up to which an exhaustive index answers within milliseconds
_ROWS_AT_ONCE = 1 << 15
_SAMPLE_PER_LIST = 64  # FAISS asks for 39 or more to place a list's centre
_PROBED = 16  # one list in so many is searched


class AnnError(ValueError):
    """An index that cannot be made or read; the message says why and what to use instead."""


class VectorIndex:
    """Candidate vectors, to be searched by query vectors in the order of a similarity.

    Attributes:
        index: FAISS's.
    """

    def __init__(self, index: Any, similarity: Similarity) -> None:
        self.index = index
        self._similarity = similarity.name

    @classmethod
    def empty(cls, similarity: Similarity, count: int, width: int) -> VectorIndex:
        """For ``count`` vectors of ``width``: ``IndexFlat`` up to 100,000, above ``IndexIVFFlat`` with 4√N lists.

        Raises:
            AnnError: a similarity other than product and L2, or FAISS is not installed.
        """
        faiss, metric = load_faiss(), metric_of(similarity)
        flat = faiss.IndexFlat(width, metric)
        if count <= _FLAT_BELOW:
            return cls(flat, similarity)
        lists = int(4 * math.sqrt(count))
        index = faiss.IndexIVFFlat(flat, width, lists, metric)
        index.nprobe = max(1, lists // _PROBED)
        flat.this.disown()
        index.own_fields = True
        return cls(index, similarity)

    @property
    def wanted_sample(self) -> int:
        """How many vectors ``train`` needs; 0 where it need not be called."""
        return 0 if self.index.is_trained else self.index.nlist * _SAMPLE_PER_LIST

    def train(self, sample: Tensor) -> None:
        """Place the centres of the lists by some of the vectors, float32 [s, C]."""
        self.index.train(sample.contiguous().numpy())

    def add(self, rows: Tensor) -> None:
        """Add vectors float32 [n, C]; their places go on from those that are there."""
        self.index.add(rows.contiguous().numpy())

    def fill(self, rows: Tensor) -> None:
        """Train where it is needed, and add all of float32 [n, C]."""
        wanted = self.wanted_sample
        if wanted:
            self.train(rows[torch.linspace(0, len(rows) - 1, min(wanted, len(rows))).long()])
        for part in rows.split(_ROWS_AT_ONCE):
            self.add(part)

    def search(self, query: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """Best vectors: scores float32 and places int64 [q, top]; -inf and -1 where fewer are found.

        Scores are the similarity's own.
        """
        values, places = self.index.search(query.detach().float().cpu().contiguous().numpy(), top)
        if self._similarity != "dot":
            values = -values if self._similarity == "squared_l2" else -np.sqrt(np.maximum(values, 0))
        scores = np.where(places < 0, -np.inf, values).astype(np.float32)
        return torch.from_numpy(scores), torch.from_numpy(places)


def cluster(rows: Tensor, count: int, *, rounds: int = 20, seed: int = 0) -> Tensor:
    """Centres float32 [count, C] of clusters of vectors float32 [n, C], by k-means.

    Raises:
        AnnError: FAISS is not installed.
    """
    faiss = load_faiss()
    points = np.ascontiguousarray(rows.numpy(), dtype=np.float32)
    means = faiss.Kmeans(points.shape[1], count, niter=rounds, seed=seed, min_points_per_centroid=1)
    means.train(points)
    return torch.from_numpy(means.centroids.copy())


def load_faiss() -> ModuleType:
    """
    Raises:
        AnnError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise AnnError("an ANN index needs FAISS, which is not installed: pip install 'distkg[ann]'") from None
    module: ModuleType = faiss
    return module


def metric_of(similarity: Similarity) -> int:
    """FAISS's number of the metric.

    Raises:
        AnnError: there is none for this similarity, or FAISS is not installed.
    """
    faiss = load_faiss()
    metrics = {"dot": faiss.METRIC_INNER_PRODUCT, "squared_l2": faiss.METRIC_L2, "l2": faiss.METRIC_L2}
    if similarity.name not in metrics:
        raise AnnError(
            f"there is no ANN index for the similarity {similarity.name}, only for products and L2 distances. "
            "`distkg predict` is exact for every scorer"
        )
    return int(metrics[similarity.name])
