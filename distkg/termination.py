"""Termination of a process on SIGINT, SIGTERM and SIGHUP: one exception in the main thread, one line, one exit code.

The exit code is 128 plus the number of the signal: 130, 143 and 129. A second signal ends the process at once, as does
the first one if the main thread is in compiled code and does not react.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

HEARD = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
HELD_UP_SECONDS = 2.0
"""Seconds that the main thread has to react to a signal before the process is ended without it."""

SAME_EVENT_SECONDS = 0.2
"""Seconds within which signals are one event, since a closing terminal sends several."""


class Terminated(SystemExit):
    """A signal asked this process to end; ``code`` is its exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class SignalHandling:
    """State of the signal handling of this process since :func:`ending_on_signals`.

    Attributes:
        received: number of the first signal; None before.
        reported: True if the user has been informed, so that no further line is printed.
        whole_command: True if the process is a command of the command line, False if it is a program that continues.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.reported = self.whole_command = False
        self._reacted = threading.Event()
        self._raised = False
        self._first_heard: float | None = None
        self._last_acts: list[Callable[[], object]] = []

    @property
    def name(self) -> str:
        """Name of the first signal, such as SIGTERM."""
        return signal.Signals(self.received or signal.SIGTERM).name

    def install(self) -> None:
        """Set the handlers, again after a library has set its own; no effect outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in HEARD:
            if signal.getsignal(number) is not signal.SIG_IGN:  # respect nohup
                signal.signal(number, self._react)

    @contextmanager
    def at_forced_end(self, act: Callable[[], object]) -> Iterator[None]:
        """Register an action for an immediate end of the process, such as ending child processes, in this context."""
        self._last_acts.append(act)
        try:
            yield
        finally:
            self._last_acts.remove(act)

    def _react(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread: raise at the first one."""
        self._reacted.set()
        if self._raised:
            return
        self._raised = True
        self.received = self.received or number
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    def hear(self, number: int) -> None:
        """Record a signal as it arrives; called in its own thread, independent of the main thread."""
        now = time.monotonic()
        if self._first_heard is None:
            self._first_heard, self.received = now, self.received or number
            if not self._reacted.wait(HELD_UP_SECONDS):
                self.end_now()
        elif now - self._first_heard > SAME_EVENT_SECONDS:
            self.end_now()

    def end_now(self) -> None:
        """End this process without unwinding: registered actions, one line, the signal's exit code."""
        self._end("" if self.reported else f"stopped by {self.name}", 128 + (self.received or signal.SIGTERM))

    def end_command(self, message: str, code: int) -> None:
        """End a whole command without unwinding, for libraries that would crash in it; else do nothing."""
        if self.whole_command:
            self._end(message, code)

    def _end(self, message: str, code: int) -> None:
        with suppress(Exception):
            sys.stdout.flush()
            if message:
                os.write(2, f"{message}\n".encode())
            _silence()  # the message is the last line
        for act in reversed(self._last_acts):
            with suppress(Exception):
                act()
        os._exit(code)


def _silence() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


_active: SignalHandling | None = None


@contextmanager
def ending_on_signals() -> Iterator[SignalHandling]:
    """Raise KeyboardInterrupt (SIGINT) or :class:`Terminated` (SIGTERM, SIGHUP) in the main thread, in this context.

    A nested context, or one in another thread than the main one, has no effect.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active or SignalHandling()
        return
    handling = SignalHandling()
    before = {number: signal.getsignal(number) for number in HEARD}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    old = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(ours, handling), name="signals", daemon=True)
    listener.start()
    _active = handling
    handling.install()
    try:
        yield handling
    finally:
        _active = None
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()
        listener.join()
        ours.close()


def _listen(source: socket.socket, handling: SignalHandling) -> None:
    while numbers := source.recv(64):
        for number in numbers:
            if number in HEARD:
                handling.hear(number)


def run_until_signal(command: Callable[[], object]) -> None:
    """Run a whole command; after a signal, print one line and exit with the signal's code."""
    with ending_on_signals() as handling:
        handling.whole_command = True
        try:
            command()
        finally:
            if handling.received is not None:
                handling.end_now()  # regardless of the exception, and without exit handlers of libraries
