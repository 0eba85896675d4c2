"""Messages between a worker and the actors that draw negatives for it: requests, and replies with their validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distkg.negatives.base import DrawRequest, GeneratedNegatives, Negatives, TrainingProgress


@dataclass(frozen=True)
class Request:
    """Request for the negatives of one step. It carries the vectors of its queries, so that the actor needs no model.

    Attributes:
        number: number of the step over all epochs.
        rank: rank of the requesting worker.
        queries: int64 [b, 3], anchor, relation in [0, 2R), answer.
        count: maximum number of negatives per query.
        seed: random seed of the draw.
        moment: training progress at the step.
        query_vectors: float32 [b, Q]; None if the source does not require them.
        answer_vectors: float32 [b, C], candidate vectors of the answers; None if the source does not require them.
        version: step of the latest published vectors; -1 if none were published.
    """

    number: int
    rank: int
    queries: NDArray[np.int64]
    count: int
    seed: int
    moment: TrainingProgress
    query_vectors: NDArray[np.float32] | None
    answer_vectors: NDArray[np.float32] | None
    version: int

    @classmethod
    def of(
        cls,
        coming: DrawRequest,
        rank: int,
        version: int,
        query_vectors: NDArray[np.float32] | None,
        answer_vectors: NDArray[np.float32] | None,
    ) -> Request:
        """Create the request for a later draw."""
        columns, moment = coming.queries, coming.moment
        queries = torch.stack([columns.anchor, columns.relation, columns.answer], dim=1).numpy()
        settings = coming.count, coming.seed, moment
        return cls(moment.step, rank, queries, *settings, query_vectors, answer_vectors, version)


@dataclass(frozen=True)
class Reply:
    """Reply of a pool to a ``Request``.

    Attributes:
        entities: integer [b, K].
        mask: bool [b, K], True where there is no negative; None if all are negatives.
        version: step of the vectors that the source read; that of the request if it read none.
        made: generated negatives; None if the source generates none.
    """

    entities: np.ndarray
    mask: np.ndarray | None
    version: int
    made: SentMade | None = None

    @classmethod
    def of(cls, drawn: Negatives, version: int) -> Reply:
        """Create the reply from drawn negatives."""
        mask = None if drawn.mask is None else drawn.mask.numpy()
        made = None if drawn.made is None else SentMade.of(drawn.made)
        return cls(_as_sent(drawn.entities), mask, version, made)

    def negatives(self, count: int) -> Negatives:
        """Return the first ``count`` negatives of each query; a mixture requests its maximum, and may need one less."""
        mask = None if self.mask is None else torch.from_numpy(np.array(self.mask[:, :count]))
        made = None if self.made is None else self.made.received()
        return Negatives(torch.from_numpy(np.array(self.entities[:, :count], dtype=np.int64)), mask, made)

    def fault(self, queries: int, count: int, entities: int) -> str | None:
        """Describe the first difference from a valid reply to a request (shapes, dtypes, entity ids, finite numbers);
        None if it is valid."""
        shape = queries, count
        fault = _fault_of_ids(self.entities, shape, entities)
        if fault is None and self.mask is not None:
            fault = _fault_of(self.mask, shape, "b", "mask")
        return fault or (None if self.made is None else self.made.fault(queries, entities))


@dataclass(frozen=True)
class SentMade:
    """``GeneratedNegatives`` as NumPy arrays."""

    entities: np.ndarray | None
    vectors: np.ndarray | None
    mask: np.ndarray
    band: np.ndarray
    growth: np.ndarray
    weight: float

    @classmethod
    def of(cls, made: GeneratedNegatives) -> SentMade:
        entities = None if made.entities is None else _as_sent(made.entities)
        vectors = None if made.vectors is None else made.vectors.numpy()
        mask, band, growth = (part.numpy() for part in (made.mask, made.band, made.growth))
        return cls(entities, vectors, mask, band, growth, made.weight)

    def received(self) -> GeneratedNegatives:
        entities = None if self.entities is None else torch.from_numpy(np.array(self.entities, dtype=np.int64))
        vectors = None if self.vectors is None else torch.from_numpy(np.array(self.vectors))
        parts = (self.mask, self.band, self.growth)
        mask, band, growth = (torch.from_numpy(np.array(part)) for part in parts)
        return GeneratedNegatives(entities, vectors, mask, band, growth, self.weight)

    def fault(self, queries: int, entities: int) -> str | None:
        """Describe the first difference from valid negatives of so many queries; None if they are valid."""
        width = self.mask.shape[-1] if isinstance(self.mask, np.ndarray) and self.mask.ndim else 0
        shape = queries, width
        fault = (
            _fault_of(self.growth, (queries,), "f", "made.growth")
            or _fault_of(self.band, (queries,), "iu", "made.band")
            or _fault_of(self.mask, shape, "b", "made.mask")
            or (None if np.isfinite(self.weight) else "made.weight is not finite")
        )
        if fault is not None:
            return fault
        if self.entities is not None:
            return _fault_of_ids(self.entities, shape, entities)
        vectors = self.vectors
        size = vectors.shape[-1] if isinstance(vectors, np.ndarray) and vectors.ndim else 0
        return _fault_of(vectors, (*shape, size), "f", "made.vectors")


def _as_sent(entities: torch.Tensor) -> np.ndarray:
    """Return integer ids as int32, half the bytes, if they fit; other values stay, for ``fault`` to report."""
    ids = entities.numpy()
    if ids.dtype.kind not in "iu":
        return ids
    narrow = ids.astype(np.int32)
    return narrow if np.array_equal(narrow, ids) else ids


KINDS = {"b": "booleans", "f": "floats", "iu": "integers"}


def _fault_of(values: object, shape: tuple[int, ...], kind: str, name: str) -> str | None:
    """Describe why values are not an array of this shape and kind, with finite floats; None if they are."""
    if not isinstance(values, np.ndarray):
        return f"{name} is a {type(values).__name__}, where an array was expected"
    if values.shape != shape:
        return f"{name} has the shape {values.shape}, where {shape} was requested"
    if values.dtype.kind not in kind:
        return f"{name} holds {values.dtype}, where {KINDS[kind]} were expected"
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return f"{name} holds NaN or infinite numbers"
    return None


def _fault_of_ids(values: object, shape: tuple[int, ...], entities: int) -> str | None:
    """Describe why values are not an array of entity ids of this shape; None if they are."""
    fault = _fault_of(values, shape, "iu", "entities")
    if fault is not None or not isinstance(values, np.ndarray) or not values.size:
        return fault
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= entities:
        return f"entities holds {low if low < 0 else high}, where the graph has the entities 0 to {entities - 1}"
    return None
