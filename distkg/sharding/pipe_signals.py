"""Short messages between processes of one machine, through pipes: waiting is passive, and a lost peer is detected.

A message costs two system calls. Gloo would wake a thread at both ends, which takes half a millisecond on a busy core.
"""

from __future__ import annotations

import os
import select
import struct
import weakref

TIMEOUT_S = 1800.0
"""Seconds to wait for a peer: the timeout of torch.distributed collectives."""

_MESSAGE = struct.Struct("qq")


class Inbox:
    """Reading end of a pipe from one peer, for pairs (number of a collective, value) in any order of numbers."""

    def __init__(self, peer: int, timeout: float = TIMEOUT_S) -> None:
        self._reads, self.writes = os.pipe()  # not inherited by child processes
        self._peer, self._timeout = peer, timeout
        self._early: dict[int, int] = {}
        self._poll = select.poll()
        self._poll.register(self._reads, select.POLLIN)
        self._close_writes = weakref.finalize(self, os.close, self.writes)
        weakref.finalize(self, os.close, self._reads)

    def opened(self) -> None:
        """Close the own copy of the writing end, once the peer has it, so that the peer's death closes the pipe."""
        self._close_writes()

    def receive(self, number: int) -> int:
        """Wait for the value of a collective.

        Raises:
            RuntimeError: the peer is gone, or has not answered before the timeout.
        """
        while number not in self._early:
            arrived, value = self._next()
            self._early[arrived] = value
        return self._early.pop(number)

    def _next(self) -> tuple[int, int]:
        if not self._poll.poll(1e3 * self._timeout):
            raise RuntimeError(f"worker {self._peer} has not answered for {self._timeout:g} s: it hangs")
        message = os.read(self._reads, _MESSAGE.size)
        if len(message) < _MESSAGE.size:
            raise RuntimeError(f"worker {self._peer} is gone: it closed its pipe to this worker")
        number, value = _MESSAGE.unpack(message)
        return number, value


class Outbox:
    """Writing end of a peer's :class:`Inbox`."""

    def __init__(self, peer: int, path: str) -> None:
        """Open the pipe. Raise OSError if the path is not a pipe that this process may write."""
        self._peer = peer
        self._writes = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._writes, True)
        weakref.finalize(self, os.close, self._writes)

    def send(self, number: int, value: int) -> None:
        """Send a value; it does not block unless the peer is thousands of messages behind.

        Raises:
            RuntimeError: the peer is gone.
        """
        try:
            os.write(self._writes, _MESSAGE.pack(number, value))  # atomic: shorter than PIPE_BUF
        except BrokenPipeError:
            raise RuntimeError(f"worker {self._peer} is gone: it closed its pipe from this worker") from None
