"""Negatives from the graph neighbourhood of the anchor (SANS: Ahrabian et al. 2020, arXiv 2009.11355)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distkg.graph.csr import Csr
from distkg.graph.walks import ball_sizes, dgl_walks, plain_walks
from distkg.negatives.base import SOURCES, Negatives, NegativeSource, Queries, RunSizes, SourceOptions
from distkg.negatives.training_graph import TrainingGraph


class KHopOptions(SourceOptions):
    hops: int = Field(2, ge=1, description="Number of steps of the random walk from the anchor.")
    sampler: Literal["compiled", "dgl"] = Field(
        "compiled", description="Random walker: compiled (built in) or dgl. Both sample from the same distribution."
    )


@SOURCES.register("k_hop")
class KHop(NegativeSource):
    """End points of random walks from the anchor (RW-SANS, Ahrabian et al. 2020).

    For a walk that ends at its start, the entity before is used. Answers of the query are often near its anchor;
    ``negatives.filter`` masks them.
    """

    Options = KHopOptions

    @classmethod
    def memory(cls, options: SourceOptions, sizes: RunSizes) -> int:
        return 40 * sizes.queries  # both ends of every edge, and sorting

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        assert isinstance(options, KHopOptions)
        self._hops = options.hops
        self._edges = graph.triples[:, ::2]
        make = {"compiled": plain_walks, "dgl": dgl_walks}[options.sampler]
        self._walk = make(self._edges, graph.entities)

    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        seed = int(torch.randint(1 << 31, (1,), generator=generator))
        starts = queries.anchor.repeat_interleave(count).numpy()
        visited = self._walk(starts, self._hops, seed)
        end = np.where(visited[:, -1] == starts, visited[:, -2], visited[:, -1])
        entities = torch.from_numpy(end).view(len(queries), count)
        mask = entities == queries.anchor[:, None]
        return Negatives(entities, mask if bool(mask.any()) else None)

    def pool_sizes(self, queries: Queries) -> Tensor:
        csr = Csr.undirected(self._edges, self.entities)
        anchors, place = np.unique(queries.anchor.numpy(), return_inverse=True)
        return torch.from_numpy(ball_sizes(csr, anchors, self._hops)[place])
