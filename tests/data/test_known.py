import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distkg.data.store.known_answers import KnownAnswers

ENTITIES, RELATIONS = 6, 3
TRIPLES = st.lists(
    st.tuples(st.integers(0, ENTITIES - 1), st.integers(0, RELATIONS - 1), st.integers(0, ENTITIES - 1)), max_size=40
)


def as_dict(known: KnownAnswers) -> dict[int, list[int]]:
    spans = zip(known.offsets[:-1], known.offsets[1:], strict=True)
    return {int(key): known.answers[a:b].tolist() for key, (a, b) in zip(known.keys, spans, strict=True)}


def brute_force(triples: list[tuple[int, int, int]]) -> dict[int, list[int]]:
    answers: dict[int, set[int]] = {}
    for head, relation, tail in triples:
        answers.setdefault(head * 2 * RELATIONS + relation, set()).add(tail)
        answers.setdefault(tail * 2 * RELATIONS + relation + RELATIONS, set()).add(head)
    return {key: sorted(found) for key, found in sorted(answers.items())}


def test_a_triple_answers_two_queries() -> None:
    known = KnownAnswers.from_triples(np.array([[4, 1, 2], [4, 1, 0], [4, 1, 2]], dtype=np.int32), num_relations=3)
    # (4, 1) → 0, 2 has key 4·6+1; (0, 1+3) → 4 has key 4; (2, 1+3) → 4 has key 16.
    assert known.keys.tolist() == [4, 16, 25]
    assert known.offsets.tolist() == [0, 1, 2, 4]
    assert known.answers.tolist() == [4, 4, 0, 2]
    assert (known.keys.dtype, known.offsets.dtype, known.answers.dtype) == (np.int64, np.int64, np.int32)


def test_rows_of_known_and_unknown_queries() -> None:
    known = KnownAnswers.from_triples(np.array([[4, 1, 2], [4, 1, 0]]), num_relations=3)
    starts, ends = known.rows(np.array([4, 2, 0, 5, 0]), np.array([1, 4, 0, 5, 4]))
    assert (ends - starts).tolist() == [2, 1, 0, 0, 1]
    assert known.answers[starts[0] : ends[0]].tolist() == [0, 2]
    assert known.answers[starts[4] : ends[4]].tolist() == [4]


@given(triples=TRIPLES)
def test_all_answers_are_those_of_a_dictionary(triples: list[tuple[int, int, int]]) -> None:
    known = KnownAnswers.from_triples(np.array(triples, dtype=np.int32).reshape(-1, 3), RELATIONS)
    assert as_dict(known) == brute_force(triples)


@given(triples=TRIPLES, batch=st.integers(1, 10), seed=st.integers(0, 100))
def test_the_answers_of_some_queries_are_the_same_streamed(
    triples: list[tuple[int, int, int]], batch: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    queries = np.stack([rng.integers(0, ENTITIES, 8), rng.integers(0, 2 * RELATIONS, 8)], axis=1)
    table = np.array(triples, dtype=np.int32).reshape(-1, 3)
    batches = (table[start : start + batch] for start in range(0, len(table), batch))
    known = KnownAnswers.for_queries(batches, RELATIONS, queries)
    wanted = {int(anchor) * 2 * RELATIONS + int(relation) for anchor, relation in queries}
    assert as_dict(known) == {key: found for key, found in brute_force(triples).items() if key in wanted}
    starts, ends = known.rows(queries[:, 0], queries[:, 1])
    for (anchor, relation), start, end in zip(queries, starts, ends, strict=True):
        expected = brute_force(triples).get(int(anchor) * 2 * RELATIONS + int(relation), [])
        assert known.answers[start:end].tolist() == expected


def test_ids_too_large_for_one_integer_are_sorted_as_pairs() -> None:
    top, relations = 2**31 - 2, 2**20
    triples = np.array([[top, relations - 1, 3], [top, relations - 1, 1], [top, relations - 1, 3]], dtype=np.int32)
    known = KnownAnswers.from_triples(triples, relations)
    starts, ends = known.rows(np.array([top, 3]), np.array([relations - 1, 2 * relations - 1]))
    assert known.answers[starts[0] : ends[0]].tolist() == [1, 3]
    assert known.answers[starts[1] : ends[1]].tolist() == [top]


def test_nothing_is_known_of_an_empty_graph() -> None:
    known = KnownAnswers.from_triples(np.empty((0, 3), dtype=np.int32), RELATIONS)
    starts, ends = known.rows(np.array([0, 1]), np.array([0, 5]))
    assert (ends - starts).tolist() == [0, 0]
