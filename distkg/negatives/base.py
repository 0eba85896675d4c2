"""Base class and registry of negative sources, which draw wrong answers for queries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from distkg.config import PoolConfig, StrictModel, parse_options
from distkg.negatives.model_view import ModelView
from distkg.negatives.prefetch.pool_client import Arrays, Pool, PoolClient
from distkg.negatives.training_graph import TrainingGraph
from distkg.randomness import GeneratorNumbers, RandomNumbers
from distkg.registry import Registry

SOURCES: Registry[type[NegativeSource]] = Registry("negative source", "distkg.negative_sources")


Requires = Literal["nothing", "queries", "answers", "both", "relations"]
HostedReply = Literal["negatives", "similarities"]
HostedPrecision = Literal["float32", "float16"]


class SourceError(ValueError):
    """Error of a source whose requirements the graph does not meet; the message says what is missing, and where to
    get it."""


class SourceOptions(StrictModel):
    """Base class of the validated options of a source, ``negatives.options`` in the configuration."""


@dataclass(frozen=True)
class Queries:
    """Queries (anchor, relation, ?) with their answers: int64 [b] each, relation in [0, 2R)."""

    anchor: Tensor
    relation: Tensor
    answer: Tensor

    def __len__(self) -> int:
        return len(self.anchor)

    def __getitem__(self, which: slice | Tensor) -> Queries:
        return Queries(self.anchor[which], self.relation[which], self.answer[which])

    def cpu(self) -> Queries:
        """Return the queries in host memory."""
        return Queries(self.anchor.cpu(), self.relation.cpu(), self.answer.cpu())


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a training run.

    Attributes:
        epochs: number of completed epochs, with the fraction of the current one.
        progress: completed share of all epochs, or used share of the time limit, whichever is larger, in [0, 1].
        step: number of completed steps over all epochs.
    """

    epochs: float = 0.0
    progress: float = 0.0
    step: int = 0


@dataclass(frozen=True)
class DrawRequest:
    """Request for a later draw.

    Attributes:
        moment: training progress at the draw.
        queries: queries to draw for.
        count: maximum number of negatives for each query.
        seed: random seed of negatives that are drawn before ``draw`` is called.
    """

    moment: TrainingProgress
    queries: Queries
    count: int
    seed: int


@dataclass(frozen=True)
class GeneratedNegatives:
    """Negatives generated for each query in addition to the drawn ones, as vectors or as the entities nearest to them.

    Attributes:
        entities: int64 [b, M]; None if the negatives are vectors.
        vectors: float32 [b, M, C], candidate vectors; None if the negatives are entities.
        mask: bool [b, M], True where there is no negative.
        band: int64 [b], hardness band, 0 the hardest.
        growth: float32 [b], factor of the objective's margin.
        weight: weight of their loss, relative to 1 for drawn negatives.
    """

    entities: Tensor | None
    vectors: Tensor | None
    mask: Tensor
    band: Tensor
    growth: Tensor
    weight: float

    def first(self, count: int) -> GeneratedNegatives:
        """Return a copy of those of the first ``count`` queries."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        copies: dict[str, Any] = {
            name: value[:count].clone() for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **copies)

    def at_places(self, places: Tensor) -> GeneratedNegatives:
        """Return them with ``places`` instead of the entities."""
        return replace(self, entities=None if self.entities is None else places.view(self.entities.shape))


@dataclass(frozen=True)
class Negatives:
    """Negatives of a batch of queries.

    Attributes:
        entities: int64 [rows, K].
        mask: bool [rows, K], True where there is no negative; None if all are negatives.
        made: generated negatives of each query; None if there are none.
    """

    entities: Tensor
    mask: Tensor | None = None
    made: GeneratedNegatives | None = None

    def cpu(self) -> Negatives:
        """Return the drawn negatives in host memory; generated ones stay where they are."""
        return replace(self, entities=self.entities.cpu(), mask=None if self.mask is None else self.mask.cpu())

    def first(self, count: int) -> Negatives:
        """Return a copy of the negatives of the first ``count`` queries."""
        made = None if self.made is None else self.made.first(count)
        mask = None if self.mask is None else self.mask[:count].clone()
        return Negatives(self.entities[:count].clone(), mask, made)


@dataclass(frozen=True)
class RunSizes:
    """Sizes of a run on which the memory of a source depends.

    Attributes:
        queries: number of training queries over all workers.
        entities: number of entities.
        width: number of values of an entity vector.
        workers: number of workers.
        drawn: number of queries of one draw, which is a step of one worker.
        together: number of queries of the draws that are collective, those of all ranks of the model.
    """

    queries: int
    entities: int
    width: int
    workers: int
    drawn: int
    together: int


class NegativeSource(ABC):
    """Base class of samplers of entities to be ranked below the answer.

    Attributes:
        needs: parts of the graph that the source reads, in words for users.
        requires: side of the query whose model vectors the source reads, in addition to those of all entities.
        hosted_reply: reply of an actor that hosts the source: ``negatives``, for each draw, or a table of the
            ``similarities`` of relations, by which workers draw for many steps (``connect``).
        hosted_precision: precision of the entity vectors that workers publish to the actors, which hold them in Ray's
            object store: float16 for a source that only compares them. With ``negatives.pool.sync`` it is float32, so
            that draws are those of a run without actors.
        generates: whether its negatives have a ``made`` part.
        hard_first: whether hard negatives come first, and random ones after them (``hard`` says how many).
        looks_at_queries: whether draws depend on the query. If not, queries may share negatives, which is faster.
    """

    Options: ClassVar[type[SourceOptions]] = SourceOptions
    needs: ClassVar[str] = "training triples"
    requires: ClassVar[Requires] = "nothing"
    hosted_reply: ClassVar[HostedReply] = "negatives"
    hosted_precision: ClassVar[HostedPrecision] = "float32"
    generates: bool = False
    hard_first: ClassVar[bool] = False

    @classmethod
    def memory(cls, options: SourceOptions, sizes: RunSizes) -> int:
        """Return the maximum memory of a worker in bytes, beyond the training triples."""
        return 0

    @classmethod
    def generated_bytes(cls, options: SourceOptions, width: int) -> int:
        """Return the bytes of the generated negatives of a query in a reply, for entity vectors of ``width``."""
        return 0

    @classmethod
    def depends_on_query(cls, options: SourceOptions) -> bool:
        """Return whether draws depend on the query."""
        return True

    @classmethod
    def draws_on_tensors(cls, options: SourceOptions) -> bool:
        """Return whether a source with these options can draw on any device (``on_tensors``)."""
        return False

    @classmethod  # noqa: B027  most sources need only triples
    def check(cls, graph: TrainingGraph, options: SourceOptions) -> None:
        """Refuse a graph that the source cannot draw from, or contradictory options, without reading triples.

        Raises:
            SourceError: the graph lacks what the source needs.
        """

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        """Create the source on a training graph.

        Raises:
            SourceError: as ``check``.
        """
        self.check(graph, options)
        self.graph = graph
        self.entities = graph.entities
        self.looks_at_queries = self.depends_on_query(options)

    @abstractmethod
    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        """Draw ``count`` negatives for each query; a source that does not depend on queries uses their number alone."""

    def draw_by(
        self, similarity: Callable[[], Tensor], queries: Queries, count: int, generator: torch.Generator
    ) -> Negatives:
        """Draw negatives as ``draw`` does, with the caller's similarities of relations.

        Args:
            similarity: function that returns the similarity of all relations to each query's, float32 [b, R]; called
                only by sources that ``requires`` relations.
        """
        return self.draw(queries, count, generator)

    def hard(self, count: int) -> int:
        """Return how many of ``count`` negatives are hard at the current training progress; they come first."""
        return count

    def take_rejections(self) -> tuple[int, int]:
        """Return the numbers of hard negatives and of redrawn ones, which were known answers, since the last call."""
        return 0, 0

    def connect(  # noqa: B027  most hosted sources draw in the pool
        self, pool: Pool[Any, Any], how: PoolConfig, parameters: Callable[[], Arrays] | None = None
    ) -> None:
        """Connect a source with the reply ``similarities`` to the pool that computes its tables.

        Args:
            parameters: function that returns the weights with which the pool compares relations; default: the relation
                vectors of the attached model.
        """

    def request(self, moment: TrainingProgress) -> None:  # noqa: B027  most sources send requests in ``prefetch``
        """Request the table that is due at this training progress, without waiting; with ``negatives.pool.sync``,
        ``advance`` waits for it."""

    def pool_clients(self) -> Sequence[PoolClient[Any, Any]]:
        """Return the pool clients of the source and its parts, which hold statistics of replies."""
        return ()

    def parts(self) -> Sequence[NegativeSource]:
        """Return the sources of a mixture and of nested mixtures; for another source, the source itself."""
        return [self]

    def attach(self, model: ModelView) -> None:  # noqa: B027  most sources do not read a model
        """Set the model whose vectors draws may read; draws are then collective among its ranks."""

    def advance(self, moment: TrainingProgress) -> None:  # noqa: B027  most sources do not depend on it
        """Set the training progress; called before draws."""

    def restrict(self, ranges: np.ndarray | None) -> None:  # noqa: B027  most sources have entities of their own
        """Announce that training has only these ranges of entities, int64 [n, 2], in memory, or all; called before
        draws. A source that draws from all entities then draws from these."""

    def prefetch(self, coming: Sequence[DrawRequest]) -> None:  # noqa: B027  most sources draw in the step
        """Announce later draws, in the order of steps."""

    def weights(self) -> dict[str, Tensor]:
        """Return the learned parameters of the source, float32; empty if it learns nothing."""
        return {}

    def blend(self, weights: Mapping[str, Tensor]) -> None:
        """Set the parameters to the mean of its own ``weights`` and those of another source of its kind."""
        with torch.no_grad():
            for name, own in self.weights().items():
                own.lerp_(weights[name].to(own), 0.5)

    def on_tensors(self) -> TensorSource | None:
        """Return the source if it can draw on any device; None if it draws on the host."""
        return None

    def pool_sizes(self, queries: Queries) -> Tensor:
        """Return the number of distinct entities from which each query's negatives are drawn: int64 [b]."""
        return torch.full((len(queries),), self.entities)


class TensorSource(NegativeSource):
    """Base class of sources whose draws are operations on tensors, so that they run on any device."""

    @abstractmethod
    def draw_on(self, queries: Queries, count: int, numbers: RandomNumbers) -> Negatives:
        """Draw as ``draw`` does, on the device of the queries and of the random numbers, without a wait for it."""

    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        return self.draw_on(queries, count, GeneratorNumbers(generator))

    @classmethod
    def draws_on_tensors(cls, options: SourceOptions) -> bool:
        return True

    def on_tensors(self) -> TensorSource | None:
        return self


def make_source(name: str, options: Mapping[str, Any], graph: TrainingGraph) -> NegativeSource:
    """Create a negative source by name.

    Raises:
        UnknownNameError: there is no source of that name.
        ConfigError: wrong options.
        SourceError: the graph lacks what the source needs.
    """
    return SOURCES[name](graph, parse_source_options(name, options))


def check_source(name: str, options: Mapping[str, Any], graph: TrainingGraph) -> None:
    """Run ``NegativeSource.check`` of the named source; raises as ``make_source``."""
    SOURCES[name].check(graph, parse_source_options(name, options))


def parse_source_options(name: str, options: Mapping[str, Any]) -> SourceOptions:
    """Validate the options of the named source.

    Raises:
        UnknownNameError: there is no source of that name.
        ConfigError: wrong options.
    """
    return parse_options(SOURCES[name].Options, options, "negatives.options", name)


def source_memory(name: str, options: Mapping[str, Any], sizes: RunSizes) -> int:
    """Return ``NegativeSource.memory`` of the named source; raises as ``make_source``."""
    return SOURCES[name].memory(parse_source_options(name, options), sizes)


def generated_bytes(name: str, options: Mapping[str, Any], width: int) -> int:
    """Return ``NegativeSource.generated_bytes`` of the named source; raises as ``make_source``."""
    return SOURCES[name].generated_bytes(parse_source_options(name, options), width)


def depends_on_query(name: str, options: Mapping[str, Any]) -> bool:
    """Return whether draws of the named source depend on the query; raises as ``make_source``."""
    return SOURCES[name].depends_on_query(parse_source_options(name, options))


def draws_on_tensors(name: str, options: Mapping[str, Any]) -> bool:
    """Return ``NegativeSource.draws_on_tensors`` of the named source; raises as ``make_source``."""
    return SOURCES[name].draws_on_tensors(parse_source_options(name, options))
