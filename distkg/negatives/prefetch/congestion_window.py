"""Congestion control of a worker's requests to an actor, and the policy of waiting for late replies.

An actor may be slower than training. If it got all requests, all replies would be late; with fewer requests, their
replies are in time, and the step draws the rest itself.
"""

from __future__ import annotations


class CongestionWindow:
    """Congestion window of TCP (Jacobson 1988): the maximum number of pending requests to an actor.

    It grows by one after as many replies in time as its size. A late reply halves it; late replies to requests from
    before the last halving have no further effect.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = float(most)
        self._latest = self._halved_at = -1

    def __len__(self) -> int:
        return int(self._size)

    def reset(self) -> None:
        """Start anew with a restarted actor: late replies to earlier requests no longer count."""
        self._size = float(self._most)
        self._halved_at = self._latest

    def asked(self, number: int) -> None:
        """Record that a request was sent; numbers increase."""
        self._latest = number

    def in_time(self) -> None:
        """Record that a reply was in time, and widen the window."""
        self._size = min(float(self._most), self._size + 1 / self._size)

    def late(self, number: int) -> None:
        """Record that the reply to a request was late, and halve the window."""
        if number > self._halved_at:
            self._size = max(1.0, self._size / 2)
            self._halved_at = self._latest


class WaitPolicy:
    """Policy that decides whether to wait for a late reply: if most waits succeed always, else one in ``RETRY``."""

    RETRY, MEMORY = 16, 0.75

    def __init__(self) -> None:
        self._worth, self._passed = 1.0, 0

    def reset(self) -> None:
        """Start anew with a restarted actor."""
        self._worth, self._passed = 1.0, 0

    def waits(self) -> bool:
        """Return whether to wait for the current late reply."""
        self._passed += 1
        if self._worth < 0.5 and self._passed < self.RETRY:
            return False
        self._passed = 0
        return True

    def learn(self, came: bool) -> None:
        """Record whether the awaited reply came in time."""
        self._worth = self.MEMORY * self._worth + (1 - self.MEMORY) * came
