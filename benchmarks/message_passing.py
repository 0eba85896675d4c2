"""Relational message passing: milliseconds of a layer beside gather and scatter, DGL and PyTorch Geometric.

DistMult messages, summed, on a graph's facts with their inverses; all peers get the same tensors and every core, or
the GPU with ``--device cuda``. In one more row, eight queries share the vectors of relations. The bound is the time in
which this machine, in the same minute, moves the state row of every edge once, and those of every node in and out: on
CPU at the rate of a triad, on GPU at that of a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.common import BenchmarkError, Figures, begin, finish, finished_at, graph_settings, settings_of
from benchmarks.processes import alone
from benchmarks.rooflines import QUICK_SECONDS, SECONDS, around
from distkg.data.store.graph_store import Store
from distkg.foundation.models import KnowledgeGraph
from distkg.graph.partition import MissingDglError, import_dgl
from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.sums import propagate, reference_propagate
from distkg.sharding.ranks import Ranks

OURS, SHARED = "distkg", "distkg, 8 queries of a relation"
Layer = Callable[[Tensor, Tensor], Tensor]
COPIED_FLOATS = 256 << 20  # 1 GiB: beyond a GPU's caches
T = TypeVar("T")


@dataclass(frozen=True)
class Workload:
    device: str = "cpu"
    batches: tuple[int, ...] = (8, 64)
    width: int = 64
    passes: int = 5
    calls: int = 1  # of a pass: on GPU the clock stops once for several
    largest_peer_bytes: int = 6 << 30
    roofline_seconds: float = SECONDS

    @classmethod
    def of(cls, device: str, quick: bool) -> Workload:
        if quick:
            return cls(device, batches=(2,), width=8, passes=1, roofline_seconds=QUICK_SECONDS)
        if device == "cpu":
            return cls()
        memory = torch.cuda.get_device_properties(device).total_memory
        return cls(device, passes=20, calls=10, largest_peer_bytes=memory * 3 // 4)


def layers(edges: Edges) -> dict[str, Layer]:
    """Row of the table → states [B, n, d] and relations [B, k, d] to gathered states, where the edges are."""
    weight = torch.ones(len(edges), device=edges.device)

    def shared(states: Tensor, relations: Tensor) -> Tensor:
        place = torch.arange(len(states), device=edges.device) // 8
        return propagate(states, relations[: int(place[-1]) + 1], edges, weight, place=place)

    found: dict[str, Layer] = {
        SHARED: shared,
        OURS: lambda states, relations: propagate(states, relations, edges, weight),
        "gather, multiply, index_add": lambda states, relations: reference_propagate(
            states, relations, edges, weight, "distmult"
        ),
    }
    return found | _dgl_layer(edges) | _geometric_layer(edges)


def _dgl_layer(edges: Edges) -> dict[str, Layer]:
    """``u_mul_e`` and ``sum`` on all queries at once, features of an edge being [B, d]; on CPU, for which the wheels
    are that fit this torch, and left out where DGL is missing."""
    try:
        dgl = import_dgl("message passing of distkg")
    except MissingDglError:
        return {}
    if edges.device.type != "cpu":
        return {}
    graph = dgl.graph((edges.src, edges.dst), num_nodes=edges.nodes)
    kind = edges.relation.long()

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
            index = torch.stack([edges.src.long(), edges.dst.long()])
            found: Tensor = self.propagate(index, x=states, said=relations[:, edges.relation.long()])
            return found

        def message(self, x_j: Tensor, said: Tensor) -> Tensor:
            return x_j * said

    return {"PyTorch Geometric": Relational()}


def milliseconds(run: Callable[[], object], work: Workload) -> float:
    """A call, in the fastest of the passes, after one that is not counted."""
    run()
    best = float("inf")
    for _ in range(work.passes):
        start = finished_at(work.device)
        for _ in range(work.calls):
            run()
        best = min(best, finished_at(work.device) - start)
    return 1000 * best / work.calls


def beside_bandwidth(timed: Callable[[], T], work: Workload) -> tuple[float, T]:
    """Bytes per second that the device moves, before and after ``timed``, and what that gives."""
    if work.device == "cpu":
        machine, done = around(Ranks.single(), timed, work.roofline_seconds)
        return machine.bandwidth, done
    source = torch.zeros(COPIED_FLOATS, device=work.device)
    target = torch.empty_like(source)

    def rate() -> float:
        return 2000 * source.nbytes / milliseconds(lambda: target.copy_(source), work)

    before, done = rate(), timed()
    return (before + rate()) / 2, done


def measure(store: str, name: str, batch: int, work: Workload) -> dict[str, float]:
    """Forward, and forward and backward, of one layer, beside the machine's bandwidth; in a process of its own."""
    edges = KnowledgeGraph.of_store(Store.open(store)).facts.to(torch.device(work.device))
    layer = layers(edges)[name]
    states = torch.randn(batch, edges.nodes, work.width, device=work.device, requires_grad=True)
    relations = torch.randn(batch, edges.num_relations, work.width, device=work.device, requires_grad=True)

    def forward() -> Tensor:
        with torch.no_grad():
            return layer(states, relations)

    def both() -> None:
        layer(states, relations).sum().backward()
        states.grad = relations.grad = None

    def timed() -> tuple[float, float]:
        return milliseconds(forward, work), milliseconds(both, work)

    bandwidth, (there, there_and_back) = beside_bandwidth(timed, work)
    bound = 1000 * 4 * batch * work.width * (len(edges) + 2 * edges.nodes) / bandwidth
    found = {
        "forward ms": there,
        "forward and backward ms": there_and_back,
        "× bandwidth, forward": there / bound,
        "bandwidth GB/s": bandwidth / 1e9,
    }
    if work.device != "cpu":
        found["peak GPU MB"] = torch.cuda.max_memory_allocated(work.device) / 1e6
    return found


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every layer with every batch size; peers that would need more memory than they may are left out."""
    session = begin(__file__, str(__doc__), arguments, "store", "device", repetitions=1)
    device = session.options.device
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("--device cuda: torch finds no GPU here. Measure on one, or leave the option out")
    work = Workload.of(device, session.quick)
    store, figures = Store.open(session.store), Figures()
    edges = KnowledgeGraph.of_store(store).facts
    for _ in session.repetitions:
        for batch in work.batches:
            for name in layers(edges.to(torch.device(device))):
                messages = 4 * len(edges) * batch * work.width
                if name in (OURS, SHARED) or 4 * messages <= work.largest_peer_bytes:
                    done = alone(measure, session.store, name, batch, work)
                    figures.add(f"{name}, batch {batch}", {**done.value, "peak MB": done.peak_mb})
    settings = settings_of(work, graph=graph_settings(store))
    if device == "cuda":
        settings["gpu"] = torch.cuda.get_device_name(device)
    return finish(session, settings, figures, part="" if device == "cpu" else device)


if __name__ == "__main__":
    main()
