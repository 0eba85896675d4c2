"""Relational message passing: milliseconds of a layer beside gather and scatter, DGL and PyTorch Geometric.

DistMult messages, summed, on a graph's facts with their inverses; all peers get the same tensors and every core. The
bound is the time in which this machine, in the same minute, moves the state row of every edge once, and those of every
node in and out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import Figures, begin, finish, graph_settings, settings_of
from benchmarks.processes import alone
from benchmarks.rooflines import QUICK_SECONDS, SECONDS, around
from distkg.data.store import Store
from distkg.foundation import KnowledgeGraph
from distkg.graph.partition import import_dgl
from distkg.kernels.edges import Edges
from distkg.kernels.message_passing import propagate, reference_propagate
from distkg.sharding.ranks import Ranks

OURS = "distkg"
Layer = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Workload:
    batches: tuple[int, ...] = (8, 64)
    width: int = 64
    passes: int = 5
    largest_peer_bytes: int = 6 << 30
    roofline_seconds: float = SECONDS

    @classmethod
    def quick(cls) -> Workload:
        return cls(batches=(2,), width=8, passes=1, roofline_seconds=QUICK_SECONDS)


def layers(edges: Edges) -> dict[str, Layer]:
    """Row of the table → states [B, n, d] and relations [B, k, d] to gathered states."""
    weight = torch.ones(len(edges))
    found: dict[str, Layer] = {
        OURS: lambda states, relations: propagate(states, relations, edges, weight),
        "gather, multiply, index_add": lambda states, relations: reference_propagate(
            states, relations, edges, weight, "distmult"
        ),
    }
    return found | _dgl_layer(edges) | _geometric_layer(edges)


def _dgl_layer(edges: Edges) -> dict[str, Layer]:
    """``u_mul_e`` and ``sum`` on all queries at once, features of an edge being [B, d]."""
    dgl = import_dgl()
    graph = dgl.graph((edges.giver, edges.gatherer), num_nodes=edges.nodes)
    kind = edges.kind.long()

    def layer(states: Tensor, relations: Tensor) -> Tensor:
        said = relations.transpose(0, 1)[kind]
        with graph.local_scope():
            gathered: Tensor = dgl.ops.u_mul_e_sum(graph, states.transpose(0, 1).contiguous(), said.contiguous())
            return gathered.transpose(0, 1)

    return {"DGL u_mul_e_sum": layer}


def _geometric_layer(edges: Edges) -> dict[str, Layer]:
    """A ``MessagePassing`` module as its documentation writes one; left out where PyTorch Geometric is missing."""
    try:
        from torch_geometric.nn import MessagePassing
    except ImportError:
        return {}

    class Relational(MessagePassing):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__(aggr="sum", node_dim=1)

        def forward(self, states: Tensor, relations: Tensor) -> Tensor:
            index = torch.stack([edges.giver.long(), edges.gatherer.long()])
            found: Tensor = self.propagate(index, x=states, said=relations[:, edges.kind.long()])
            return found

        def message(self, x_j: Tensor, said: Tensor) -> Tensor:
            return x_j * said

    return {"PyTorch Geometric": Relational()}


def milliseconds(run: Callable[[], object], passes: int) -> float:
    """Of the fastest of so many passes, after one that is not counted."""
    run()
    best = float("inf")
    for _ in range(passes):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return 1000 * best


def measure(store: str, name: str, batch: int, work: Workload) -> dict[str, float]:
    """Forward, and forward and backward, of one layer, beside the machine's bandwidth; in a process of its own."""
    edges = KnowledgeGraph.of_store(Store.open(store)).facts
    layer = layers(edges)[name]
    states = torch.randn(batch, edges.nodes, work.width, requires_grad=True)
    relations = torch.randn(batch, edges.kinds, work.width, requires_grad=True)

    def forward() -> Tensor:
        with torch.no_grad():
            return layer(states, relations)

    def both() -> None:
        layer(states, relations).sum().backward()
        states.grad = relations.grad = None

    def timed() -> tuple[float, float]:
        return milliseconds(forward, work.passes), milliseconds(both, work.passes)

    machine, (there, there_and_back) = around(Ranks.single(), timed, work.roofline_seconds)
    bound = 1000 * 4 * batch * work.width * (len(edges) + 2 * edges.nodes) / machine.bandwidth
    return {
        "forward ms": there,
        "forward and backward ms": there_and_back,
        "× bandwidth, forward": there / bound,
        "bandwidth GB/s": machine.bandwidth / 1e9,
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every layer with every batch size; peers that would need more memory than they may are left out."""
    session = begin(__file__, str(__doc__), arguments, "store", repetitions=1)
    work = Workload.quick() if session.quick else Workload()
    store, figures = Store.open(session.store), Figures()
    edges = KnowledgeGraph.of_store(store).facts
    for _ in session.repetitions:
        for batch in work.batches:
            for name in layers(edges):
                messages = 4 * len(edges) * batch * work.width
                if name == OURS or 4 * messages <= work.largest_peer_bytes:
                    done = alone(measure, session.store, name, batch, work)
                    figures.add(f"{name}, batch {batch}", {**done.value, "peak MB": done.peak_mb})
    return finish(session, settings_of(work, graph=graph_settings(store)), figures)


if __name__ == "__main__":
    main()
