"""Pools against their definitions, written as loops over triples, and what is drawn from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distkg.data.store.classes import Classes
from distkg.negatives import Queries, SourceError, TrainingGraph, make_source
from distkg.negatives.static.candidate_sets import PoolSource

ENTITIES, RELATIONS, CLASSES = 7, 3, 4

triples = st.lists(
    st.tuples(st.integers(0, ENTITIES - 1), st.integers(0, RELATIONS - 1), st.integers(0, ENTITIES - 1)),
    min_size=1,
    max_size=30,
)
classes_of = st.lists(
    st.lists(st.integers(0, CLASSES - 1), max_size=3, unique=True), min_size=ENTITIES, max_size=ENTITIES
)
wanted = st.lists(st.integers(-1, CLASSES - 1), min_size=2 * RELATIONS, max_size=2 * RELATIONS)

Triple = tuple[int, int, int]


def classes(of_entities: list[list[int]], of_relations: list[int]) -> Classes:
    members = [kind for kinds in of_entities for kind in kinds]
    offsets = np.cumsum([0, *(len(kinds) for kinds in of_entities)])
    labels = pa.array([f"class {i}" for i in range(CLASSES)])
    return Classes(labels, offsets.astype(np.int64), np.array(members, np.int32), np.array(of_relations, np.int32))


def graph(rows: list[Triple], known: Classes | None = None) -> TrainingGraph:
    return TrainingGraph.of_triples(np.array(rows), ENTITIES, RELATIONS, known)


def every_query() -> Queries:
    grid = torch.cartesian_prod(torch.arange(ENTITIES), torch.arange(2 * RELATIONS), torch.arange(ENTITIES))
    return Queries(*grid.T.contiguous())


def facts(rows: list[Triple]) -> set[Triple]:
    """(anchor, relation, answer) of both queries of every triple."""
    return {(h, r, t) for h, r, t in rows} | {(t, r + RELATIONS, h) for h, r, t in rows}


def assert_pools(source: PoolSource, pool_of: Callable[[int, int, int], set[int]]) -> None:
    """Every entity of the pool is drawn, no other is, and an empty pool gives nothing."""
    queries = every_query()
    drawn = source.draw(queries, 60, torch.Generator().manual_seed(0))
    sizes = source.pool_sizes(queries).tolist()
    for i, query in enumerate(
        zip(*(part.tolist() for part in (queries.anchor, queries.relation, queries.answer)), strict=True)
    ):
        pool = pool_of(*query)
        assert sizes[i] == len(pool)
        if not pool:
            assert drawn.mask is not None
            assert bool(drawn.mask[i].all())
        else:
            # One of seven is missed by sixty draws with a chance of 10⁻⁴; the pool may not gain a member.
            assert set(drawn.entities[i].tolist()) <= pool
            assert drawn.mask is None or not bool(drawn.mask[i].any())


def pool_source(name: str, of_graph: TrainingGraph, **options: bool) -> PoolSource:
    source = make_source(name, options, of_graph)
    assert isinstance(source, PoolSource)
    return source


@settings(max_examples=40, deadline=None)
@given(triples)
def test_corrupt_takes_answers_of_the_relation(rows: list[Triple]) -> None:
    known = facts(rows)
    assert_pools(pool_source("corrupt", graph(rows)), lambda _, r, __: {t for _, other, t in known if other == r})


@settings(max_examples=60, deadline=None)
@given(triples)
def test_relational_takes_answers_by_other_relations_of_the_same_direction(rows: list[Triple]) -> None:
    known = facts(rows)

    def pool(anchor: int, relation: int, _: int) -> set[int]:
        inverse = relation >= RELATIONS
        return {t for h, r, t in known if h == anchor and r != relation and (r >= RELATIONS) == inverse}

    assert_pools(pool_source("relational", graph(rows)), pool)


@settings(max_examples=40, deadline=None)
@given(triples, classes_of, wanted)
def test_typed_takes_entities_of_the_class_that_the_relation_asks_for(
    rows: list[Triple], of_entities: list[list[int]], of_relations: list[int]
) -> None:
    known = classes(of_entities, of_relations)
    if not known.has_entities or not known.has_relations:
        with pytest.raises(SourceError, match=r"negatives\.source: typed needs"):
            pool_source("typed", graph(rows, known))
        return

    def pool(_: int, relation: int, __: int) -> set[int]:
        return {e for e, kinds in enumerate(of_entities) if of_relations[relation] in kinds}

    assert_pools(pool_source("typed", graph(rows, known)), pool)


@settings(max_examples=40, deadline=None)
@given(triples, classes_of)
def test_classes_takes_entities_of_the_answers_first_class(rows: list[Triple], of_entities: list[list[int]]) -> None:
    if not any(of_entities):
        return
    known = classes(of_entities, [-1] * 2 * RELATIONS)

    def pool(_: int, __: int, answer: int) -> set[int]:
        return {e for e, kinds in enumerate(of_entities) if of_entities[answer][:1] and of_entities[answer][0] in kinds}

    assert_pools(pool_source("classes", graph(rows, known)), pool)


ROWS: list[Triple] = [(0, 0, 1), (0, 1, 2), (0, 1, 3), (0, 2, 3), (0, 2, 4), (0, 2, 5), (0, 2, 6), (5, 0, 4)]


def test_draws_from_a_pool_are_uniform() -> None:
    # Entity 0 answers by relation 1 with 2 and 3, by relation 2 with 3, 4, 5 and 6: all five count beside relation 0.
    ask = Queries(torch.zeros(4000, dtype=torch.int64), torch.zeros(4000, dtype=torch.int64), torch.ones(4000).long())
    drawn = pool_source("relational", graph(ROWS)).draw(ask, 5, torch.Generator().manual_seed(1))
    counts = np.bincount(drawn.entities.flatten().numpy(), minlength=ENTITIES)
    assert counts[:2].tolist() == [0, 0]
    assert stats.chisquare(counts[2:]).pvalue > 1e-3


def test_integrate_takes_the_whole_pool_and_fills_it_up_from_all_entities() -> None:
    source = pool_source("corrupt", graph(ROWS), integrate=True)
    ask = Queries(torch.zeros(2000, dtype=torch.int64), torch.ones(2000).long(), torch.full((2000,), 2))
    drawn = source.draw(ask, 6, torch.Generator().manual_seed(2))
    assert drawn.mask is None
    assert drawn.entities[:, :2].tolist() == [[2, 3]] * 2000  # the tails of relation 1
    rest = np.bincount(drawn.entities[:, 2:].flatten().numpy(), minlength=ENTITIES)
    assert stats.chisquare(rest).pvalue > 1e-3


def test_integrate_draws_from_a_pool_that_is_large_enough() -> None:
    source = pool_source("corrupt", graph(ROWS), integrate=True)
    ask = Queries(torch.zeros(500, dtype=torch.int64), torch.full((500,), 2), torch.full((500,), 3))
    drawn = source.draw(ask, 4, torch.Generator().manual_seed(3))  # relation 2 has the tails 3, 4, 5 and 6
    assert set(drawn.entities.flatten().tolist()) == {3, 4, 5, 6}
    assert len({tuple(row) for row in drawn.entities.tolist()}) > 100


def test_integrate_replaces_an_empty_pool_by_all_entities() -> None:
    source = pool_source("relational", graph([(0, 0, 1)]), integrate=True)
    ask = Queries(*(torch.tensor([value]) for value in (0, 0, 1)))
    drawn = source.draw(ask, 200, torch.Generator().manual_seed(4))
    assert drawn.mask is None
    assert set(drawn.entities.flatten().tolist()) == set(range(ENTITIES))


def test_what_is_missing_is_said_with_where_it_comes_from() -> None:
    with pytest.raises(SourceError, match=r"needs classes of entities.*entity_types\.tsv.*distkg prepare"):
        make_source("classes", {}, graph(ROWS))
    with pytest.raises(SourceError, match=r"needs domain and range.*relation_domain_range\.tsv.*classes"):
        make_source("typed", {}, graph(ROWS, classes([[0]] * ENTITIES, [-1] * 2 * RELATIONS)))
