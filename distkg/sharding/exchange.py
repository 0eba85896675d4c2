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
        ids: int64 [k], sorted and unique rows that this rank requests; with one rank, the last may be repeated.
        ask: number of requested rows that each rank owns.
        serve: int64 [s], local row numbers that this rank serves, first those requested by rank 0.
        serve_counts: number of rows that each rank requested.
        updated: int64 [u], ``serve`` without duplicates: local rows that receive gradients. On a device, the last may
            be repeated.
        position: int64 [s], index of each served row in ``updated``.
    """

    ids: Tensor
    ask: list[int]
    serve: Tensor
    serve_counts: list[int]
    updated: Tensor
    position: Tensor


def plan_routes(id_sets: list[Tensor], shards: Shards, ranks: Ranks) -> list[Route]:
    """Plan a route for each set of sorted ids int64, unique but for repetitions of the last on a device; collective.

    With one rank, nothing is counted and a device is not waited for. With several, the host must know how many rows
    each owner is asked for: one copy of these counts, for all sets, is the only one that waits for a device.
    """
    if ranks.size == 1:
        return [_own_route(ids) for ids in id_sets]
    asked = torch.stack([shards.counts_of(ids) for ids in id_sets], 1)
    served = torch.empty_like(asked)
    ones = [1] * ranks.size
    ranks.all_to_all(served, asked, ones, ones)
    asked, served = _on_host(asked, served)
    id_sets = [ids[: int(count)] for ids, count in zip(id_sets, asked.sum(0), strict=True)]
    incoming = _send_ids(id_sets, asked, served, ranks)
    low, _ = shards.range(ranks.rank)
    return [
        _route(ids, asked[:, step].tolist(), incoming[step] - low, served[:, step].tolist())
        for step, ids in enumerate(id_sets)
    ]


def _on_host(asked: Tensor, served: Tensor) -> tuple[Tensor, Tensor]:
    """Copy counts [ranks, sets] to the host, together."""
    both = torch.stack([asked, served]).cpu()
    return both[0], both[1]


def _own_route(ids: Tensor) -> Route:
    position = torch.arange(len(ids), device=ids.device)
    return Route(ids, [len(ids)], ids, [len(ids)], ids, position)


def _send_ids(id_sets: list[Tensor], asked: Tensor, served: Tensor, ranks: Ranks) -> list[Tensor]:
    """Exchange ids, and return those requested from this rank: for each set, first those of rank 0.

    ``asked`` and ``served`` are the numbers of rows by rank and set, in host memory.
    """
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
