"""Hard negatives of a model: which entities are found, whoever holds them, when they are asked for again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from distributed import run_ranks
from torch import Tensor

from distkg.kernels.scores.similarity import DOT, SQUARED_L2, Similarity
from distkg.negatives import NegativeSource, Queries, SourceError, TrainingGraph, TrainingProgress, make_source
from distkg.negatives.model_based import nearest
from distkg.negatives.model_based.cached import RowsByKey
from distkg.negatives.model_based.nearest import NearestEntities
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards

ENTITIES, RELATIONS, DIM = 40, 2, 5


class TableModel:
    """Entities of one table, cut over ranks; a query is the anchor's vector plus that of the relation."""

    def __init__(self, ranks: Ranks, similarity: Similarity = DOT) -> None:
        generator = torch.Generator().manual_seed(4)
        self.table = torch.randn(ENTITIES, DIM, generator=generator)
        self.relations = torch.randn(2 * RELATIONS, DIM, generator=generator)
        self.ranks, self.similarity, self.entities = ranks, similarity, ENTITIES
        self.first, self._end = Shards(ENTITIES, ranks.size).range(ranks.rank)

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return self.table[anchor] + self.relations[relation]

    def candidates(self, entities: Tensor) -> Tensor:
        return self.table[entities]

    def own_candidates(self) -> Tensor:
        return self.table[self.first : self._end]


def graph() -> TrainingGraph:
    rows = np.random.default_rng(0).integers(0, [ENTITIES, RELATIONS, ENTITIES], (120, 3))
    return TrainingGraph.of_triples(np.unique(rows, axis=0), ENTITIES, RELATIONS)


def some_queries(of_graph: TrainingGraph, count: int = 30) -> Queries:
    return Queries(*torch.from_numpy(of_graph.queries()[:count]).T.contiguous())


def source_on(name: str, model: TableModel, **options: float) -> tuple[NegativeSource, Queries]:
    of_graph = graph()
    source = make_source(name, options, of_graph)
    source.attach(model)
    return source, some_queries(of_graph)


def known_to(anchor: int, relation: int) -> set[int]:
    return {y for a, r, y in graph().queries().tolist() if (a, r) == (anchor, relation)}


def drawn_sets(source: NegativeSource, queries: Queries) -> list[set[int]]:
    negatives = source.draw(queries, 300, torch.Generator().manual_seed(1))
    mask = torch.zeros_like(negatives.entities, dtype=torch.bool) if negatives.mask is None else negatives.mask
    return [set(row[~out].tolist()) for row, out in zip(negatives.entities, mask, strict=True)]


@pytest.mark.parametrize("similarity", [DOT, SQUARED_L2])
def test_near_misses_are_the_best_answers_but_for_the_known(similarity: Similarity) -> None:
    model = TableModel(Ranks.single(), similarity)
    source, queries = source_on("near_miss", model, neighbours=6)
    vectors = model.query(queries.anchor, queries.relation)
    scores = vectors @ model.table.T
    if similarity is SQUARED_L2:
        scores = -torch.cdist(vectors, model.table)
    best = scores.topk(6, dim=1).indices.tolist()
    for i, (anchor, relation) in enumerate(zip(queries.anchor.tolist(), queries.relation.tolist(), strict=True)):
        assert drawn_sets(source, queries)[i] == set(best[i]) - known_to(anchor, relation)


def test_nearest_neighbours_are_those_of_the_answer() -> None:
    model = TableModel(Ranks.single())
    source, queries = source_on("nearest_neighbour", model, neighbours=5)
    order = torch.cdist(model.table, model.table)[queries.answer].topk(5, dim=1, largest=False).indices.tolist()
    for i, found in enumerate(drawn_sets(source, queries)):
        known = known_to(int(queries.anchor[i]), int(queries.relation[i]))
        assert int(queries.answer[i]) == order[i][0]
        assert found == set(order[i][1:]) - known


def search_on_rank(ranks: Ranks, counts: list[int], top: int) -> list[list[int]]:
    model = TableModel(ranks)
    vectors = torch.randn(sum(counts), DIM, generator=torch.Generator().manual_seed(9))
    return NearestEntities(model, DOT).search(vectors.split(counts)[ranks.rank], top).tolist()


@pytest.mark.parametrize("counts", [[5], [3, 4], [6, 0, 2]])
def test_a_search_over_shards_is_that_over_the_whole_table(counts: list[int]) -> None:
    found = (
        run_ranks(len(counts), search_on_rank, counts, 7)
        if len(counts) > 1
        else [search_on_rank(Ranks.single(), counts, 7)]
    )
    model = TableModel(Ranks.single())
    vectors = torch.randn(sum(counts), DIM, generator=torch.Generator().manual_seed(9))
    expected = (vectors @ model.table.T).topk(7, dim=1).indices.tolist()
    assert [row for part in found for row in part] == expected


def test_many_rows_are_searched_by_an_index_that_is_renewed_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="FAISS comes with the development dependencies")
    monkeypatch.setattr(nearest, "EXHAUSTIVE_ROWS", 10)
    model = TableModel(Ranks.single())
    source, queries = source_on("near_miss", model, neighbours=3, refresh=1)
    before = drawn_sets(source, queries)
    model.table = model.table.roll(1, 0)
    source.advance(TrainingProgress(0.9))
    assert drawn_sets(source, queries) == before
    source.advance(TrainingProgress(1.0))
    best = (model.query(queries.anchor, queries.relation) @ model.table.T).topk(3, dim=1).indices.tolist()
    for i, found in enumerate(drawn_sets(source, queries)):
        assert found == set(best[i]) - known_to(int(queries.anchor[i]), int(queries.relation[i]))


def test_a_row_is_renewed_when_it_is_old_and_asked_for() -> None:
    model = TableModel(Ranks.single())
    source, queries = source_on("near_miss", model, neighbours=4, refresh=0.5)
    first = drawn_sets(source, queries[:10])
    model.table = torch.randn(ENTITIES, DIM, generator=torch.Generator().manual_seed(8))
    source.advance(TrainingProgress(0.4))
    assert drawn_sets(source, queries[:10]) == first
    assert drawn_sets(source, queries[20:]) != first  # asked for the first time, so of the new table
    source.advance(TrainingProgress(0.5))
    assert drawn_sets(source, queries[:10]) != first


def test_renewals_spread_over_the_refresh_period() -> None:
    table = RowsByKey(torch.empty(0, 1), fill=0, refresh=10)
    keys = torch.arange(4000) * 37
    due = []
    for epoch in range(40):
        rows, old, first = table.look_up(keys, float(epoch))
        assert torch.equal(rows[first], old)
        table.renew(old, torch.full((len(old), 1), float(epoch)), float(epoch))
        due.append(len(old))
    assert due[0] == 4000
    assert sum(due[1:11]) == sum(due[11:21]) == sum(due[21:31]) == 4000
    assert max(due[1:]) < 550, "of 4,000 keys, 444 in each of nine epochs"
    assert float(table.values.min()) >= 30


def test_the_cache_turns_to_entities_that_score_well() -> None:
    model = TableModel(Ranks.single())
    model.table *= 6  # scores far apart, so that the draw is nearly a choice of the best
    source, queries = source_on("cached", model, cache=4, explored=30, refresh=1e-6)
    for epoch in range(6):
        source.advance(TrainingProgress(float(epoch)))
        found = drawn_sets(source, queries)
    scores = model.query(queries.anchor, queries.relation) @ model.table.T
    rank_of = scores.argsort(dim=1, descending=True).argsort(dim=1)
    ranks = [float(rank_of[i, list(row)].float().mean()) for i, row in enumerate(found) if row]
    assert np.mean(ranks) < 4  # of forty; at random it would be 19.5
    for i, row in enumerate(found):
        assert not row & known_to(int(queries.anchor[i]), int(queries.relation[i]))


def test_without_a_model_it_is_said_what_to_do() -> None:
    source = make_source("near_miss", {}, graph())
    with pytest.raises(SourceError, match=r"looks at the vectors of a model.*--run RUN"):
        source.draw(some_queries(graph()), 3, torch.Generator())


def trained_negatives(ranks: Ranks, name: str) -> int:
    """Draw on ranks whose batches differ in size, several times; what matters is that no rank waits forever."""
    model = TableModel(ranks)
    source, queries = source_on(name, model)
    total = 0
    for epoch in range(3):
        source.advance(TrainingProgress(float(epoch)))
        mine = queries[torch.arange(ranks.rank * 7, ranks.rank * 7 + (7 if ranks.rank else epoch))]
        total += len(source.draw(mine, 5, torch.Generator().manual_seed(ranks.rank)).entities)
    return total


@pytest.mark.parametrize("name", ["near_miss", "nearest_neighbour", "cached"])
def test_ranks_with_unequal_batches_draw_together(name: str) -> None:
    assert run_ranks(2, trained_negatives, name) == [0 + 1 + 2, 21]
