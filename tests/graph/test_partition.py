import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.graph import partition
from distkg.graph.csr import Csr
from distkg.graph.neighbourhoods import DglSampler
from distkg.graph.partition import (
    MissingDglError,
    Partitioner,
    choose_partitioner,
    equalised,
    ldg,
    metis,
    part_offsets,
)
from distkg.graph.walks import dgl_walks
from distkg.sharding.shards import Shards
from tests.with_dgl import HAS_DGL, needs_dgl

COMMUNITIES, MEMBERS = 8, 50


def communities(seed: int = 0, edges: int = 4000, inside: float = 0.9) -> np.ndarray:
    """Edges among 8 communities (node % 8) of 50 nodes; about nine in ten stay inside."""
    rng = np.random.default_rng(seed)
    n = COMMUNITIES * MEMBERS
    head = rng.integers(0, n, edges)
    same = rng.integers(0, MEMBERS, edges) * COMMUNITIES + head % COMMUNITIES
    return np.stack([head, np.where(rng.random(edges) < inside, same, rng.integers(0, n, edges))], axis=1)


def cut(edges: np.ndarray, assignment: np.ndarray) -> float:
    return float((assignment[edges[:, 0]] != assignment[edges[:, 1]]).mean())


def test_offsets_are_equal_ranges_with_the_remainder_last() -> None:
    assert part_offsets(10, 4).tolist() == [0, 3, 6, 9, 10]
    assert part_offsets(5, 4).tolist() == [0, 2, 4, 5, 5]


@given(n=st.integers(1, 1000), parts=st.integers(1, 50))
def test_partitions_are_the_shards_of_as_many_ranks(n: int, parts: int) -> None:
    shards = Shards(rows=n, size=parts)
    assert part_offsets(n, parts).tolist() == [0, *(shards.range(rank)[1] for rank in range(parts))]


@pytest.mark.parametrize("partitioner", [pytest.param(metis, marks=needs_dgl), ldg])
@pytest.mark.parametrize("parts", [2, 7, 8])
def test_parts_have_exactly_the_promised_sizes(partitioner: Partitioner, parts: int) -> None:
    assignment = partitioner(communities(), COMMUNITIES * MEMBERS, parts, seed=0)
    assert assignment.dtype == np.int32
    assert np.bincount(assignment).tolist() == np.diff(part_offsets(400, parts)).tolist()


@pytest.mark.parametrize("partitioner", [pytest.param(metis, marks=needs_dgl), ldg])
def test_communities_are_found(partitioner: Partitioner) -> None:
    edges = communities()
    found = partitioner(edges, COMMUNITIES * MEMBERS, COMMUNITIES, seed=1)
    shuffled = np.random.default_rng(1).permutation(found)
    planted = cut(edges, np.arange(COMMUNITIES * MEMBERS) % COMMUNITIES)
    assert cut(edges, shuffled) > 0.8  # seven in eight edges join different parts by chance
    assert cut(edges, found) < planted + 0.05


@pytest.mark.parametrize("partitioner", [pytest.param(metis, marks=needs_dgl), ldg])
def test_loops_and_parallel_edges_do_no_harm(partitioner: Partitioner) -> None:
    rng = np.random.default_rng(0)
    n = 135  # as UMLS: everything joins everything, often twice, and itself
    assignment = partitioner(rng.integers(0, n, (5216, 2)) ** 2 // n, n, 2, seed=0)
    assert np.bincount(assignment).tolist() == [68, 67]


def test_the_plain_partitioner_repeats_itself_under_a_seed() -> None:
    first, again, other = (ldg(communities(), 400, 4, seed) for seed in (5, 5, 6))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), parts=st.integers(1, 6), n=st.integers(6, 40))
def test_any_assignment_is_made_equal(seed: int, parts: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    lopsided = np.minimum(rng.integers(0, parts, n), rng.integers(0, parts, n)).astype(np.int32)
    result = equalised(lopsided, Csr.undirected(rng.integers(0, n, (2 * n, 2)), n), parts)
    assert np.bincount(result, minlength=parts).tolist() == np.diff(part_offsets(n, parts)).tolist()


def test_what_is_equal_already_stays() -> None:
    assignment = np.array([1, 0, 1, 0], dtype=np.int32)
    result = equalised(assignment, Csr.undirected(np.array([[0, 1], [2, 3]]), 4), 2)
    assert result.tolist() == [1, 0, 1, 0]


def test_the_loosest_node_moves_next_to_its_neighbour() -> None:
    edges = np.array([[0, 1], [1, 2], [0, 2], [3, 4], [3, 5]])
    assignment = np.array([0, 0, 0, 0, 1, 1], dtype=np.int32)
    assert equalised(assignment, Csr.undirected(edges, 6), 2).tolist() == [0, 0, 0, 1, 1, 1]


def test_metis_is_chosen_where_dgl_is_installed() -> None:
    assert choose_partitioner() == (("metis", metis) if HAS_DGL else ("ldg", ldg))


def test_the_plain_partitioner_is_chosen_without_dgl(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "dgl", None)
    assert choose_partitioner() == ("ldg", ldg)
    (said,) = caplog.messages
    assert said.startswith("partitions are made by ldg, not by METIS: DGL is not installed")


ONE_EDGE = np.array([[0, 1]])
DGL_USES = {
    "the partitioner ldg": lambda: metis(ONE_EDGE, 2, 2, 0),
    "data.sampler: compiled": lambda: DglSampler(ONE_EDGE[:, 0], ONE_EDGE[:, 1], 2)(np.array([0]), [1], 0),
    "negatives.options.sampler: compiled": lambda: dgl_walks(ONE_EDGE, 2),
}


@pytest.mark.parametrize("twin", DGL_USES)
def test_what_needs_dgl_names_its_twin_without_it(twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dgl", None)
    message = rf"DGL is not installed \(its wheels end at Python 3\.11\)\. Use {twin} instead, which does the same"
    with pytest.raises(MissingDglError, match=message):
        DGL_USES[twin]()


def test_a_dgl_that_does_not_load_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise FileNotFoundError("Cannot find DGL C++ library")

    monkeypatch.setattr(partition.importlib, "import_module", broken)
    assert choose_partitioner() == ("ldg", ldg)
    with pytest.raises(MissingDglError, match=r"does not work here \(FileNotFoundError: Cannot find DGL C\+\+ "):
        metis(ONE_EDGE, 2, 2, 0)
