import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distkg.data.store.relation_categories import QueryCounts, count_queries


def counted(triples: np.ndarray, relations: int) -> QueryCounts:
    return count_queries(lambda: [triples], len(triples), relations)


def test_the_four_categories_and_an_unused_relation() -> None:
    one_one = [(0, 0, 5), (1, 0, 6), (2, 0, 7)]
    one_many = [(0, 1, 5), (0, 1, 6), (1, 1, 7), (1, 1, 8)]
    many_one = [(5, 2, 0), (6, 2, 0), (7, 2, 1), (8, 2, 1)]
    many_many = [(0, 3, 5), (0, 3, 6), (1, 3, 5), (1, 3, 6)]
    triples = np.array(one_one + one_many + many_one + many_many, dtype=np.int32)
    assert counted(triples, 5).categories() == ["1-1", "1-n", "n-1", "n-n", "1-1"]


def test_one_and_a_half_counts_as_many() -> None:
    # Three facts over two heads: 1.5 tails a head. Four over three: 1.33.
    assert counted(np.array([[0, 0, 5], [0, 0, 6], [1, 0, 7]]), 1).categories() == ["1-n"]
    assert counted(np.array([[0, 0, 5], [0, 0, 6], [1, 0, 7], [2, 0, 8]]), 1).categories() == ["1-1"]


def test_means_of_tails_and_heads() -> None:
    triples = np.array([[0, 0, 5], [0, 0, 6], [1, 0, 7], [2, 0, 7], [3, 2, 5]], dtype=np.int32)
    tails_per_head, heads_per_tail = counted(triples, 3).answers_per_query()
    assert tails_per_head.tolist() == [4 / 3, 0, 1]
    assert heads_per_tail.tolist() == [4 / 3, 0, 1]
    assert counted(triples[:2], 1).answers_per_query()[0].tolist() == [2]


@given(
    seed=st.integers(0, 1000),
    facts=st.integers(1, 300),
    ranks=st.integers(1, 3),
    part_bytes=st.sampled_from([16, 64, 999]),
)
def test_counts_in_parts_and_by_several_ranks_add_up(seed: int, facts: int, ranks: int, part_bytes: int) -> None:
    rng = np.random.default_rng(seed)
    triples = np.stack([rng.integers(0, 9, facts), rng.integers(0, 3, facts), rng.integers(0, 9, facts)], 1)
    triples = np.unique(triples, axis=0).astype(np.int32)
    stream = lambda: np.array_split(triples, 3)  # noqa: E731
    parts = [
        count_queries(stream, len(triples), 3, rank=rank, ranks=ranks, part_bytes=part_bytes) for rank in range(ranks)
    ]
    pairs = {(h, r) for h, r, _ in triples.tolist()} | {(t, r + 3) for _, r, t in triples.tolist()}
    expected = [sum(relation == r for _, relation in pairs) for r in range(6)]
    assert sum(part.queries for part in parts).tolist() == expected
    assert sum(part.facts for part in parts).tolist() == [(triples[:, 1] == r).sum() for r in range(3)]
