"""What a negative source is: a class that names wrong answers for queries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from distkg.config import PoolConfig, StrictModel, parse_options
from distkg.negatives.model_view import ModelView
from distkg.negatives.prefetch.pool_client import Arrays, Pool, PoolClient
from distkg.negatives.training_graph import TrainingGraph
from distkg.registry import Registry

SOURCES: Registry[type[NegativeSource]] = Registry("negative source", "distkg.negative_sources")


Requires = Literal["nothing", "queries", "answers", "both", "relations"]
HostedReply = Literal["negatives", "similarities"]


class SourceError(ValueError):
    """A source lacks what it needs of the graph; the message says what, and where to get it."""


class SourceOptions(StrictModel):
    """A source's own options, validated; ``negatives.options`` in the configuration."""


@dataclass(frozen=True)
class Queries:
    """Queries (anchor, relation, ?) and the answers beside which negatives stand: int64 [b], relation in [0, 2R)."""

    anchor: Tensor
    relation: Tensor
    answer: Tensor

    def __len__(self) -> int:
        return len(self.anchor)

    def __getitem__(self, which: slice | Tensor) -> Queries:
        return Queries(self.anchor[which], self.relation[which], self.answer[which])


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is.

    Attributes:
        epochs: epochs done, with the part of the current one.
        progress: share of all epochs that is done or of the time limit that is gone, whichever is more, in [0, 1].
        step: steps done, over all epochs.
    """

    epochs: float = 0.0
    progress: float = 0.0
    step: int = 0


@dataclass(frozen=True)
class DrawRequest:
    """A draw to come.

    Attributes:
        moment: when.
        queries: for which.
        count: negatives for each of them, at most.
        seed: decides them, where they are drawn before ``draw`` asks for them.
    """

    moment: TrainingProgress
    queries: Queries
    count: int
    seed: int


@dataclass(frozen=True)
class GeneratedNegatives:
    """Wrong answers that were made for each query, beside those drawn, as vectors or as the entities nearest to them.

    Attributes:
        entities: int64 [b, M]; None where they are vectors.
        vectors: float32 [b, M, C], candidate vectors; None where they are entities.
        mask: bool [b, M], True where there is none in truth.
        band: int64 [b], of hardness, 0 the hardest.
        growth: float32 [b], factor of the objective's margin.
        weight: of their loss, beside 1 for those drawn.
    """

    entities: Tensor | None
    vectors: Tensor | None
    mask: Tensor
    band: Tensor
    growth: Tensor
    weight: float

    def at_places(self, places: Tensor, device: torch.device) -> GeneratedNegatives:
        """On a device, with ``places`` instead of entities where it has entities."""
        return GeneratedNegatives(
            entities=None if self.entities is None else places.view(self.entities.shape).to(device),
            vectors=None if self.vectors is None else self.vectors.to(device),
            mask=self.mask.to(device),
            band=self.band.to(device),
            growth=self.growth.to(device),
            weight=self.weight,
        )


@dataclass(frozen=True)
class Negatives:
    """Wrong answers.

    Attributes:
        entities: int64 [rows, K].
        mask: bool [rows, K], True where there is no negative in truth; None where all are meant.
        made: more of them, made for each query; None where there are none.
    """

    entities: Tensor
    mask: Tensor | None = None
    made: GeneratedNegatives | None = None

    def first(self, count: int) -> Negatives:
        """Those of the first ``count`` queries."""
        mask = None if self.mask is None else self.mask[:count]
        made = self.made
        if made is not None:
            parts = (made.mask[:count], made.band[:count], made.growth[:count])
            entities, vectors = (None if part is None else part[:count] for part in (made.entities, made.vectors))
            made = GeneratedNegatives(entities, vectors, *parts, made.weight)
        return Negatives(self.entities[:count], mask, made)


class NegativeSource(ABC):
    """Draws entities to be ranked below the answer.

    Attributes:
        needs: what of the graph the source reads, for people.
        requires: whose vectors in a model the source looks at, besides those of all entities.
        hosted_reply: what an actor that hosts the source replies: its ``negatives``, a reply for each draw; or a table
            of the ``similarities`` of relations, by which workers draw for many steps (``connect``).
        generates: whether its negatives have a ``made`` part.
        hard_first: whether hard negatives come first, and random ones after them (``hard`` says how many).
        looks_at_queries: whether draws depend on the query. If not, queries may share their negatives, which is fast.
    """

    Options: ClassVar[type[SourceOptions]] = SourceOptions
    needs: ClassVar[str] = "training triples"
    requires: ClassVar[Requires] = "nothing"
    hosted_reply: ClassVar[HostedReply] = "negatives"
    generates: bool = False
    hard_first: ClassVar[bool] = False

    @classmethod
    def memory(cls, options: SourceOptions, queries: int, workers: int) -> int:
        """Bytes of a worker beyond the training triples, at most, for so many training queries over all workers."""
        return 0

    @classmethod
    def depends_on_query(cls, options: SourceOptions) -> bool:
        """Whether draws depend on the query."""
        return True

    @classmethod  # noqa: B027  most sources need only triples
    def check(cls, graph: TrainingGraph, options: SourceOptions) -> None:
        """Refuse a graph that cannot be drawn from, or options that contradict each other, without reading triples.

        Raises:
            SourceError: the graph lacks what the source needs.
        """

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        """
        Raises:
            SourceError: as ``check``.
        """
        self.check(graph, options)
        self.graph = graph
        self.entities = graph.entities
        self.looks_at_queries = self.depends_on_query(options)

    @abstractmethod
    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        """``count`` negatives for each query; a source that does not look at queries uses their number alone."""

    def draw_by(
        self, similarity: Callable[[], Tensor], queries: Queries, count: int, generator: torch.Generator
    ) -> Negatives:
        """As ``draw``; a source that ``requires`` relations compares them by ``similarity()``, float32 [b, R], of all
        relations to the query's."""
        return self.draw(queries, count, generator)

    def hard(self, count: int) -> int:
        """How many of ``count`` negatives are hard at this moment; they come first."""
        return count

    def take_rejections(self) -> tuple[int, int]:
        """Hard negatives drawn since the last call, and how many of them were known answers, and so drawn again."""
        return 0, 0

    def connect(  # noqa: B027  most sources are drawn by a pool whole
        self, pool: Pool[Any, Any], how: PoolConfig, parameters: Callable[[], Arrays] | None = None
    ) -> None:
        """Ask a pool for the tables by which a source with the reply ``similarities`` draws.

        ``parameters()`` are what the pool compares relations by; by default the relation vectors of ``attach``'s model.
        """

    def request(self, moment: TrainingProgress) -> None:  # noqa: B027  most sources ask in ``prefetch``
        """Ask for the table that is due at this moment without waiting for it, which ``advance`` does in sync."""

    def pool_clients(self) -> Sequence[PoolClient[Any, Any]]:
        """Those by which the source and its parts ask a pool; they count what came of it."""
        return ()

    def parts(self) -> Sequence[NegativeSource]:
        """The sources of a mixture, and of mixtures in it; of another source itself."""
        return [self]

    def attach(self, model: ModelView) -> None:  # noqa: B027  most sources do not look at one
        """The model whose vectors draws may look at; draws are then collective among its ranks."""

    def advance(self, moment: TrainingProgress) -> None:  # noqa: B027  most sources do not care
        """Called before draws: how far the training is."""

    def prefetch(self, coming: Sequence[DrawRequest]) -> None:  # noqa: B027  most sources draw when asked
        """Announces later draws, in the order of steps."""

    def weights(self) -> dict[str, Tensor]:
        """What the source has learned, float32; empty where it learns nothing."""
        return {}

    def blend(self, weights: Mapping[str, Tensor]) -> None:
        """Take the mean of its own ``weights`` and those of another source of its kind."""
        with torch.no_grad():
            for name, own in self.weights().items():
                own.lerp_(weights[name].to(own), 0.5)

    def pool_sizes(self, queries: Queries) -> Tensor:
        """How many different entities a query's negatives are drawn from: int64 [b]."""
        return torch.full((len(queries),), self.entities)


def make_source(name: str, options: Mapping[str, Any], graph: TrainingGraph) -> NegativeSource:
    """The source of that name.

    Raises:
        UnknownNameError: there is none.
        ConfigError: wrong options.
        SourceError: the graph lacks what the source needs.
    """
    return SOURCES[name](graph, parse_source_options(name, options))


def check_source(name: str, options: Mapping[str, Any], graph: TrainingGraph) -> None:
    """``NegativeSource.check`` of that source; raises as ``make_source``."""
    SOURCES[name].check(graph, parse_source_options(name, options))


def parse_source_options(name: str, options: Mapping[str, Any]) -> SourceOptions:
    """Options of that source.

    Raises:
        UnknownNameError: there is none.
        ConfigError: wrong options.
    """
    return parse_options(SOURCES[name].Options, options, "negatives.options", name)


def source_memory(name: str, options: Mapping[str, Any], queries: int, workers: int) -> int:
    """``NegativeSource.memory`` of that source; raises as ``make_source``."""
    return SOURCES[name].memory(parse_source_options(name, options), queries, workers)


def depends_on_query(name: str, options: Mapping[str, Any]) -> bool:
    """Whether that source looks at queries, so that they cannot share negatives; raises as ``make_source``."""
    return SOURCES[name].depends_on_query(parse_source_options(name, options))
