"""Examples of relations and what lies around them: by hand, against plain loops, and with facts hidden."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distkg.graph.examples import ExampleSampler, Surrounding

Fact = tuple[int, int, int]
ENTITIES, RELATIONS = 7, 3

# 5 → 0 → 1 → 2 → 3 → 4 by relations 2, 0, 1, 1, 1, and a loop at 6.
CHAIN = [(5, 2, 0), (0, 0, 1), (1, 1, 2), (2, 1, 3), (3, 1, 4), (6, 0, 6)]

facts_of_a_graph = st.sets(
    st.tuples(st.integers(0, ENTITIES - 1), st.integers(0, RELATIONS - 1), st.integers(0, ENTITIES - 1)),
    min_size=1,
    max_size=25,
)


def sampler(facts: list[Fact], hops: int = 2, fanout: int = 100, seed: int = 0) -> ExampleSampler:
    return ExampleSampler(np.array(facts), ENTITIES, RELATIONS, hops=hops, fanout=fanout, seed=seed)


def facts_at(own: ExampleSampler, places: np.ndarray) -> list[Fact]:
    return [(int(own.head[place]), int(own.relation[place]), int(own.tail[place])) for place in places]


def place_of(own: ExampleSampler, fact: Fact) -> int:
    return facts_at(own, np.arange(len(own.head))).index(fact)


def hiding(own: ExampleSampler, facts: set[Fact]) -> np.ndarray:
    head, relation, tail = np.array(sorted(facts), dtype=np.int64).reshape(-1, 3).T
    return own.hidden(head, relation, tail)


def as_read(own: ExampleSampler, found: Surrounding) -> tuple[list[Fact], dict[int, tuple[int, int]]]:
    """Its facts, and the distances of its entities; both ways in which facts are told are compared on the way."""
    nodes, facts = found.nodes, facts_at(own, found.facts)
    ends = [(head, tail) for head, _, tail in facts]
    assert ends == list(zip(nodes[found.head].tolist(), nodes[found.tail].tolist(), strict=True))
    distances = zip(found.from_head.tolist(), found.from_tail.tolist(), strict=True)
    return facts, dict(zip(nodes.tolist(), distances, strict=True))


def test_the_surroundings_of_a_fact_written_by_hand() -> None:
    own = sampler(CHAIN)
    found = own.around(place_of(own, (0, 0, 1)))
    facts, distances = as_read(own, found)
    assert facts == [(0, 0, 1), (1, 1, 2), (2, 1, 3), (5, 2, 0)]
    assert found.nodes[:2].tolist() == [0, 1]
    # Entity 3 is three steps from the head, which is more than two.
    assert distances == {0: (0, 1), 1: (1, 0), 5: (1, 2), 2: (2, 1), 3: (2, 2)}


def test_a_loop_has_one_end() -> None:
    own = sampler(CHAIN)
    assert as_read(own, own.around(place_of(own, (6, 0, 6)))) == ([(6, 0, 6)], {6: (0, 0)})


def test_facts_told_twice_count_once() -> None:
    own = sampler([*CHAIN, *CHAIN])
    assert facts_at(own, own.examples(1, 10)) == facts_at(sampler(CHAIN), sampler(CHAIN).examples(1, 10))
    assert sorted(facts_at(own, np.arange(len(own.head)))) == sorted(CHAIN)


def mixed(*parts: int) -> int:
    """SplitMix64's finaliser over each part, in whole numbers below 2**64."""
    state = 0
    for part in parts:
        state = ((state ^ part) + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state


def plain_around(
    seen: set[Fact], example: Fact, hops: int, fanout: int, seed: int
) -> tuple[list[Fact], dict[int, tuple[int, int]]]:
    """As the module says it, in loops over all facts."""
    found, met, front = {example}, {example[0], example[2]}, {example[0], example[2]}
    for _ in range(hops):
        new: set[Fact] = set()
        for entity in front:
            touching = [fact for fact in seen if entity in (fact[0], fact[2])]
            new |= set(sorted(touching, key=lambda fact: mixed(seed, *fact))[:fanout])
        found |= new
        front = {end for fact in new for end in (fact[0], fact[2])} - met
        met |= front
    distances = {entity: [hops, hops] for entity in met}
    for side, start in enumerate((example[0], example[2])):
        distances[start][side] = 0
        for _ in range(hops):
            for head, _, tail in found:
                for here, there in ((head, tail), (tail, head)):
                    distances[there][side] = min(distances[there][side], distances[here][side] + 1)
    return sorted(found, key=lambda fact: (fact[1], fact[0], fact[2])), {e: (a, b) for e, (a, b) in distances.items()}


@given(facts_of_a_graph, st.integers(1, 3), st.integers(1, 4), st.integers(0, 5), st.data())
def test_surroundings_are_those_of_plain_loops(facts: set[Fact], hops: int, fanout: int, seed: int, data) -> None:  # type: ignore[no-untyped-def]
    own = sampler(sorted(facts), hops, fanout, seed)
    example = data.draw(st.sampled_from(sorted(facts)))
    hidden = data.draw(st.sets(st.sampled_from(sorted(facts)))) - {example}
    found = own.around(place_of(own, example), hiding(own, hidden))
    assert as_read(own, found) == plain_around(facts - hidden, example, hops, fanout, seed)


@given(facts_of_a_graph, st.integers(1, 3), st.integers(0, 5), st.sampled_from([0, 1, 2**62]), st.data())
def test_examples_are_those_with_the_smallest_hashes(facts: set[Fact], count: int, seed: int, draw: int, data) -> None:  # type: ignore[no-untyped-def]
    own = sampler(sorted(facts), seed=seed)
    hidden = data.draw(st.sets(st.sampled_from(sorted(facts))))
    for relation in range(RELATIONS):
        left = [fact for fact in facts - hidden if fact[1] == relation]
        expected = sorted(left, key=lambda fact: mixed_with(mixed(seed, *fact), draw))[:count]
        assert facts_at(own, own.examples(relation, count, hiding(own, hidden), draw)) == expected


def mixed_with(state: int, part: int) -> int:
    """As ``mixed``, from a state on: its own first step is from 0."""
    return mixed(state ^ part)


@given(facts_of_a_graph, st.integers(1, 3), st.integers(1, 3), st.sampled_from([0, 7]), st.data())
def test_hiding_facts_gives_what_the_graph_without_them_gives(
    facts: set[Fact],
    fanout: int,
    count: int,
    draw: int,
    data,  # type: ignore[no-untyped-def]
) -> None:
    hidden = data.draw(st.sets(st.sampled_from(sorted(facts)), max_size=len(facts) - 1))
    whole, rest = sampler(sorted(facts), fanout=fanout), sampler(sorted(facts - hidden), fanout=fanout)
    relations = range(RELATIONS)
    whole.surroundings(relations, count)  # which are kept, and must not be used where they are touched
    mask = hiding(whole, hidden)
    for found, expected in zip(
        whole.surroundings(relations, count, mask, draw), rest.surroundings(relations, count, None, draw), strict=True
    ):
        assert [as_read(whole, one) for one in found] == [as_read(rest, one) for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one.nodes, other.nodes), "numbered alike too"


def test_what_nothing_hidden_touches_is_kept() -> None:
    own = sampler([*CHAIN, (4, 2, 3)], hops=1)
    first = own.surroundings([0, 1, 2], 5)
    untouched = own.surroundings([0, 1, 2], 5, hiding(own, {(6, 0, 6)}))
    assert untouched[1] is first[1]
    assert untouched[2] is first[2]
    assert [facts_at(own, one.facts) for one in untouched[0]] == [[(0, 0, 1), (1, 1, 2), (5, 2, 0)]]
    # Hiding one of those seen changes them for this question only.
    changed = own.surroundings([0], 5, hiding(own, {(1, 1, 2)}))[0]
    assert sorted(facts_at(own, one.facts) for one in changed) == [[(0, 0, 1), (5, 2, 0)], [(6, 0, 6)]]
    assert own.surroundings([0], 5)[0] is first[0]


def test_a_full_store_of_surroundings_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distkg.graph.examples.MOST_KEPT", 2)
    own = sampler(CHAIN)
    (first, second) = own.surroundings([0, 1], 5)
    own.surroundings([2], 5)
    assert own.surroundings([1], 5)[0] is second
    assert own.surroundings([0], 5)[0] is not first


def test_every_fact_of_a_relation_is_as_likely() -> None:
    own = sampler([(entity, 0, 6) for entity in range(6)])
    counts = np.zeros(len(own.head))
    for draw in range(3000):
        counts[own.examples(0, 2, draw=draw)] += 1
    assert counts == pytest.approx(np.full(6, 1000), rel=0.1)


def test_a_relation_without_visible_facts_has_no_examples() -> None:
    own = sampler(CHAIN)
    assert own.surroundings([2], 5, hiding(own, {(5, 2, 0)})) == [[]]


def test_it_works_where_its_arrays_are_mapped_read_only() -> None:
    own, mapped = sampler(CHAIN), sampler(CHAIN)
    for value in vars(mapped).values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    mask = hiding(mapped, {(6, 0, 6)})
    found, expected = (one.surroundings(range(RELATIONS), 5, mask, draw=1) for one in (mapped, own))
    assert [[as_read(mapped, one) for one in each] for each in found] == [
        [as_read(own, one) for one in each] for each in expected
    ]
