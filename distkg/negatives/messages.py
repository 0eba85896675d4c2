"""What a worker and those who draw for it say to each other: requests, and replies that are not taken on trust."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distkg.negatives.base import Coming, Made, Moment, Negatives


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
    moment: Moment
    query_vectors: NDArray[np.float32] | None
    answer_vectors: NDArray[np.float32] | None
    version: int

    @classmethod
    def of(
        cls,
        coming: Coming,
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
        left_out: bool [b, K], where there is none in truth; None where all are meant.
        version: step of the vectors that were looked at; that of the request where none were.
        made: negatives made besides; None where the source makes none.
    """

    entities: np.ndarray
    left_out: np.ndarray | None
    version: int
    made: SentMade | None = None

    @classmethod
    def of(cls, drawn: Negatives, version: int) -> Reply:
        """Of negatives as the source has drawn them."""
        left_out = None if drawn.left_out is None else drawn.left_out.numpy()
        made = None if drawn.made is None else SentMade.of(drawn.made)
        return cls(drawn.entities.numpy().astype(np.int32), left_out, version, made)

    def negatives(self, count: int) -> Negatives:
        """The first ``count`` of each query: a mixture asks for as many as it can need, and needs one less at times."""
        left_out = None if self.left_out is None else torch.from_numpy(np.array(self.left_out[:, :count]))
        made = None if self.made is None else self.made.received()
        return Negatives(torch.from_numpy(np.array(self.entities[:, :count], dtype=np.int64)), left_out, made)

    def sound(self, queries: int, count: int, entities: int) -> bool:
        """Whether it is what was asked for: shapes, types, entities that exist, numbers that are finite."""
        shape = queries, count
        marked = self.left_out is None or _are(self.left_out, shape, "b")
        return (
            marked
            and _name(self.entities, shape, entities)
            and (self.made is None or self.made.sound(queries, entities))
        )


@dataclass(frozen=True)
class SentMade:
    """``Made`` as arrays."""

    entities: np.ndarray | None
    vectors: np.ndarray | None
    left_out: np.ndarray
    band: np.ndarray
    growth: np.ndarray
    weight: float

    @classmethod
    def of(cls, made: Made) -> SentMade:
        entities = None if made.entities is None else made.entities.numpy().astype(np.int32)
        vectors = None if made.vectors is None else made.vectors.numpy()
        left_out, band, growth = (part.numpy() for part in (made.left_out, made.band, made.growth))
        return cls(entities, vectors, left_out, band, growth, made.weight)

    def received(self) -> Made:
        entities = None if self.entities is None else torch.from_numpy(np.array(self.entities, dtype=np.int64))
        vectors = None if self.vectors is None else torch.from_numpy(np.array(self.vectors))
        parts = (self.left_out, self.band, self.growth)
        left_out, band, growth = (torch.from_numpy(np.array(part)) for part in parts)
        return Made(entities, vectors, left_out, band, growth, self.weight)

    def sound(self, queries: int, entities: int) -> bool:
        """As ``Reply.sound``."""
        each = _are(self.growth, (queries,), "f") and _are(self.band, (queries,), "iu")
        if not each or not isinstance(self.left_out, np.ndarray):
            return False
        shape = self.left_out.shape
        if len(shape) != 2 or not _are(self.left_out, (queries, shape[1]), "b"):
            return False
        if self.entities is not None:
            return _name(self.entities, shape, entities)
        vectors = self.vectors
        return isinstance(vectors, np.ndarray) and _are(vectors, (*shape, vectors.shape[-1]), "f")


def _are(values: object, shape: tuple[int, ...], kind: str) -> bool:
    """Whether values are an array of this shape and kind of number, finite where they are floats."""
    if not isinstance(values, np.ndarray) or values.shape != shape or values.dtype.kind not in kind:
        return False
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _name(values: object, shape: tuple[int, ...], entities: int) -> bool:
    """Whether values are an array of entities of this shape."""
    if not isinstance(values, np.ndarray) or not _are(values, shape, "iu"):
        return False
    return not values.size or (int(values.min()) >= 0 and int(values.max()) < entities)
