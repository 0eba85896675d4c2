"""How many requests are under way, against the sequence written by hand and in a simulation of a slow drawer."""

from __future__ import annotations

from collections import deque

import pytest

from distkg.negatives.prefetch.congestion_window import CongestionWindow, WaitPolicy


def test_it_is_halved_once_for_all_that_were_asked_before_and_grows_by_one_in_its_length() -> None:
    window = CongestionWindow(8)
    for number in range(8):
        window.asked(number)
    sizes = [len(window)]
    for number in (0, 1, 2):
        window.late(number)
        sizes.append(len(window))
    window.asked(8)
    window.late(8)
    sizes.append(len(window))
    for _ in range(3):
        window.in_time()  # 2 + 1/2, + 2/5, + 1/2.9
        sizes.append(len(window))
    assert sizes == [8, 4, 4, 4, 2, 2, 2, 3]


def test_it_stays_between_one_and_the_most() -> None:
    window = CongestionWindow(2)
    for _ in range(5):
        window.in_time()
    assert len(window) == 2
    for number in range(5):
        window.asked(number)
        window.late(number)
    assert len(window) == 1


def delivered_share(seconds_per_draw: float, steps: int, depth: int = 16, most: int = 32) -> float:
    """Of steps that take a second each, asking ``depth`` steps ahead; one drawer, first come, first served."""
    window, under_way, abandoned = CongestionWindow(most), {}, deque[float]()
    free, delivered = 0.0, 0
    for step in range(steps):
        while abandoned and abandoned[0] <= step:
            abandoned.popleft()
        if len(under_way) + len(abandoned) < len(window):
            free = max(free, float(step)) + seconds_per_draw
            under_way[step + depth] = free
            window.asked(step + depth)
        done = under_way.pop(step, None)
        if done is None:
            continue
        if done <= step:
            window.in_time()
            delivered += 1
        else:
            window.late(step)
            abandoned.append(done)
    return delivered / steps


@pytest.mark.parametrize(("slowness", "least"), [(0.5, 0.99), (0.9, 0.99), (1.5, 0.5), (3.0, 0.25), (8.0, 0.06)])
def test_a_slow_drawer_delivers_most_of_what_it_can(slowness: float, least: float) -> None:
    # Without a window one that is 1.5 times too slow would be late with everything.
    assert least <= delivered_share(slowness, 4000) <= min(1.0, 1 / slowness)


def test_without_it_everything_would_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CongestionWindow, "late", lambda self, number: None)
    assert delivered_share(3.0, 4000) < 0.01


def test_patience_ends_while_waiting_is_in_vain_and_is_tried_again_now_and_then() -> None:
    patience, waited = WaitPolicy(), []
    for number in range(90):
        waits = patience.waits()
        waited.append(waits)
        if waits:
            patience.learn(number >= 40)
    # 1, 3/4, 9/16, 27/64: three in vain are enough; then one in sixteen, until two of those paid.
    assert [number for number, waits in enumerate(waited[:66]) if waits] == [0, 1, 2, 18, 34, 50]
    assert all(waited[66:])
