"""How many requests a worker has under way, as many as are answered in time, and whether it waits for a late one.

Who draws may be slower than the training. Asked for everything, it would come late with everything; asked for less, it
is in time with that, and the step draws the rest itself.
"""

from __future__ import annotations


class CongestionWindow:
    """Grows by one after as many replies in time as it holds, and is halved when one is late, once for all that were
    asked before it was halved: the congestion window of TCP (Jacobson 1988)."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = float(most)
        self._latest = self._halved_at = -1

    def __len__(self) -> int:
        return int(self._size)

    def reset(self) -> None:
        """Start anew with a successor: what was asked before, and comes late, says nothing about it."""
        self._size = float(self._most)
        self._halved_at = self._latest

    def asked(self, number: int) -> None:
        """A request, their numbers rising, is on its way."""
        self._latest = number

    def in_time(self) -> None:
        """A reply was there when it was wanted."""
        self._size = min(float(self._most), self._size + 1 / self._size)

    def late(self, number: int) -> None:
        """The reply to that request was not there when it was wanted."""
        if number > self._halved_at:
            self._size = max(1.0, self._size / 2)
            self._halved_at = self._latest


class WaitPolicy:
    """Whether to wait for a late reply: not while waiting is mostly in vain, but for one in ``RETRY``."""

    RETRY, MEMORY = 16, 0.75

    def __init__(self) -> None:
        self._worth, self._passed = 1.0, 0

    def reset(self) -> None:
        """Start anew with a successor, of which nothing is known."""
        self._worth, self._passed = 1.0, 0

    def waits(self) -> bool:
        """Whether to wait for the late reply at hand."""
        self._passed += 1
        if self._worth < 0.5 and self._passed < self.RETRY:
            return False
        self._passed = 0
        return True

    def learn(self, came: bool) -> None:
        """Whether the reply that was waited for came."""
        self._worth = self.MEMORY * self._worth + (1 - self.MEMORY) * came
