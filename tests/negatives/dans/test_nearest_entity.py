"""From vectors to entities: a brute-force search, and hardness that falls with noise where the nearest would not."""

from __future__ import annotations

import math

import pytest
import torch

from distkg.negatives.dans.nearest_entity import MOST, nearest_of_some, some_entities


def test_without_noise_it_is_the_nearest_that_is_wrong() -> None:
    candidates = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [4.0, 4.0]])
    vectors = torch.tensor([[[0.9, 0.1], [0.1, 2.0]], [[5.0, 5.0], [0.0, 0.0]]])
    wrong = torch.tensor([[True, False, True, True], [False, False, False, False]])
    found = nearest_of_some(vectors, torch.full((2, 2), 1e-3), candidates, wrong, torch.Generator().manual_seed(0))
    assert found.tolist() == [[0, 2], [-1, -1]]


def test_it_is_the_nearest_of_those_seen_as_a_plain_loop_finds_it() -> None:
    generator = torch.Generator().manual_seed(3)
    vectors, candidates = torch.randn(9, 4, 5, generator=generator), torch.randn(12, 5, generator=generator)
    wrong = torch.rand(9, 12, generator=generator) < 0.6
    noise = torch.rand(9, 4, generator=generator).clamp_min(0.05)
    starts = torch.randint(12, (9, 4), generator=torch.Generator().manual_seed(4))
    found = nearest_of_some(vectors, noise, candidates, wrong, torch.Generator().manual_seed(4))
    for i in range(9):
        for j in range(4):
            seen = min(12, math.ceil(1 / float(noise[i, j])))
            circle = [(int(starts[i, j]) + step) % 12 for step in range(seen)]
            distance = {c: float((vectors[i, j] - candidates[c]).norm()) for c in circle if wrong[i, c]}
            assert int(found[i, j]) == (min(distance, key=lambda c: distance[c]) if distance else -1)


def test_noise_leaves_so_many_candidates_to_choose_from() -> None:
    candidates = torch.arange(40.0)[:, None]
    vectors = torch.zeros(3000, 1, 1)
    wrong, generator = torch.ones(3000, 40, dtype=torch.bool), torch.Generator().manual_seed(1)
    # Of k consecutive places round a circle of 40 the lowest is 0 with chance k / 40, else where they start.
    for noise, seen in ((0.5, 2), (0.1, 10), (0.101, 10)):
        found = nearest_of_some(vectors, torch.full((3000, 1), noise), candidates, wrong, generator)[:, 0]
        counts = torch.bincount(found, minlength=40)
        assert counts[0] == pytest.approx(3000 * seen / 40, rel=0.15)
        assert int(found.max()) == 40 - seen
        assert bool((counts[: 41 - seen] > 0).all())


def test_bands_differ_in_hardness_where_the_nearest_does_not() -> None:
    generator = torch.Generator().manual_seed(2)
    entities, width = 400, 256
    table = torch.randn(entities, width, generator=generator)
    table[:100] = table[0] + 0.7 * table[:100]  # entities like the answer, 0
    answer = table[:1].expand(500, -1)
    noise = torch.tensor([0.01, 0.03, 0.1, 0.5])
    vectors = torch.stack(
        [(1 - n).sqrt() * answer + n.sqrt() * torch.randn(500, width, generator=generator) for n in noise], dim=1
    )
    wrong = torch.ones(500, entities, dtype=torch.bool)
    wrong[:, 0] = False
    distance = (table - table[0]).norm(dim=1)
    nearest = torch.cdist(vectors.flatten(0, 1), table[1:]).argmin(1).view(500, 4) + 1
    assert distance[nearest].mean(0).amax() < 1.08 * distance[nearest].mean(0).amin(), "the nearest stays near"
    found = nearest_of_some(vectors, noise.expand(500, -1), table, wrong, generator)
    hardness = distance[found].mean(0)
    assert bool((hardness[1:] > 1.02 * hardness[:-1]).all())


def test_of_few_entities_all_are_looked_at() -> None:
    generator = torch.Generator().manual_seed(0)
    assert some_entities(30, generator).sort().values.tolist() == list(range(30))
    many = some_entities(10**6, generator)
    assert len(many) == MOST
    assert 0 <= int(many.min()) <= int(many.max()) < 10**6
