"""Signals to a whole process: its exit code, its one line, and what it does on the way out."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from distkg.termination import SignalHandling, Terminated, ending_on_signals

GENEROUS = 60
ROOT = Path(__file__).resolve().parents[1]


def default_interrupt() -> None:
    """A test that is run in the background of a shell has Ctrl-C ignored, which children would inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(command: str, *, ignored: bool = False) -> subprocess.Popen[str]:
    """Run ``command`` as the command line runs its commands, until it says that it is ready."""
    code = "\n".join(
        [
            "import ctypes, os, sys, time",
            "from distkg.termination import run_until_signal",
            "def command():",
            textwrap.indent(textwrap.dedent(command), "    "),
            "run_until_signal(command)",
        ]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else default_interrupt,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=GENEROUS)
    return process.returncode, out, error


CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_signal_ends_a_command_with_its_code_and_one_line(number: signal.Signals, code: int) -> None:
    process = start(
        """
        try:
            print("ready", flush=True)
            time.sleep(600)
        finally:
            print("tidied up", flush=True)
        """
    )
    process.send_signal(number)
    assert outcome(process) == (code, "tidied up\n", f"stopped by {number.name}\n")


@pytest.mark.parametrize(("number", "code"), CODES)
def test_compiled_code_that_does_not_return_is_not_waited_for(number: signal.Signals, code: int) -> None:
    process = start('print("ready", flush=True); [ctypes.CDLL(None).sleep(600) for _ in range(100)]')
    process.send_signal(number)
    # sleep(3) itself returns at a signal; the next one would not.
    assert outcome(process)[::2] == (code, f"stopped by {number.name}\n")


def test_a_second_interrupt_ends_a_command_that_clings_to_life() -> None:
    process = start(
        """
        for said in ("ready", "", "", ""):
            try:
                print(said, flush=True)
                time.sleep(600)
            except KeyboardInterrupt:
                print("once", flush=True)
        """
    )
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "once\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert outcome(process)[::2] == (130, "stopped by SIGINT\n")


def test_an_error_on_the_way_out_changes_neither_the_code_nor_the_line() -> None:
    process = start(
        """
        try:
            print("ready", flush=True)
            time.sleep(600)
        finally:
            raise ValueError("a library in trouble")
        """
    )
    process.send_signal(signal.SIGTERM)
    assert outcome(process) == (143, "", "stopped by SIGTERM\n")


def test_an_interrupt_that_was_ignored_from_the_start_stays_ignored() -> None:
    process = start('print("ready", flush=True); time.sleep(0.5); print("done")', ignored=True)
    process.send_signal(signal.SIGINT)
    assert outcome(process) == (0, "done\n", "")


def test_without_a_signal_errors_and_codes_pass() -> None:
    assert outcome(start('print("ready", flush=True); sys.exit(2)'))[0] == 2
    code, _, error = outcome(start('print("ready", flush=True); raise ValueError("mistake")'))
    assert code == 1
    assert "ValueError: mistake" in error


def test_handlers_are_those_of_before_once_it_is_over() -> None:
    before = [signal.getsignal(number) for number, _ in CODES]
    with ending_on_signals() as outer:
        with ending_on_signals() as inner:
            assert inner is outer
        with pytest.raises(Terminated) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.code == 143
        assert (outer.received, outer.name) == (signal.SIGTERM, "SIGTERM")
    assert [signal.getsignal(number) for number, _ in CODES] == before


def test_a_program_that_uses_distkg_is_not_ended_by_it() -> None:
    handling = SignalHandling()
    handling.end_command("never printed", 1)
    assert not handling.whole_command
