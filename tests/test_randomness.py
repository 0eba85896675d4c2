"""Random streams: what decides them, and what seeding them must not do."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from distkg.randomness import Purpose, mixed_seed, seed_dropout, stream


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
