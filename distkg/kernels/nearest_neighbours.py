"""Approximate nearest-neighbour search with FAISS: exhaustive for few vectors, inverted lists for many."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.scores.similarity import Similarity

_FLAT_BELOW = 100_000  # rows up to which an exhaustive search takes milliseconds
_ROWS_AT_ONCE = 1 << 15
_SAMPLE_PER_LIST = 64  # FAISS needs 39 or more to place the centre of a list
_PROBED = 16  # one in so many lists is searched


class RowBlocks(Protocol):
    """Vectors [n, C] that are read by slices or ids: a tensor, or vectors that lie elsewhere."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, which: Any, /) -> Tensor: ...
    def split(self, count: Any, /) -> Iterable[Tensor]: ...


class AnnError(ValueError):
    """An index cannot be made or read; the message says why and what to use instead."""


class VectorIndex:
    """Nearest-neighbour index of candidate vectors, searched in the order of a similarity.

    Attributes:
        index: the FAISS index.
    """

    def __init__(self, index: Any, similarity: Similarity) -> None:
        self.index = index
        self._similarity = similarity.name

    @classmethod
    def empty(cls, similarity: Similarity, count: int, width: int) -> VectorIndex:
        """Create an index for ``count`` vectors of ``width``: ``IndexFlat`` up to 100,000, else ``IndexIVFFlat``
        with 4√N lists.

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
        """Number of vectors that ``train`` needs; 0 if training is not needed."""
        return 0 if self.index.is_trained else self.index.nlist * _SAMPLE_PER_LIST

    def train(self, sample: Tensor) -> None:
        """Place the centres of the lists, given a sample of the vectors, float32 [s, C]."""
        self.index.train(sample.contiguous().numpy())

    def add(self, rows: Tensor) -> None:
        """Append vectors float32 [n, C]; their indices continue those of the present vectors."""
        self.index.add(rows.contiguous().numpy())

    def fill(self, rows: RowBlocks) -> None:
        """Train if needed, and add all vectors float32 [n, C]."""
        sample_size = self.wanted_sample
        if sample_size:
            self.train(rows[torch.linspace(0, len(rows) - 1, min(sample_size, len(rows))).long()].cpu())
        for part in rows.split(_ROWS_AT_ONCE):
            self.add(part.cpu())

    def search(self, query: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """Search the ``top`` best vectors: scores float32 and indices int64 [q, top], padded with -inf and -1.

        Scores are those of the similarity.
        """
        values, places = self.index.search(query.detach().float().cpu().contiguous().numpy(), top)
        if self._similarity != "dot":
            values = -values if self._similarity == "squared_l2" else -np.sqrt(np.maximum(values, 0))
        scores = np.where(places < 0, -np.inf, values).astype(np.float32)
        return torch.from_numpy(scores), torch.from_numpy(places)


def cluster(rows: Tensor, count: int, *, rounds: int = 20, seed: int = 0) -> Tensor:
    """Cluster vectors float32 [n, C] by k-means, and return the centres float32 [count, C].

    Raises:
        AnnError: FAISS is not installed.
    """
    faiss = load_faiss()
    points = np.ascontiguousarray(rows.numpy(), dtype=np.float32)
    means = faiss.Kmeans(points.shape[1], count, niter=rounds, seed=seed, min_points_per_centroid=1)
    means.train(points)
    return torch.from_numpy(means.centroids.copy())


def load_faiss() -> ModuleType:
    """Import FAISS.

    Raises:
        AnnError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise AnnError("an ANN index needs FAISS, which is not installed: pip install 'distkg[ann]'") from None
    module: ModuleType = faiss
    return module


def metric_of(similarity: Similarity) -> int:
    """Return the FAISS metric of a similarity.

    Raises:
        AnnError: FAISS has no such metric, or is not installed.
    """
    faiss = load_faiss()
    metrics = {"dot": faiss.METRIC_INNER_PRODUCT, "squared_l2": faiss.METRIC_L2, "l2": faiss.METRIC_L2}
    if similarity.name not in metrics:
        raise AnnError(
            f"there is no ANN index for the similarity {similarity.name}, only for products and L2 distances. "
            "`distkg predict` is exact for every scorer"
        )
    return int(metrics[similarity.name])
