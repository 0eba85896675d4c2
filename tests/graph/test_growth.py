"""Two grown sides of a graph, and connected parts counted slowly."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distkg.graph.growth import grow_two_sides, largest_component

EDGES = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=40)


def array(edges: list[tuple[int, int]]) -> np.ndarray:
    return np.array(edges, np.int64).reshape(-1, 2)


@given(EDGES, EDGES, st.integers(0, 15), st.integers(0, 99), st.integers(0, 3), st.integers(1, 4))
def test_sides_have_the_sizes_asked_for(
    one: list[tuple[int, int]], other: list[tuple[int, int]], first: int, seed: int, steps: int, fanout: int
) -> None:
    side = grow_two_sides((array(one), array(other)), 15, first, seed, steps, fanout)
    assert np.bincount(side, minlength=2).tolist() == [first, 15 - first]
    again = grow_two_sides((array(one), array(other)), 15, first, seed, steps, fanout)
    assert side.tolist() == again.tolist()


def test_neighbours_stay_together() -> None:
    # 200 rings of ten entities: four steps from a start reach nine of a ring, so nearly all facts stay whole.
    ring = np.array([[10 * r + i, 10 * r + (i + 1) % 10] for r in range(200) for i in range(10)])
    side = grow_two_sides((ring, ring), 2000, 1000, seed=1, steps=5)
    kept = np.mean(side[ring[:, 0]] == side[ring[:, 1]])
    assert kept > 0.99
    by_chance = grow_two_sides((ring, ring), 2000, 1000, seed=1, steps=0)
    assert 0.4 < np.mean(by_chance[ring[:, 0]] == by_chance[ring[:, 1]]) < 0.6


def test_each_side_grows_along_its_own_edges() -> None:
    # Side 0 may only follow chains, side 1 only chords; a side's patches are then joined by its own edges.
    chain = np.array([[i, i + 1] for i in range(0, 4000, 2)])
    chord = np.array([[i, 3999 - i] for i in range(2000)])
    side = grow_two_sides((chain, chord), 4000, 2000, seed=3, steps=1)
    own = [np.mean(side[each[side[each[:, 0]] == place]][:, 1] == place) for place, each in enumerate((chain, chord))]
    assert min(own) > 0.6  # a half by chance


def test_fanout_bounds_a_step() -> None:
    # 50 stars of 20 leaves. From a leaf, a step leads to its hub, and the next to all other leaves, or to three.
    star = np.array([[21 * s, 21 * s + leaf] for s in range(50) for leaf in range(1, 21)])

    def kept(fanout: int) -> float:
        side = grow_two_sides((star, star), 1050, 525, seed=1, steps=2, fanout=fanout)
        return float(np.mean(side[star[:, 0]] == side[star[:, 1]]))

    assert kept(20) > 0.95
    assert kept(3) < 0.75


@given(EDGES, st.integers(15, 18))
def test_the_largest_part_as_found_slowly(edges: list[tuple[int, int]], nodes: int) -> None:
    parts = [{node} for node in range(nodes)]
    for a, b in edges:
        one, other = (next(part for part in parts if node in part) for node in (a, b))
        if one is not other:
            parts.remove(other)
            one |= other
    assert largest_component(array(edges), nodes) == max(map(len, parts))


def test_no_nodes_have_no_part() -> None:
    assert largest_component(array([]), 0) == 0
