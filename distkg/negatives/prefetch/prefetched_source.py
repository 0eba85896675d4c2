"""Prefetching of negatives from a pool: they are requested some steps before they are needed.

If a reply is late, too old or broken, the step draws its negatives itself and counts them, so a step never waits longer
than ``timeout`` and never uses invalid negatives. A source that raises, or that returns something other than was
requested, ends the run, or is a warning and a count with ``on_error: fallback``. This module does not depend on Ray:
``distkg.cluster`` implements the pool with actors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distkg.config import PoolConfig
from distkg.negatives.base import (
    SOURCES,
    DrawRequest,
    Negatives,
    NegativeSource,
    Queries,
    TrainingProgress,
    depends_on_query,
    make_source,
    parse_source_options,
)
from distkg.negatives.mixture import Mixture, MixtureOptions, MixturePart
from distkg.negatives.model_view import ModelView
from distkg.negatives.prefetch.messages import Reply, Request
from distkg.negatives.prefetch.pool_client import CANDIDATES, RELATIONS, Pool, PoolClient, PoolOf
from distkg.negatives.prefetch.published_rows import half_precision
from distkg.negatives.training_graph import TrainingGraph

PUBLISH_EPOCHS = 1.0  # epochs between publications; fewer if the source's refresh is shorter


class PrefetchedSource(NegativeSource):
    """Source hosted by a pool, with a local fallback source for missing replies.

    Attributes:
        client: client of the pool.
    """

    def __init__(
        self, graph: TrainingGraph, name: str, options: Mapping[str, Any], pool: Pool[Request, Reply], how: PoolConfig
    ) -> None:
        """``name`` and ``options`` are those of the hosted source."""
        parsed = parse_source_options(name, options)
        super().__init__(graph, parsed)
        self._hosted = SOURCES[name]
        self.generates = self._hosted.generates
        self._local = make_source(how.fallback, {}, graph)
        self._pool, self._how = pool, how
        self.client: PoolClient[Request, Reply] = PoolClient(pool, how)
        self._model: ModelView | None = None
        self._publish_epochs = min(PUBLISH_EPOCHS, float(getattr(parsed, "refresh", PUBLISH_EPOCHS)))
        self._publish_steps = max(1, how.max_age - 2 * how.depth)
        self._now = TrainingProgress()
        self._asked: dict[int, int] = {}  # step → negatives per query
        self._latest = -1
        self._version, self._published = -1, -1.0

    def pool_clients(self) -> Sequence[PoolClient[Any, Any]]:
        return (self.client,)

    @classmethod
    def depends_on_query(cls, options: Any) -> bool:
        return True

    def attach(self, model: ModelView) -> None:
        self._model = model

    def advance(self, moment: TrainingProgress) -> None:
        self._now = moment
        self.client.heed_events()
        # A part of a mixture does not draw once its weight has fallen to 0, which a time limit may cause earlier than
        # announced.
        for step in [requested for requested in self._asked if requested < moment.step]:
            del self._asked[step]
            self._pool.forget(step)

    def prefetch(self, coming: Sequence[DrawRequest]) -> None:
        new = [each for each in coming if each.moment.step > self._latest]
        if not new:
            return
        self._latest = new[-1].moment.step
        self._publish(new[0].moment)
        new = new[: self._room()]
        if not new:
            return
        queries = [each.queries for each in new]
        vectors = zip(self._vectors("queries", queries), self._vectors("answers", queries), strict=True)
        requests = [
            Request.of(each, self._pool.rank, self._version, *vectors_of_step)
            for each, vectors_of_step in zip(new, vectors, strict=True)
        ]
        for request in requests[: self._pool.ask(requests)]:
            self._asked[request.number] = request.count

    def _room(self) -> int:
        """Return the maximum number of requests that any rank's pool would send, which bounds the vectors to fetch;
        collective."""
        if self._model is None or self._hosted.requires == "nothing" or self._model.ranks.size == 1:
            return self._pool.room()
        most = torch.tensor(self._pool.room())
        self._model.ranks.all_reduce(most, "max")
        return int(most)

    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        reply = self._delivered(queries)
        return self._local.draw(queries, count, generator) if reply is None else reply.negatives(count)

    def _delivered(self, queries: Queries) -> Reply | None:
        """Return the reply for this step, or None if it cannot be used; both are counted."""
        step, client = self._now.step, self.client
        if step not in self._asked:
            client.deliveries.add("refused", len(queries))
            return None
        count = self._asked.pop(step)
        reply = client.take(step)
        if reply is None or isinstance(reply, str):
            client.deliveries.add(reply or "late", len(queries))
            return None
        fault = reply.fault(len(queries), count, self.entities)
        if fault is not None:
            client.count_broken(f"the reply to the request of step {step} cannot be used: {fault}", len(queries))
            return None
        age = step - reply.version if self._version >= 0 else 0  # -1: the source reads no vectors
        return reply if client.count_reply(age, len(queries)) else None

    def _vectors(self, of: str, queries: Sequence[Queries]) -> Sequence[NDArray[np.float32] | None]:
        """Return the vectors of the ``queries`` or ``answers`` of each step, None if the source does not require them;
        collective."""
        model = self._model
        if model is None or self._hosted.requires not in (of, "both"):
            return [None] * len(queries)
        anchor, relation, answer = (torch.cat(column) for column in zip(*map(_columns, queries), strict=True))
        vectors = model.query(anchor, relation) if of == "queries" else model.candidates(answer)
        return [part.numpy() for part in vectors.cpu().split([len(each) for each in queries])]

    def _publish(self, moment: TrainingProgress) -> None:
        """Publish this rank's vectors if they are due, so that replies are not too old when they are used.

        The decision depends only on the training progress, so that all ranks publish their shards in the same step.
        """
        if self._hosted.requires == "nothing" or self._model is None:
            return
        never, steps = self._version < 0, self._now.step - self._version
        if not never and moment.epochs - self._published < self._publish_epochs and steps < self._publish_steps:
            return
        self._published, self._version = moment.epochs, self._now.step
        own = self._model.own_candidates()[:]
        half = self._hosted.hosted_precision == "float16" and not self._how.sync
        arrays: dict[str, NDArray[Any]] = {CANDIDATES: half_precision(own) if half else own.cpu().numpy()}
        if self._hosted.requires == "relations":
            arrays[RELATIONS] = self._model.relations().cpu().numpy()
        self._pool.publish(self._version, self._model.first, arrays, wait=self._how.sync)
        if self._how.sync:
            self._model.ranks.barrier()  # no rank sends requests before all shards have arrived


def _columns(queries: Queries) -> tuple[torch.Tensor, ...]:
    return queries.anchor, queries.relation, queries.answer


ONLY_SOURCE = "0"
"""Key of a hosted source that is not part of a mixture."""


def source_names(name: str, options: Mapping[str, Any]) -> list[str]:
    """Return the names of the sources of a mixture and of nested mixtures; for another source, its own name."""
    if name != "mixture":
        return [name]
    parsed = parse_source_options(name, options)
    assert isinstance(parsed, MixtureOptions)
    return [each for part in parsed.parts for each in source_names(part.source, part.options)]


def hosted_parts(
    name: str, options: Mapping[str, Any], key: str = ONLY_SOURCE
) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return the name and options of each source that a pool hosts, by key; of a mixture, the parts that depend on
    queries."""
    if name == "mixture":
        parsed = parse_source_options(name, options)
        assert isinstance(parsed, MixtureOptions)
        parts: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for place, part in enumerate(parsed.parts):
            parts |= hosted_parts(part.source, part.options, f"{key}.{place}")
        return parts
    return {key: (name, options)} if depends_on_query(name, options) else {}


def make_hosted_source(
    name: str,
    options: Mapping[str, Any],
    graph: TrainingGraph,
    pool_of: PoolOf,
    how: PoolConfig,
    key: str = ONLY_SOURCE,
) -> NegativeSource:
    """Create a source by name, whose parts that depend on queries draw in a pool; raises as ``make_source``."""
    if name == "mixture":
        parsed = parse_source_options(name, options)
        assert isinstance(parsed, MixtureOptions)

        def part(place: int, part: MixturePart) -> NegativeSource:
            return make_hosted_source(part.source, part.options, graph, pool_of, how, f"{key}.{place}")

        return Mixture(graph, parsed, part)
    if SOURCES[name].hosted_reply == "negatives" and depends_on_query(name, options):
        return PrefetchedSource(graph, name, options, pool_of(key), how)
    source = make_source(name, options, graph)
    if SOURCES[name].hosted_reply == "similarities":
        source.connect(pool_of(key), how)
    return source
