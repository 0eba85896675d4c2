"""Ending a process on SIGINT, SIGTERM and SIGHUP: one exception in the main thread, one line, one exit code.

The exit code is 128 and the number of the signal: 130, 143 and 129. A second signal ends the process at once. So does
the first, where the main thread is held up in compiled code and cannot hear of it.
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
"""How long the main thread may take to react to a signal before the process ends without it."""

SAME_EVENT_SECONDS = 0.2
"""Signals within this time of the first are the same event: a closing terminal sends several."""


class Terminated(SystemExit):
    """A signal asked this process to end; ``code`` is its exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class SignalHandling:
    """What happened to the signals of this process since :func:`ending_on_signals`.

    Attributes:
        received: number of the first signal; None before there is one.
        reported: the user has been told, so that no further line is needed.
        whole_command: the process is a command of the command line, and no program that goes on after it.
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
        """Set the handlers, also after a library has set its own; only in the main thread there are any."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in HEARD:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays what it is
                signal.signal(number, self._react)

    @contextmanager
    def at_forced_end(self, act: Callable[[], object]) -> Iterator[None]:
        """Have something done, such as ending child processes, where the process must end at once."""
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
        """Note a signal as it arrives; called in a thread of its own, whatever the main thread does."""
        now = time.monotonic()
        if self._first_heard is None:
            self._first_heard, self.received = now, self.received or number
            if not self._reacted.wait(HELD_UP_SECONDS):
                self.end_now()
        elif now - self._first_heard > SAME_EVENT_SECONDS:
            self.end_now()

    def end_now(self) -> None:
        """End this process without unwinding: last acts, one line, the signal's exit code."""
        self._end("" if self.reported else f"stopped by {self.name}", 128 + (self.received or signal.SIGTERM))

    def end_command(self, message: str, code: int) -> None:
        """End a whole command without unwinding, where a library would not survive that; else do nothing."""
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
    """Raise KeyboardInterrupt (SIGINT) or :class:`Terminated` (SIGTERM, SIGHUP) in the main thread meanwhile.

    Within another such block, and in other threads than the main one, nothing is changed.
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
    """Run a whole command; after a signal, say so in one line and exit with the signal's code."""
    with ending_on_signals() as handling:
        handling.whole_command = True
        try:
            command()
        finally:
            if handling.received is not None:
                handling.end_now()  # whatever was raised, and whatever libraries would do at the end
