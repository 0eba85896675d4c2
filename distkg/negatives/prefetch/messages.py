"""What a worker and those who draw for it say to each other: requests, and replies that are not taken on trust."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distkg.negatives.base import DrawRequest, GeneratedNegatives, Negatives, TrainingProgress


@dataclass(frozen=True)
class Request:
    """What is asked of a pool; it carries all that is needed, so that who draws holds no part of the model.

    Attributes:
        number: of the step, over all epochs.
        rank: of the worker that asks.
        queries: int64 [b, 3], anchor, relation in [0, 2R), answer.
        count: negatives per query, at most.
        seed: decides the draw.
        moment: how far the training is.
        query_vectors: float32 [b, Q], where the source asks for them.
        answer_vectors: float32 [b, C], candidate vectors of the answers, where the source asks for them.
        version: step of the latest published vectors; -1 where none were.
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
        """For a draw to come."""
        asked, moment = coming.queries, coming.moment
        queries = torch.stack([asked.anchor, asked.relation, asked.answer], dim=1).numpy()
        of_draw = coming.count, coming.seed, moment
        return cls(moment.step, rank, queries, *of_draw, query_vectors, answer_vectors, version)


@dataclass(frozen=True)
class Reply:
    """What a pool gives back.

    Attributes:
        entities: integer [b, K].
        mask: bool [b, K], where there is none in truth; None where all are meant.
        version: step of the vectors that were looked at; that of the request where none were.
        made: negatives made besides; None where the source makes none.
    """

    entities: np.ndarray
    mask: np.ndarray | None
    version: int
    made: SentMade | None = None

    @classmethod
    def of(cls, drawn: Negatives, version: int) -> Reply:
        """Of negatives as the source has drawn them."""
        mask = None if drawn.mask is None else drawn.mask.numpy()
        made = None if drawn.made is None else SentMade.of(drawn.made)
        return cls(_as_sent(drawn.entities), mask, version, made)

    def negatives(self, count: int) -> Negatives:
        """The first ``count`` of each query: a mixture asks for as many as it can need, and needs one less at times."""
        mask = None if self.mask is None else torch.from_numpy(np.array(self.mask[:, :count]))
        made = None if self.made is None else self.made.received()
        return Negatives(torch.from_numpy(np.array(self.entities[:, :count], dtype=np.int64)), mask, made)

    def fault(self, queries: int, count: int, entities: int) -> str | None:
        """How it differs from what was asked for: shapes, types, entities that exist, numbers that are finite; None
        where it does not."""
        shape = queries, count
        found = _fault_of_ids(self.entities, shape, entities)
        if found is None and self.mask is not None:
            found = _fault_of(self.mask, shape, "b", "mask")
        return found or (None if self.made is None else self.made.fault(queries, entities))


@dataclass(frozen=True)
class SentMade:
    """``GeneratedNegatives`` as arrays."""

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
        """As ``Reply.fault``."""
        width = self.mask.shape[-1] if isinstance(self.mask, np.ndarray) and self.mask.ndim else 0
        shape = queries, width
        found = (
            _fault_of(self.growth, (queries,), "f", "made.growth")
            or _fault_of(self.band, (queries,), "iu", "made.band")
            or _fault_of(self.mask, shape, "b", "made.mask")
            or (None if np.isfinite(self.weight) else "made.weight is not finite")
        )
        if found is not None:
            return found
        if self.entities is not None:
            return _fault_of_ids(self.entities, shape, entities)
        vectors = self.vectors
        size = vectors.shape[-1] if isinstance(vectors, np.ndarray) and vectors.ndim else 0
        return _fault_of(vectors, (*shape, size), "f", "made.vectors")


def _as_sent(entities: torch.Tensor) -> np.ndarray:
    """As int32, half the bytes, where nothing is lost; others stay, so that ``fault`` sees them."""
    ids = entities.numpy()
    if ids.dtype.kind not in "iu":
        return ids
    narrow = ids.astype(np.int32)
    return narrow if np.array_equal(narrow, ids) else ids


KINDS = {"b": "booleans", "f": "floats", "iu": "integers"}


def _fault_of(values: object, shape: tuple[int, ...], kind: str, name: str) -> str | None:
    """Why values are no array of this shape and kind of number, finite where they are floats; None where they are."""
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
    """Why values are no array of entities of this shape; None where they are."""
    found = _fault_of(values, shape, "iu", "entities")
    if found is not None or not isinstance(values, np.ndarray) or not values.size:
        return found
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= entities:
        return f"entities holds {low if low < 0 else high}, where the graph has the entities 0 to {entities - 1}"
    return None
