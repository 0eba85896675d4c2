"""Messages between relations that meet in an entity, as TRIX passes them: distkg beside an edge for every pair.

Both are one way of meeting, in which no relation meets itself, on the facts of a graph as they are, and with hubs:
twenty entities that have every relation. The peer is distkg's own pass over typed edges, with an edge of 12 bytes for
every two relations of an entity.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Figures, begin, finish, graph_settings
from benchmarks.processes import alone
from distkg.data.store.graph_store import Store
from distkg.foundation.models import KnowledgeGraph
from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.incidence import Incidence, propagate_meetings
from distkg.kernels.message_passing.sums import propagate

HUBS, BATCH_SIZE, WIDTH, PASSES = 20, 4, 32, 5
OURS, PAIRS = "distkg", "an edge for every pair"
Layer = Callable[[Tensor, Tensor], Tensor]


def with_hubs(graph: KnowledgeGraph, hubs: int) -> KnowledgeGraph:
    """The graph with facts of every relation at its first ``hubs`` entities."""
    head, relation = np.divmod(np.arange(min(hubs, graph.entities) * graph.relations), graph.relations)
    tail = np.random.default_rng(0).integers(0, graph.entities, len(head))
    facts = torch.from_numpy(np.stack([head, relation, tail], axis=1))
    return KnowledgeGraph(torch.cat([graph.triples, facts]), graph.entities, graph.relations)


def pairs_of(incidence: Incidence) -> Edges:
    """An edge for every two different relations of an entity; its kind is the entity."""
    offsets, own = incidence.offsets.numpy(), incidence.relation.numpy()
    counts = np.diff(offsets)
    entity = np.repeat(np.arange(len(counts)), counts)
    row = np.repeat(own, counts[entity])
    first = np.repeat(offsets[entity], counts[entity])
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts[entity]) - counts[entity], counts[entity])
    column, kind = own[first + place], np.repeat(entity, counts[entity])
    to, by, of = (torch.from_numpy(side[row != column]) for side in (row, kind, column))
    return Edges.of(to, by, of, incidence.relations, len(counts))


def layer_of(name: str, graph: KnowledgeGraph) -> tuple[Layer, int]:
    """The layer of a row, and the bytes of what it reads of the graph."""
    incidence = graph.meetings_in_entities()
    if name == OURS:
        return (
            lambda states, factors: propagate_meetings(states, factors, incidence, with_itself=False),
            incidence.offsets.nbytes + incidence.relation.nbytes,
        )
    edges = pairs_of(incidence)
    sides = edges.offsets, edges.dst, edges.src, edges.relation
    return lambda states, factors: propagate(states, factors, edges), sum(side.nbytes for side in sides)


def measure(address: str, name: str, hubs: int, quick: bool) -> dict[str, float]:
    """Forward, and forward and backward, of one layer, in a process of its own."""
    graph = with_hubs(KnowledgeGraph.of_store(Store.open(address)), hubs)
    layer, size = layer_of(name, graph)
    states = torch.randn(BATCH_SIZE, 2 * graph.relations, WIDTH, requires_grad=True)
    factors = torch.randn(BATCH_SIZE, graph.entities, WIDTH, requires_grad=True)

    def forward() -> None:
        with torch.no_grad():
            layer(states, factors)

    def both() -> None:
        layer(states, factors).sum().backward()

    columns = {}
    for column, run in (("forward ms/query", forward), ("forward and backward ms/query", both)):
        seconds = []
        for _ in range(1 + (1 if quick else PASSES)):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        columns[column] = 1e3 * min(seconds[1:]) / BATCH_SIZE
    return {**columns, "graph MB": size / 1e6}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Both forms on the graph as it is and with hubs."""
    session = begin(__file__, str(__doc__), arguments, "store", repetitions=1)
    figures, store = Figures(), Store.open(session.store)
    for _ in session.repetitions:
        for graph, hubs in (("as it is", 0), (f"{HUBS} hubs", HUBS)):
            for name in (OURS, PAIRS):
                done = alone(measure, session.store, name, hubs, session.quick)
                figures.add(f"{name}, {graph}", {**done.value, "peak MB": done.peak_mb})
    settings = {
        "batch_size": BATCH_SIZE,
        "width": WIDTH,
        "hubs": HUBS,
        "passes": PASSES,
        "threads": torch.get_num_threads(),
        "graph": graph_settings(store),
    }
    return finish(session, settings, figures)


if __name__ == "__main__":
    main()
