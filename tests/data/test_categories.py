import numpy as np

from distkg.data.store.relation_categories import answers_per_query, relation_categories


def test_the_four_categories_and_an_unused_relation() -> None:
    one_one = [(0, 0, 5), (1, 0, 6), (2, 0, 7)]
    one_many = [(0, 1, 5), (0, 1, 6), (1, 1, 7), (1, 1, 8)]
    many_one = [(5, 2, 0), (6, 2, 0), (7, 2, 1), (8, 2, 1)]
    many_many = [(0, 3, 5), (0, 3, 6), (1, 3, 5), (1, 3, 6)]
    triples = np.array(one_one + one_many + many_one + many_many, dtype=np.int32)
    assert relation_categories(triples, 5) == ["1-1", "1-n", "n-1", "n-n", "1-1"]


def test_one_and_a_half_counts_as_many() -> None:
    # Three facts over two heads: 1.5 tails a head. Four over three: 1.33.
    assert relation_categories(np.array([[0, 0, 5], [0, 0, 6], [1, 0, 7]]), 1) == ["1-n"]
    assert relation_categories(np.array([[0, 0, 5], [0, 0, 6], [1, 0, 7], [2, 0, 8]]), 1) == ["1-1"]


def test_means_of_tails_and_heads() -> None:
    triples = np.array([[0, 0, 5], [0, 0, 6], [1, 0, 7], [2, 0, 7], [3, 2, 5]], dtype=np.int32)
    tails_per_head, heads_per_tail = answers_per_query(triples, 3)
    assert tails_per_head.tolist() == [4 / 3, 0, 1]
    assert heads_per_tail.tolist() == [4 / 3, 0, 1]
    assert answers_per_query(triples[:2], 1)[0].tolist() == [2]
