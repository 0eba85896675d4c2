"""Short messages between processes of one machine, through pipes: a waiting process sleeps, a lost one is noticed.

A message costs two system calls. Gloo would wake a thread at either end for it, half a millisecond on a busy core.
"""

from __future__ import annotations

import os
import select
import struct
import weakref

TIMEOUT_S = 1800.0
"""As long as a collective of torch.distributed waits."""

_MESSAGE = struct.Struct("qq")


class Inbox:
    """The reading end of a pipe from one peer: pairs (number of a collective, value), in any order of numbers."""

    def __init__(self, peer: int, timeout: float = TIMEOUT_S) -> None:
        self._reads, self.writes = os.pipe()  # processes that this one starts do not inherit it
        self._peer, self._timeout = peer, timeout
        self._early: dict[int, int] = {}
        self._poll = select.poll()
        self._poll.register(self._reads, select.POLLIN)
        self._close_writes = weakref.finalize(self, os.close, self.writes)
        weakref.finalize(self, os.close, self._reads)

    def opened(self) -> None:
        """The peer holds the writing end: from now on its death closes the pipe."""
        self._close_writes()

    def receive(self, number: int) -> int:
        """Block until the value of a collective is here.

        Raises:
            RuntimeError: the peer is gone, or silent for too long.
        """
        while number not in self._early:
            arrived, value = self._next()
            self._early[arrived] = value
        return self._early.pop(number)

    def _next(self) -> tuple[int, int]:
        if not self._poll.poll(1e3 * self._timeout):
            raise RuntimeError(f"worker {self._peer} has said nothing for {self._timeout:g} s: it hangs")
        message = os.read(self._reads, _MESSAGE.size)
        if len(message) < _MESSAGE.size:
            raise RuntimeError(f"worker {self._peer} is gone: it closed its pipe to this worker")
        number, value = _MESSAGE.unpack(message)
        return number, value


class Outbox:
    """The writing end of a peer's :class:`Inbox`."""

    def __init__(self, peer: int, path: str) -> None:
        """Raises OSError where the path is not a pipe that this process may write."""
        self._peer = peer
        self._writes = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._writes, True)
        weakref.finalize(self, os.close, self._writes)

    def send(self, number: int, value: int) -> None:
        """Hand over a value; it fits into the pipe as long as the peer is not thousands of messages behind.

        Raises:
            RuntimeError: the peer is gone.
        """
        try:
            os.write(self._writes, _MESSAGE.pack(number, value))  # whole: shorter than PIPE_BUF
        except BrokenPipeError:
            raise RuntimeError(f"worker {self._peer} is gone: it closed its pipe from this worker") from None
