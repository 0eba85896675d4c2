"""Edges in their orders, against orders written by hand and plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distkg.kernels.message_passing.edges import Edges, Rows


def few() -> Edges:
    """0 gathers from 1 by kind 1 and from 2 by kind 0, 2 from 0 twice by kind 1; nobody gathers at 1 and 3."""
    dst, kind, src = torch.tensor([(0, 1, 1), (2, 1, 0), (0, 0, 2), (2, 1, 0)]).T
    return Edges.of(dst, kind, src, 4, 3)


def as_lists(rows: Rows) -> tuple[list[int], ...]:
    order = rows.ordered(torch.arange(len(rows.first)))
    return tuple(side.tolist() for side in (rows.offsets, rows.first, rows.second, order))


def test_orders_written_by_hand() -> None:
    edges = few()
    triples = zip(edges.dst.tolist(), edges.relation.tolist(), edges.src.tolist(), strict=True)
    assert list(triples) == [(0, 0, 2), (0, 1, 1), (2, 1, 0), (2, 1, 0)]
    assert as_lists(edges.by_dst) == ([0, 2, 2, 4, 4], [2, 1, 0, 0], [0, 1, 1, 1], [0, 1, 2, 3])
    assert as_lists(edges.by_src) == ([0, 2, 3, 4, 4], [2, 2, 0, 0], [1, 1, 1, 0], [2, 3, 1, 0])
    assert as_lists(edges.by_relation) == ([0, 1, 4, 4], [0, 2, 2, 0], [2, 0, 0, 1], [0, 2, 3, 1])
    assert edges.degrees().tolist() == [2, 0, 2, 0]
    assert edges.degrees(torch.tensor([1.0, 0.0, 0.5, -1.0])).tolist() == [1, 0, 2, 0]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 4)), max_size=40))
def test_rows_are_all_edges_of_their_side(triples: list[tuple[int, int, int]]) -> None:
    edges = Edges.of(*torch.tensor(triples, dtype=torch.int64).reshape(-1, 3).T, 5, 3)
    ordered = sorted(triples)
    by = {0: edges.by_dst, 1: edges.by_relation, 2: edges.by_src}
    others = {0: (2, 1), 1: (0, 2), 2: (0, 1)}
    for side, rows in by.items():
        offsets, first, second, order = as_lists(rows)
        for row in range(len(rows)):
            places = order[offsets[row] : offsets[row + 1]]
            assert sorted(places) == [place for place, triple in enumerate(ordered) if triple[side] == row]
        for place, found in zip(order, zip(first, second, strict=True), strict=True):
            assert found == tuple(ordered[place][other] for other in others[side])


def test_a_copy_for_a_device_is_made_once() -> None:
    edges, device = few(), torch.device("meta")
    assert edges.to(torch.device("cpu")) is edges
    there = edges.to(device)
    assert edges.to(device) is there
    assert {side.device for side in (there.dst, there.src, there.relation, there.offsets)} == {device}
    assert (there.nodes, there.num_relations, len(there)) == (4, 3, 4)


def test_pieces_written_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distkg.kernels.message_passing.edges.PIECE", 2)
    # Rows of 5, 0, 2 and 3 edges: three pieces, one without edges, one, two.
    dst = torch.tensor([0] * 5 + [2] * 2 + [3] * 3)
    pieces = Edges.of(dst, torch.zeros(10, dtype=torch.int64), torch.arange(10), 10, 1).by_dst.pieces
    assert pieces.starts[:8].tolist() == [0, 2, 4, 5, 5, 7, 9, 10]
    assert pieces.target[:7].tolist() == [-1, -2, -3, 1, 2, -4, -5]
    assert pieces.target[7:].tolist() == [4, 5, 6, 7, 8, 9]
    assert (pieces.hubs.tolist(), pieces.hub_starts.tolist(), pieces.partial) == ([0, 3], [0, 3, 5], 5)
    assert len(pieces) == 13
