"""Runs commands in this process on mistaken input, and holds what every one of them owes the user.

A case ends with exit code 0, 2 or 3, without a traceback, within a bound of time, and where it does not succeed with a
message. Only the start of Ray is replaced: everything before it is the command's own.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from distkg.cli import app

EXAMPLES = int(os.environ.get("DISTKG_FUZZ_EXAMPLES", "0"))
"""Cases of each test; 0: the few that the fast suite takes."""

SECONDS = float(os.environ.get("DISTKG_FUZZ_SECONDS", "600"))
"""Bound of a case, far above what it takes: what passes it hangs."""

ALLOWED = (0, 2, 3)

counts: dict[str, Counter[int]] = {}
"""Surface → exit code → cases."""


def few(cases: int) -> Any:
    """Settings of a fuzz test: so many cases in the fast suite, DISTKG_FUZZ_EXAMPLES where it is set."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=EXAMPLES or cases,
        deadline=None,
        suppress_health_check=checks,
        derandomize=not EXAMPLES,
        database=None,
        print_blob=True,
    )


class HangError(BaseException):
    """A case passed its bound of time. No ``except Exception`` of a command may catch it."""


@contextmanager
def watched(case: str, seconds: float = SECONDS) -> Iterator[None]:
    """Report a case that hangs on standard error, and end it with HangError."""

    def end(number: int, frame: FrameType | None) -> None:
        raise HangError(f"no end within {seconds:g} s: {case}")

    def report() -> None:
        print(f"\nhangs for {seconds:g} s: {case}", file=sys.__stderr__, flush=True)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, end)
    timer = threading.Timer(seconds, report)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGALRM, before)


def invoke(arguments: Sequence[str], case: str = "") -> Result:
    with watched(f"{list(arguments)!r} {case}"):
        return CliRunner().invoke(app, list(arguments))


def hold(surface: str, arguments: Sequence[str], case: str = "", names: Sequence[str] = ()) -> Result:
    """Run a command and check what it owes the user; count the case.

    Args:
        case: what was mutated, for the report of a failure.
        names: where the command does not succeed, its message has one of these texts.
    """
    result = invoke(arguments, case)
    counts.setdefault(surface, Counter())[result.exit_code] += 1
    shown = f"distkg {' '.join(map(repr, arguments))}\n{case}\nexit {result.exit_code}\n{result.output[-3000:]}"
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        raise AssertionError(f"an error left the command line: {error!r}\n{shown}") from error
    assert result.exit_code in ALLOWED, shown
    assert "Traceback (most recent call last)" not in result.output, shown
    if result.exit_code:
        messages = [line for line in result.stderr.splitlines() if re.match(r"(error|Error): .*\S", line)]
        assert messages, f"no message\n{shown}"
        if names:
            assert any(name and name.casefold() in result.stderr.casefold() for name in names), (
                f"{names} not named\n{shown}"
            )
    return result


@contextmanager
def no_ray() -> Iterator[None]:
    """Let whatever would start Ray, or train without it, end with exit code 0 instead."""
    from distkg.cluster import launch, tokenise, tune
    from distkg.cluster.ray_train import launch as ray_launch
    from distkg.planning import preflight
    from distkg.planning.machine import Machine

    @contextmanager
    def session(*arguments: object, **named: object) -> Iterator[None]:
        raise typer.Exit(0)
        yield

    def training(*arguments: object) -> None:
        raise typer.Exit(0)

    @contextmanager
    def in_this_process(tasks: int) -> Iterator[Callable[..., Any]]:
        yield map

    with pytest.MonkeyPatch.context() as patch:
        # Rates of the machine take half a second to measure, and no mistake hangs on them.
        patch.setattr(preflight, "measure", lambda device="cpu": Machine(flops=1e9, bandwidth=1e9))
        patch.setattr(launch, "train_alone", training)
        patch.setattr(ray_launch, "ray_session", session)
        patch.setattr(tune, "ray_session", session)
        patch.setattr(tokenise, "tokenising_on_ray", in_this_process)
        yield


@contextmanager
def bounded_memory(more: int = 8 << 30) -> Iterator[None]:
    """Turn an allocation of many GiB into a MemoryError, before it takes the machine from others."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# What people type, paste and save by mistake.

NUMBERS = ["", " ", "-1", "0", "1", "2", "1.5", "-0.0", "nan", "inf", "-inf", "1e400", "1e-400", "1_000", "0x10", "010",
           "1:30", "true", "null", "9" * 30, "-" + "9" * 30, "9" * 5000, "٣", "１２", "1,5", "--5", "10**3", str(2**31),
           str(2**32), str(2**63 - 1), str(2**63), str(2**64), "1e3", "1e18"]  # fmt: skip
WORDS = ["", " ", "\t", "a\tb", "a\nb", "none", "null", "~", "ünï", "\x1b[31mred", "\u202egnp.exe", "a\x00b", "\ud800",
         "💥", "'", '"', "a=b", "{", "[1", "{a: 1, a: 2}", "!!python/name:os.system x", "&a [*a]", "%s%n", "../..",
         "-", "--", "-h", "x" * 300, "x" * 70_000, "yes", "Nan"]  # fmt: skip
PATHS = ["", " ", ".", "..", "/", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem",
         "/proc/self/environ", "/root/x",
         "no/such/file", "a\x00b", "x" * 300, "x/" * 2500, "~nobody/x", "file:///nowhere", "foo://bar", "://", "file://",
         "\ud800", "preset:", "preset:../demo", "preset:demo", "-", "*", "größe.yaml"]  # fmt: skip

numbers = st.sampled_from(NUMBERS)
words = st.one_of(st.sampled_from(WORDS), st.text(max_size=20))
paths = st.one_of(st.sampled_from(PATHS), st.text(max_size=10))
anything = st.one_of(numbers, words, paths)


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with bytes changed, cut out, put in, doubled or cut off; or something else altogether."""
    kind = draw(st.sampled_from(["change", "cut", "insert", "repeat", "end", "other", "encoding", "change"]))
    if kind == "other" or not content:
        return draw(
            st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda t: t.encode("utf-8", "surrogatepass")))
        )
    if kind == "encoding":
        text = content.decode("utf-8", "replace")
        encoding = draw(st.sampled_from(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp037", "utf-7"]))
        return text.encode(encoding, "replace")
    low = draw(st.integers(0, len(content) - 1))
    high = draw(st.integers(low, min(len(content), low + 40)))
    if kind == "cut":
        return content[:low] + content[high:]
    if kind == "end":
        return content[:low]
    if kind == "repeat":
        return content[:high] + content[low:high] * draw(st.integers(1, 50)) + content[high:]
    piece = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(PIECES)))
    return content[:low] + piece + content[low if kind == "insert" else min(low + len(piece), len(content)) :]


def lines_of(content: bytes) -> list[str]:
    """Lines of a text file, in the encoding that its byte order mark names."""
    marks = {b"\xff\xfe\x00\x00": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    encoding = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8-sig")
    lines = content.decode(encoding, "replace").split("\n")
    return lines if lines[-1] else lines[:-1]


PIECES = [b"\t", b"\n", b"\r", b"\r\n", b"\x00", b"\xff", b"\xe9", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]",
          b":", b'"', b"'",
          b"-", b"nan", b"NaN", b"1e400", b"null", b"-1", b"9" * 40, b"#", b"&a ", b"*a ", b"!!set ", b"<<: ", b"\\x00",
          b"\xe2\x80\xae", b"\x1b[2J", b"[" * 200, b"true", b"\xf0\x9f\x92\xa5", b" " * 50, b"../",
          b"/etc/passwd"]  # fmt: skip

JSON_VALUES = [None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 10**30, 2**63, "", "x", "\x00", "../x",
               "/", [], {},
               [[]], {"a": {}}, [1, "a"], [None], "1", "nan", -0.0, "\x1b[31m", "\ud800", 10**400]  # fmt: skip


@st.composite
def mutated_tree(draw: st.DrawFn, tree: Any) -> Any:
    """A nested value with one place of it replaced, dropped, or another key put beside it."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(tree)))
        kind = draw(st.sampled_from(["inside", "inside", "inside", "replace", "drop", "add"]))
        if kind == "inside":
            return {**tree, key: draw(mutated_tree(tree[key]))}
        if kind == "replace":
            return {**tree, key: draw(st.sampled_from(JSON_VALUES))}
        if kind == "drop":
            return {name: value for name, value in tree.items() if name != key}
        return {**tree, draw(st.one_of(st.sampled_from(["x", "", key.upper(), key + " "]), st.text(max_size=5))): 1}
    if isinstance(tree, list) and tree and draw(st.booleans()):
        place = draw(st.integers(0, len(tree) - 1))
        return [draw(mutated_tree(each)) if at == place else each for at, each in enumerate(tree)]
    return draw(st.sampled_from(JSON_VALUES))
