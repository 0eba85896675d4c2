"""The hypergraph of relations against its definition, fact by fact, and its bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_hypergraph import Fact, Hyperedge, by_definition

from distkg.graph import relation_hypergraph as module
from distkg.graph.relation_graph import TooManyRelationsError
from distkg.graph.relation_hypergraph import KINDS, RelationHypergraph, relation_hypergraph


def hyperedges_of(graph: RelationHypergraph, relations: int) -> list[Hyperedge]:
    """All of them with their kinds, as the attributes say."""
    found: list[Hyperedge] = [
        (KINDS[kind], i, j)
        for i, kind, j in zip(graph.row.tolist(), graph.kind.tolist(), graph.column.tolist(), strict=True)
    ]
    for run, (a, b) in enumerate(zip(graph.first.tolist(), graph.middle.tolist(), strict=True)):
        other_a = (a + relations) % (2 * relations)
        for c in graph.last[graph.offsets[run] : graph.offsets[run + 1]].tolist():
            other_c = (c + relations) % (2 * relations)
            found += [("hfh", a, b, c), ("tfh", other_a, b, c), ("hft", a, b, other_c), ("tft", other_a, b, other_c)]
    return found


def test_one_fact_written_by_hand() -> None:
    # Entity 0 is head of relation 0 and tail of its inverse 1; entity 1 the other way round.
    found = relation_hypergraph(np.array([[0, 0, 1]]), 2, 1)
    assert sorted(hyperedges_of(found, 1)) == [
        ("hfh", 0, 0, 1),
        ("hfh", 1, 1, 0),
        ("hft", 0, 0, 0),
        ("hft", 1, 1, 1),
        ("hh", 0, 0),
        ("hh", 1, 1),
        ("ht", 0, 1),
        ("ht", 1, 0),
        ("tfh", 0, 1, 0),
        ("tfh", 1, 0, 1),
        ("tft", 0, 1, 1),
        ("tft", 1, 0, 0),
        ("tt", 0, 0),
        ("tt", 1, 1),
    ]


@settings(max_examples=50, deadline=None)
@given(
    facts=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=10),
)
def test_it_is_its_definition(facts: list[Fact]) -> None:
    found = hyperedges_of(relation_hypergraph(np.array(facts), 6, 3), 3)
    assert len(found) == len(set(found))
    assert set(found) == by_definition(facts, 3)


def test_a_run_holds_all_paths_that_begin_alike() -> None:
    facts = np.random.default_rng(5).integers(0, [20, 4, 20], (60, 3))
    found = relation_hypergraph(facts, 20, 4)
    pairs = list(zip(found.middle.tolist(), found.first.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    assert (np.diff(found.offsets) > 0).all()
    assert found.offsets[-1] == len(found.last)


def test_too_many_hyperedges_are_refused_with_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_HYPEREDGES", 13)
    said = r"14 hyperedges \(2 hh, 2 tt, 2 ht, 2 tfh, 2 tft, 2 hft, 2 hfh\), 13 at most are held.*ultra or trix"
    with pytest.raises(TooManyRelationsError, match=said):
        relation_hypergraph(np.array([[0, 0, 1]]), 2, 1)
