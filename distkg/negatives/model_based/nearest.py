"""Nearest-entity search over the shards of all ranks.

Every rank searches its own rows for the vectors of all ranks, and the results are merged. Up to ``EXHAUSTIVE_ROWS``
rows the search is exact on the current rows. Beyond, it uses a FAISS index of this rank's rows (inverted lists, one in
16 searched), which ``rebuild`` renews.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.kernels.nearest_neighbours import VectorIndex, metric_of
from distkg.kernels.scores.log_sum_exp import BLOCK_ROWS, blocks
from distkg.kernels.scores.similarity import Similarity
from distkg.kernels.select_topk import Best, best_of, keep_best
from distkg.negatives.model_view import ModelView

EXHAUSTIVE_ROWS = 100_000
QUERIES_AT_ONCE = 2048
FOUND_BYTES = 64  # of an entity that is found for a query, as the results of ranks are merged


def search_memory(queries: int, width: int, top: int) -> int:
    """Return the bytes of a search for so many queries of all ranks, beside an index, at most."""
    scores = min(queries, QUERIES_AT_ONCE) * BLOCK_ROWS * 4 * 2
    return queries * (3 * 4 * width + FOUND_BYTES * top) + scores


class NearestEntities:
    """Search for the entities most similar to query vectors."""

    def __init__(self, model: ModelView, similarity: Similarity) -> None:
        """Create the search.

        Raises:
            AnnError: this rank holds more rows than are searched exhaustively, and no index supports the similarity.
        """
        self._model, self._similarity = model, similarity
        self._index: VectorIndex | None = None
        self._indexed = len(model.own_candidates()) > EXHAUSTIVE_ROWS
        if self._indexed:
            metric_of(similarity)

    def rebuild(self) -> None:
        """Index the current rows of this rank; does nothing if the search is exact."""
        if self._indexed:
            rows = self._model.own_candidates()
            self._index = VectorIndex.empty(self._similarity, len(rows), rows.shape[1])
            self._index.fill(rows)

    def search(self, vectors: Tensor, top: int) -> Tensor:
        """Return the ``top`` best entities for vectors float32 [b, Q], best first: int64 [b, top] on CPU, -1 for none.

        Collective: ranks may pass different numbers of vectors, also none.
        """
        ranks = self._model.ranks
        most = torch.tensor(len(vectors))
        ranks.all_reduce(most, "max")
        if not int(most):
            return torch.empty(0, top, dtype=torch.int64)
        everyone = ranks.all_gather(F.pad(vectors, (0, 0, 0, int(most) - len(vectors))))
        own_best = self._among_own(everyone, top)
        low = ranks.rank * int(most)
        mine = slice(low, low + len(vectors))
        scores = ranks.all_gather(own_best.scores[None])[:, mine]
        entities = ranks.all_gather(own_best.entities[None])[:, mine]
        merged = best_of(scores.transpose(0, 1).flatten(1), entities.transpose(0, 1).flatten(1), top)
        return merged.entities.long().cpu()

    def _among_own(self, vectors: Tensor, top: int) -> Best:
        if self._indexed:
            if self._index is None:
                self.rebuild()
            assert self._index is not None
            scores, places = self._index.search(vectors, top)
            entities = torch.where(places < 0, -1, places + self._model.first).int()
            return Best(scores.to(vectors.device), entities.to(vectors.device))
        best = Best.none_yet(len(vectors), top, vectors.device)
        rows = self._model.own_candidates()
        for low, high in blocks(len(rows)):
            candidates = rows[low:high]
            for first, last in blocks(len(vectors), QUERIES_AT_ONCE):
                scores = self._similarity.scores(vectors[first:last], candidates)
                keep_best(scores, self._model.first + low, first, best)
        return best
