"""Peaks of memory, counted by hand."""

from __future__ import annotations

import torch

from distkg.planning.peak import peak_bytes


def test_what_lives_at_the_same_time_counts() -> None:
    given = torch.zeros(1000)

    def work() -> None:
        first = given + 1  # 4,000 bytes
        second = first + 1  # 8,000
        del first  # 4,000
        third = second + 1  # 8,000
        third.add_(1)
        _ = third.view(10, 100)[2:]

    assert peak_bytes(work) == 8000


def test_what_was_there_before_does_not_count() -> None:
    given = torch.zeros(1000)
    assert peak_bytes(lambda: given.mul_(2)) == 0


def test_what_is_kept_for_gradients_counts() -> None:
    weight = torch.ones(100, requires_grad=True)

    def work() -> None:
        squares = [(weight * weight).exp() for _ in range(3)]  # 400 bytes each and their exponentials, which are kept
        torch.stack(squares).sum().backward()

    # Products are freed at once: three exponentials, one product beside the last.
    assert 3 * 400 <= peak_bytes(work) <= 3 * 400 + 6 * 400
    with torch.no_grad():
        assert peak_bytes(lambda: (weight * weight).exp()) == 800


def test_a_backward_pass_counts() -> None:
    weight = torch.ones(1000, requires_grad=True)
    assert peak_bytes(lambda: weight.sum()) == 4
    # The product is not kept: a sum, the gradient of it, and that of the weight.
    assert peak_bytes(lambda: (weight * 2).sum().backward()) == 4 + 4 + 4000
