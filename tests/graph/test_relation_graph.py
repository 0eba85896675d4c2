"""The graph of relations against its definition as products of incidence matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.graph import relation_graph as module
from distkg.graph.relation_graph import TooManyRelationsError, relation_graph, some_relations_of_entities

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


def relations_by_entity(triples: np.ndarray, entities: int, relations: int, **options: int) -> list[list[int]]:
    offsets, own = some_relations_of_entities(triples, entities, relations, **options)
    return [part.tolist() for part in np.split(own, offsets[1:-1])]


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=25),
)
def test_an_entity_has_the_relations_of_its_facts_and_inverses_where_it_is_the_tail(rows: list[Edge]) -> None:
    expected: list[set[int]] = [set() for _ in range(8)]
    for h, r, t in rows:
        expected[h].add(r)
        expected[t].add(r + 4)
    assert relations_by_entity(np.array(rows), 8, 4) == [sorted(own) for own in expected]


def test_hubs_keep_as_many_relations_as_they_may() -> None:
    triples = np.array([[0, r, 1 + r] for r in range(6)])
    whole = relations_by_entity(triples, 8, 6)
    few = relations_by_entity(triples, 8, 6, most_per_entity=3, seed=1)
    assert whole == [[0, 1, 2, 3, 4, 5], *([6 + r] for r in range(6)), []]
    assert few[1:] == whole[1:]
    assert len(set(few[0])) == 3
    assert set(few[0]) <= set(range(6))


def test_too_many_relations_are_refused_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RELATIONS", 6)
    with pytest.raises(TooManyRelationsError, match="4 relations, 8 with inverses"):
        relation_graph(np.array([[0, 3, 1]]), 2, 4)
