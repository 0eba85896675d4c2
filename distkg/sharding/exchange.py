"""Routes of the row exchange: rows go to the ranks that need them, gradients return to the ranks that own the rows.

A ``Route`` lists, for one set of ids, the rows that this rank requests from and serves to each rank. Routes of several
steps are planned in one exchange of ids, because two messages for eight steps cost less than sixteen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distkg.kernels.merge_sorted import merge_sorted
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards


@dataclass(frozen=True)
class Route:
    """Route of one set of ids.

    Attributes:
        ids: int64 [k], sorted and unique rows that this rank requests.
        ask: number of requested rows that each rank owns.
        serve: int64 [s], local row numbers that this rank serves, first those requested by rank 0.
        serve_counts: number of rows that each rank requested.
        updated: int64 [u], ``serve`` without duplicates: local rows that receive gradients.
        position: int64 [s], index of each served row in ``updated``.
    """

    ids: Tensor
    ask: list[int]
    serve: Tensor
    serve_counts: list[int]
    updated: Tensor
    position: Tensor


def plan_routes(id_sets: list[Tensor], shards: Shards, ranks: Ranks) -> list[Route]:
    """Plan a route for each set of sorted unique ids (int64); collective."""
    asks = [shards.splits(ids) for ids in id_sets]
    if ranks.size == 1:
        everything = [torch.arange(len(ids), device=ids.device) for ids in id_sets]
        return [
            Route(ids, ask, ids, ask, ids, order) for ids, ask, order in zip(id_sets, asks, everything, strict=True)
        ]
    request_counts = torch.tensor(asks, dtype=torch.int64, device=ranks.device).T.contiguous()
    served = torch.empty_like(request_counts)
    ones = [1] * ranks.size
    ranks.all_to_all(served, request_counts, ones, ones)
    incoming = _send_ids(id_sets, request_counts, served, ranks)
    low, _ = shards.range(ranks.rank)
    return [
        _route(ids, ask, incoming[step] - low, served[:, step].tolist())
        for step, (ids, ask) in enumerate(zip(id_sets, asks, strict=True))
    ]


def _send_ids(id_sets: list[Tensor], asked: Tensor, served: Tensor, ranks: Ranks) -> list[Tensor]:
    """Exchange ids, and return those requested from this rank: for each set, first those of rank 0."""
    parts = [ids.split(asked[:, step].tolist()) for step, ids in enumerate(id_sets)]
    outgoing = torch.cat([parts[step][owner] for owner in range(ranks.size) for step in range(len(id_sets))])
    received = outgoing.new_empty(int(served.sum()))
    ranks.all_to_all(received, outgoing, served.sum(1).tolist(), asked.sum(1).tolist())
    pieces = received.split(served.flatten().tolist())
    steps = len(id_sets)
    return [torch.cat([pieces[asker * steps + step] for asker in range(ranks.size)]) for step in range(steps)]


def _route(ids: Tensor, ask: list[int], serve: Tensor, serve_counts: list[int]) -> Route:
    updated, position = merge_sorted(serve, serve_counts)
    return Route(ids, ask, serve, serve_counts, updated, position)
