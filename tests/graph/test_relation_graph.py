"""The graph of relations against its definition as products of incidence matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.graph import relation_graph as module
from distkg.graph.relation_graph import TooManyRelationsError, entity_relation_graphs, relation_graph

Edge = tuple[int, int, int]


def edges_of(triples: np.ndarray, entities: int, relations: int) -> set[Edge]:
    found = relation_graph(triples, entities, relations)
    edges = list(zip(found.row.tolist(), found.kind.tolist(), found.column.tolist(), strict=True))
    assert len(edges) == len(set(edges))
    return set(edges)


def by_definition(triples: np.ndarray, entities: int, relations: int) -> set[Edge]:
    head = np.zeros((entities, 2 * relations), dtype=int)
    tail = np.zeros_like(head)
    for h, r, t in triples:
        head[h, r] = tail[t, r] = 1
        head[t, r + relations] = tail[h, r + relations] = 1
    products = head.T @ head, tail.T @ tail, head.T @ tail, tail.T @ head
    return {(int(i), kind, int(j)) for kind, matrix in enumerate(products) for i, j in np.argwhere(matrix)}


def test_one_fact_written_by_hand() -> None:
    # Entity 0 is head of relation 0 and tail of its inverse 1; entity 1 the other way round.
    edges = edges_of(np.array([[0, 0, 1]]), 2, 1)
    assert edges == {(0, 0, 0), (1, 0, 1), (0, 1, 0), (1, 1, 1), (0, 2, 1), (1, 2, 0), (0, 3, 1), (1, 3, 0)}


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=25),
)
def test_it_is_its_definition(rows: list[Edge]) -> None:
    triples = np.array(rows)
    assert edges_of(triples, 8, 4) == by_definition(triples, 8, 4)


def by_entity_definition(triples: np.ndarray, relations: int) -> dict[str, set[Edge]]:
    heads: dict[int, set[int]] = {}
    tails: dict[int, set[int]] = {}
    for h, r, t in triples.tolist():
        for side, entity, relation in (
            (heads, h, r),
            (tails, t, r),
            (heads, t, r + relations),
            (tails, h, r + relations),
        ):
            side.setdefault(entity, set()).add(relation)
    ways = {"head to head": (heads, heads), "tail to tail": (tails, tails)}
    ways |= {"head to tail": (heads, tails), "tail to head": (tails, heads)}
    return {
        way: {
            (i, v, j)
            for v in heads
            for i in left[v]
            for j in right[v]
            if i != j or way not in ("head to head", "tail to tail")
        }
        for way, (left, right) in ways.items()
    }


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=25),
)
def test_meetings_in_entities_are_their_definition(rows: list[Edge]) -> None:
    triples = np.array(rows)
    expected = by_entity_definition(triples, 4)
    for way, edges in entity_relation_graphs(triples, 8, 4).items():
        found = list(zip(edges.row.tolist(), edges.entity.tolist(), edges.column.tolist(), strict=True))
        assert len(found) == len(set(found))
        assert set(found) == expected[way]


def test_hubs_keep_as_many_relations_as_they_may() -> None:
    triples = np.array([[0, r, 1 + r] for r in range(6)])
    whole = entity_relation_graphs(triples, 8, 6)["head to head"]
    few = entity_relation_graphs(triples, 8, 6, most_per_entity=3, seed=1)["head to head"]
    assert (whole.entity == 0).sum() == 30
    assert (few.entity == 0).sum() == 6
    assert len(set(few.row.tolist())) == 3
    assert set(few.row.tolist()) <= set(range(6))


def test_too_many_meetings_are_refused_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_EDGES", 100)
    triples = np.array([[0, r, 1 + r] for r in range(6)])
    with pytest.raises(TooManyRelationsError, match=r"168 edges.*100 at most.*most relations has 6.*most_per_entity"):
        entity_relation_graphs(triples, 8, 6)


def test_too_many_relations_are_refused_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RELATIONS", 6)
    with pytest.raises(TooManyRelationsError, match="4 relations, 8 with inverses"):
        relation_graph(np.array([[0, 3, 1]]), 2, 4)
