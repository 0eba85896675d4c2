"""Random streams: what decides them, and what seeding them must not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from distkg.hashing import GAMMA, splitmix64
from distkg.randomness import CounterNumbers, GeneratorNumbers, Purpose, mixed_seed, seed_dropout, stream


def test_streams_differ_by_every_part() -> None:
    seeds = {
        mixed_seed(Purpose.ORDER, seed, epoch, rank) for seed in range(3) for epoch in range(3) for rank in range(3)
    }
    assert len(seeds) == 27
    assert stream(Purpose.ORDER, 1).initial_seed() != stream(Purpose.DROPOUT, 1).initial_seed()


def test_dropout_is_a_function_of_its_seed() -> None:
    def dropped(seed: int) -> torch.Tensor:
        seed_dropout(torch.device("cpu"), seed)
        return F.dropout(torch.ones(64), 0.5)

    first, second = dropped(7), dropped(8)
    assert torch.equal(first, dropped(7))
    assert not torch.equal(first, second)


def test_seeding_every_step_leaves_nothing_behind() -> None:
    waiting = len(torch.cuda._queued_calls)  # what torch.manual_seed would add to, with a stack, at every call
    for step in range(5):
        seed_dropout(torch.device("cpu"), step)
    assert len(torch.cuda._queued_calls) == waiting


def test_numbers_of_a_counter_are_the_published_ones() -> None:
    """The first outputs of SplitMix64 for the seed 1234567, from the reference implementation (Vigna 2015)."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    found = CounterNumbers(1234567, torch.device("cpu")).integers(1 << 62, (4,))
    assert found.tolist() == [(word >> 1) % (1 << 62) for word in published]


@given(seed=st.integers(0, (1 << 63) - 1), high=st.integers(1, 1 << 62), shape=st.tuples(*[st.integers(0, 5)] * 2))
def test_numbers_of_a_counter_are_those_of_numpy(seed: int, high: int, shape: tuple[int, int]) -> None:
    numbers, count = CounterNumbers(seed, torch.device("cpu")), shape[0] * shape[1]
    places = np.arange(1, 2 * count + 2, dtype=np.uint64)
    words = splitmix64(np.uint64(seed) + places * np.uint64(GAMMA))
    found = numbers.integers(high, shape), numbers.fraction(), numbers.floats(shape)
    assert found[0].flatten().tolist() == ((words[:count] >> np.uint64(1)) % np.uint64(high)).tolist()
    assert found[1] == int(words[count] >> np.uint64(11)) / 2**53
    assert found[2].flatten().tolist() == ((words[count + 1 :] >> np.uint64(40)) / 2**24).tolist()
    assert found[0].shape == found[2].shape == shape


@pytest.mark.parametrize(
    "numbers", [CounterNumbers(3, torch.device("cpu")), GeneratorNumbers(stream(Purpose.ORDER, 3))]
)
def test_numbers_are_in_their_range(numbers: CounterNumbers | GeneratorNumbers) -> None:
    """Of 4,000 integers below 10, each occurs about 400 times: five standard deviations are 95."""
    counts = torch.bincount(numbers.integers(10, (40, 100)).flatten(), minlength=10)
    assert counts.sum() == 4000
    assert 305 < counts.min() <= counts.max() < 495
    floats = torch.cat([numbers.floats((4000,)), torch.tensor([numbers.fraction()])])
    assert 0 <= floats.min() < floats.max() < 1
    assert abs(float(floats.mean()) - 0.5) < 0.023  # five standard deviations
