"""HaLE's training of RotE as one would write it in plain PyTorch: dense tables, autograd, the matrix of scores in full.

The peer of ``query_sampling``. Source of the formulas: Wang et al. 2022, arXiv 2201.00565, equations 6, 8, 9 and 13.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distkg.data.store.graph_store import Store


class PlainHaLE(nn.Module):
    """RotE with Hanon."""

    def __init__(self, entities: int, relations: int, dim: int, limit: float = 10.0, steepness: float = 3.0) -> None:
        super().__init__()
        self.entities = nn.Parameter(1e-3 * torch.randn(entities, dim))
        self.angles = nn.Parameter(torch.rand(relations, dim // 2) * 2 * torch.pi)
        self.translations = nn.Parameter(1e-3 * torch.randn(relations, dim))
        self.factors = nn.Parameter(torch.zeros(relations))
        self.limit, self.steepness = limit, steepness

    def forward(self, anchor: Tensor, relation: Tensor, answer: Tensor, sampled: int, uniformity: float) -> Tensor:
        """Loss of queries int64 [B] with answers int64 [B], of which the first are sampled."""
        first, second = self.entities[anchor].chunk(2, dim=1)
        cosine, sine = self.angles[relation].cos(), self.angles[relation].sin()
        turned = torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=1)
        query = turned + self.translations[relation]
        factor = F.softplus(self.factors[relation])
        near = self.activated(factor * (query - self.entities[answer]).square().sum(1))
        query, factor = query[:sampled], factor[:sampled, None]
        norms = query.square().sum(1, keepdim=True) + self.entities.square().sum(1)
        everyone = self.activated(factor * (norms - 2 * query @ self.entities.T))
        return near.square().mean() + uniformity * torch.logsumexp(-everyone, 1).mean()

    def activated(self, x: Tensor) -> Tensor:
        return 1 / (1 / self.limit + torch.exp(-self.steepness * (x - 0.5)))


def seconds_per_epoch(store: str, dim: int, batch_size: int, query_share: float, steps: int) -> float:
    """From the time of some steps with Adam after a first one."""
    opened = Store.open(store)
    triples = torch.from_numpy(opened.triples("train").astype("int64"))
    model = PlainHaLE(opened.num_entities, 2 * opened.num_relations, dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = 0.0
    for step in range(steps + 1):
        if step == 1:
            start = time.perf_counter()
        head, relation, tail = triples[torch.randint(len(triples), (batch_size,))].unbind(1)
        anchor, answer = torch.cat((head, tail)), torch.cat((tail, head))
        relation = torch.cat((relation, relation + opened.num_relations))
        mixed = torch.randperm(len(anchor))
        sampled = round(query_share * len(anchor))
        loss = model(anchor[mixed], relation[mixed], answer[mixed], sampled, uniformity=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps * len(triples) / batch_size
