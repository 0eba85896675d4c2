"""Messages through pipes: order, silence and death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from distkg.sharding.pipe_signals import Inbox, Outbox


def connected(timeout: float = 5.0) -> tuple[Inbox, Outbox]:
    inbox = Inbox(peer=1, timeout=timeout)
    outbox = Outbox(0, f"/proc/{os.getpid()}/fd/{inbox.writes}")
    inbox.opened()
    return inbox, outbox


def test_values_are_found_by_number_in_any_order() -> None:
    inbox, outbox = connected()
    for number, value in ((0, 7), (1, 0), (2, 1 << 40)):
        outbox.send(number, value)
    assert [inbox.receive(number) for number in (2, 0, 1)] == [1 << 40, 7, 0]


def test_a_peer_that_closed_is_reported() -> None:
    inbox, outbox = connected()
    outbox.send(0, 5)
    del outbox
    assert inbox.receive(0) == 5  # what it said before still counts
    with pytest.raises(RuntimeError, match="worker 1 is gone"):
        inbox.receive(1)


def test_a_silent_peer_is_reported() -> None:
    inbox, outbox = connected(timeout=0.05)
    with pytest.raises(RuntimeError, match=r"worker 1 has not answered for 0\.05 s"):
        inbox.receive(0)
    del outbox


def test_a_message_to_a_peer_that_is_gone_is_an_error() -> None:
    inbox, outbox = connected()
    del inbox
    with pytest.raises(RuntimeError, match="worker 0 is gone"):
        outbox.send(0, 1)


def test_a_killed_process_is_noticed_at_once() -> None:
    inbox = Inbox(peer=3, timeout=60)
    path = f"/proc/{os.getpid()}/fd/{inbox.writes}"
    talk = (
        "import sys, time; from distkg.sharding.pipe_signals import Outbox\n"
        f"box = Outbox(0, {path!r}); box.send(0, 11); print('sent', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", talk], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sent\n"
        inbox.opened()
        assert inbox.receive(0) == 11
        process.send_signal(signal.SIGKILL)
        with pytest.raises(RuntimeError, match="worker 3 is gone"):
            inbox.receive(1)
