"""Types and distances of entities, found block by block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distkg.negatives.dans import clusters
from distkg.negatives.dans.clusters import default_kinds, nearest_centres, sampled_entities, spread, two_nearest


@given(rows=st.integers(0, 30), seed=st.integers(0, 1000), block=st.integers(1, 7))
def test_blocks_find_what_the_whole_matrix_of_distances_shows(rows: int, seed: int, block: int) -> None:
    random = torch.Generator().manual_seed(seed)
    vectors, centres = (torch.randn(count, 3, generator=random) for count in (rows, 4))
    distances = (vectors[:, None] - centres[None]).norm(dim=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "_ROWS_AT_ONCE", block)
        assert nearest_centres(vectors, centres).tolist() == distances.argmin(1).tolist()
        found = two_nearest(centres, vectors)
    padded = torch.cat([distances.T, torch.full((4, 2), torch.inf)], 1)
    torch.testing.assert_close(found, padded.sort(dim=1).values[:, :2], rtol=1e-4, atol=1e-5)


def test_by_hand() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    rows = torch.tensor([[1.0, 0.0], [9.0, 0.0], [4.0, 3.0]])
    assert nearest_centres(rows, centres).tolist() == [0, 1, 0]
    torch.testing.assert_close(two_nearest(centres, rows), torch.tensor([[1.0, 5.0], [1.0, 45**0.5]]))


def test_ids_are_spread_evenly_from_the_first_to_the_last() -> None:
    assert spread(5, 21).tolist() == [0, 5, 10, 15, 20]
    assert spread(9, 4).tolist() == [0, 1, 2, 3]
    assert spread(1, 7).tolist() == [0]
    last = spread(100_000, 86_000_000)
    assert (int(last[0]), int(last[-1]), len(last.unique())) == (0, 85_999_999, 100_000)


def test_a_graph_of_usual_size_is_sampled_whole_and_a_large_one_as_far_as_faiss_looks() -> None:
    assert default_kinds(10_000_000) == 1581
    assert sampled_entities(65_536, default_kinds(65_536)).tolist() == list(range(65_536))
    assert len(sampled_entities(10_000_000, 1581)) == 256 * 1581
