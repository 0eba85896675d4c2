"""Tokens of entities against searches and counts written as loops, and literal ones of a small graph."""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distkg.config import NodePieceConfig
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store
from distkg.embedding.composed.tokens import (
    Vocabulary,
    choose_anchors,
    entity_tokens,
    frequent_relations,
    nearest_anchors,
)
from distkg.graph.csr import Csr

NODES = 12
EDGES = arrays.arrays("int32", st.tuples(st.integers(0, 25), st.just(2)), elements=st.integers(0, NODES - 1))


def distances_from(start: int, edges: np.ndarray) -> dict[int, int]:
    reached, waiting = {start: 0}, deque([start])
    while waiting:
        node = waiting.popleft()
        for pair in edges.tolist():
            for one, other in (pair, pair[::-1]):
                if one == node and other not in reached:
                    reached[other] = reached[node] + 1
                    waiting.append(other)
    return reached


@settings(max_examples=60, deadline=None)
@given(edges=EDGES, anchors=st.permutations(range(NODES)), number=st.integers(1, NODES), count=st.integers(1, 5))
def test_nearest_anchors_are_those_of_a_search_from_each(
    edges: np.ndarray, anchors: list[int], number: int, count: int
) -> None:
    chosen = anchors[:number]
    nearest, distances = nearest_anchors(Csr.undirected(edges, NODES), np.array(chosen), count)
    reached = [distances_from(anchor, edges) for anchor in chosen]
    for node in range(NODES):
        expected = sorted((each[node], place) for place, each in enumerate(reached) if node in each)[:count]
        found = [(int(d), int(a)) for d, a in zip(distances[node], nearest[node], strict=True) if a >= 0]
        assert found == expected


@settings(max_examples=60, deadline=None)
@given(
    triples=arrays.arrays("int32", st.tuples(st.integers(0, 40), st.just(3)), elements=st.integers(0, 4)),
    count=st.integers(0, 4),
    bounds=st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted),
)
def test_relations_of_an_entity_are_counted(triples: np.ndarray, count: int, bounds: list[int]) -> None:
    low, high = bounds
    found = frequent_relations(triples, 5, count, low, high)
    assert found.shape == (high - low, count)
    for entity in range(low, high):
        times = Counter([r for h, r, _ in triples.tolist() if h == entity])
        times += Counter([r + 5 for _, r, t in triples.tolist() if t == entity])
        expected = sorted(times, key=lambda relation: (-times[relation], relation))[:count]
        assert [r for r in found[entity - low].tolist() if r >= 0] == expected


def test_anchors_are_the_most_connected_and_others_at_random() -> None:
    degrees = np.array([1, 9, 0, 7, 7, 2, 3, 5])
    assert choose_anchors(degrees, 3, 1.0, seed=0).tolist() == [1, 3, 4]
    drawn = [choose_anchors(degrees, 6, 0.5, seed).tolist() for seed in range(20)]
    assert all(anchors[:3] == [1, 3, 4] and len(set(anchors)) == 6 for anchors in drawn)
    assert {entity for anchors in drawn for entity in anchors[3:]} == {0, 2, 5, 6, 7}
    assert choose_anchors(degrees, 6, 0.5, seed=3).tolist() == drawn[3]
    assert sorted(choose_anchors(degrees, 8, 0.0, seed=0).tolist()) == list(range(8))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """a -r-> b -s-> c, b -r-> d; e is known from valid alone."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "train.tsv").write_text("a\tr\tb\nb\ts\tc\nb\tr\td\n")
    (folder / "valid.tsv").write_text("e\tr\ta\n")
    return Store.open(prepare(str(folder), str(folder / "store")).store)


def test_tokens_of_a_small_graph(path: Store) -> None:
    settings = NodePieceConfig(anchors=2, by_degree=1.0, nearest=2, relations=3)
    assert path.num_entities == 5
    vocabulary = Vocabulary.of(settings, 5, 2)
    assert (vocabulary.distances, vocabulary.first_relation, vocabulary.none, vocabulary.size) == (2, 18, 22, 23)
    tokens = entity_tokens(path, settings, 0, 5).tolist()
    a, b, c, d, e = (path.entity_id(label) for label in "abcde")
    r, s = (18 + path.relation_id(label) for label in "rs")
    assert tokens[b] == [0, tokens[b][1], 2, tokens[b][3], r, min(s, r + 2), max(s, r + 2)]  # b has most facts
    other = next(entity for entity in (a, c, d) if tokens[entity][2] == 2)  # the first of those with one
    assert other == min(a, c, d)
    for entity, relations in ((a, [r]), (c, [s + 2]), (d, [r + 2])):
        anchors = [1, 0, 2, 3] if entity == other else [0, 1, 3, 4]
        assert tokens[entity] == [*anchors, *relations, -1, -1]
    assert tokens[e] == [22, -1, -1, -1, -1, -1, -1]
    assert entity_tokens(path, settings, 1, 4).tolist() == tokens[1:4]


def test_distances_beyond_the_farthest_share_a_token(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("".join(f"{i}\tr\t{i + 1}\n" for i in range(30)))
    store = Store.open(prepare(str(tmp_path), str(tmp_path / "store")).store)
    settings = NodePieceConfig(anchors=1, by_degree=1.0, nearest=1, relations=0)
    tokens = entity_tokens(store, settings, 0, 31)
    assert sorted(tokens[:, 1].unique().tolist()) == list(range(1, 17))
