"""Numbers as quantile bins, against ranks counted slowly, and vectors that mean the same in every graph."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distkg.data.tokens.entity_values import Numbers
from distkg.data.tokens.numeric_tokens import numeric_codebook, numeric_tokens


def numbers(*rows: tuple[int, str, float]) -> Numbers:
    names = list(dict.fromkeys(name for _, name, _ in rows))
    entity, attribute, value = zip(*((e, names.index(name), v) for e, name, v in rows), strict=True)
    return Numbers(np.array(entity, np.int32), np.array(attribute, np.int32), np.array(value, float), names, 3, "x")


def test_quantile_bins_by_hand() -> None:
    # height: quantiles 1/8, 3/8, 5/8, 7/8 in two bins; age is told of twice, with equal values in the middle.
    rows = [(0, "age", 30.0), (3, "age", 30.0)]
    rows += [(0, "height", 1.7), (1, "height", 1.5), (2, "height", 2.0), (2, "height", 1.8)]
    found, attributes = numeric_tokens(numbers(*rows), 5, bins=2)
    assert attributes == ["height", "age"]  # the commoner first
    assert found.values.to_pylist() == [[3, 0], [0], [1, 1], [3], []]
    assert (found.unknown, found.example) == (3, "x")


def test_attributes_as_common_are_ordered_by_name() -> None:
    _, attributes = numeric_tokens(numbers((0, "b", 1.0), (0, "a", 2.0), (1, "c", 1.0), (1, "c", 0.0)), 2, bins=3)
    assert attributes == ["c", "a", "b"]


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.integers(1, 7))
def test_bins_as_ranks_counted_slowly(values: list[int], bins: int) -> None:
    found, _ = numeric_tokens(numbers(*((place, "a", float(v)) for place, v in enumerate(values))), len(values), bins)
    for value, tokens in zip(values, found.values.to_pylist(), strict=True):
        twice_below = sum(2 * (other < value) + (other == value) for other in values)
        assert tokens == [min(twice_below * bins // (2 * len(values)), bins - 1)]


def test_vectors_depend_on_name_and_bin_alone() -> None:
    here = numeric_codebook(["geo.longitude", "born"], 16)
    there = numeric_codebook(["weight", "born", "http://x.org/geoLongitude"], 16)
    assert here.shape == (32, 48)
    assert here[16:].tolist() == there[16:32].tolist()
    assert here[:16].tolist() == there[32:].tolist()  # the same words


def test_close_bins_are_close_and_names_are_apart() -> None:
    found = numeric_codebook(["longitude", "population"], 16)
    names, places = found[:, :32], found[:, 32:]
    assert np.allclose(np.linalg.norm(names, axis=1), 1)
    assert abs(names[0] @ names[16]) < 0.5
    gram = places[:16] @ places[:16].T
    assert gram[3, 3] > gram[3, 4] > abs(gram[3, 9])
    assert (
        np.linalg.matrix_rank(places[:16] - places[:16].mean(axis=0)) == 15
    )  # any function of the bin is linear in them
