"""What the driver reads from a run's growing files, and how it is shown."""

import json
import os
import time
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from distkg.cluster.watch.progress_monitor import (
    BarDisplay,
    Display,
    Follower,
    LineTail,
    PlainDisplay,
    Record,
    describe,
    with_warnings,
)
from distkg.cluster.watch.run_output import Output


def write(path: Path, *numbers: int, mode: str = "w") -> None:
    with path.open(mode) as file:
        file.writelines(json.dumps({"step": number}) + "\n" for number in numbers)


def steps(tail: LineTail) -> list[int]:
    return [record["step"] for record in tail.read()]


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert LineTail(tmp_path / "metrics.jsonl").read() == []


def test_only_new_complete_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = LineTail(path)
    write(path, 1, 2)
    assert steps(tail) == [1, 2]
    assert steps(tail) == []
    with path.open("a") as file:
        file.write('{"step": 3}\n{"st')
    assert steps(tail) == [3]
    with path.open("a") as file:
        file.write('ep": 4}\n')
    assert steps(tail) == [4]


def test_lines_of_an_earlier_launch_are_not_new(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2)
    tail = LineTail(path)
    write(path, 3, mode="a")
    assert steps(tail) == [3]


def test_after_a_rewind_the_lines_beyond_the_checkpoint_are_new(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = LineTail(path)
    write(path, 1, 2, 3)
    assert steps(tail) == [1, 2, 3]
    write(path, 1, 20, 30, 40)
    assert steps(tail) == [20, 30, 40]


versions = st.lists(st.integers(0, 3), max_size=8)


@given(st.lists(versions, min_size=1, max_size=4))
def test_replaying_what_was_read_gives_the_last_version(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    tail, known = LineTail(path), []
    for number, version in enumerate(files):
        write(path, *version)
        # File systems count time in ticks: two versions of equal size must differ in the stamp here.
        stamp = 1_000_000_000 * (number + 1)
        os.utime(path, ns=(stamp, stamp))
        new = steps(tail)
        shared = len(version) - len(new)
        assert known[:shared] == version[:shared]
        known = known[:shared] + new
        assert known == version


def test_the_follower_hands_over_every_line_before_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    heard: list[Record] = []
    with Follower([(LineTail(path), heard.append)], interval_s=60):
        write(path, 1, 2)
    assert heard == [{"step": 1}, {"step": 2}]


def test_nothing_follows_the_last_line_of_a_run_that_is_stopped(tmp_path: Path) -> None:
    shown: list[str] = []

    class Shown:
        def notice(self, text: str) -> None:
            shown.append(text)

    path = tmp_path / "metrics.jsonl"
    with Follower([(LineTail(path), lambda record: shown.append(f"step {record['step']}"))], interval_s=60) as follower:
        write(path, 1)
        Output(cast(Display, Shown()), follower).last_line("stopped by SIGTERM")
        write(path, 1, 2)
    assert shown == ["step 1", "stopped by SIGTERM"]


def test_the_follower_reads_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    heard: list[Record] = []
    with Follower([(LineTail(path), heard.append)], interval_s=0.01):
        write(path, 7)
        deadline = time.monotonic() + 10
        while not heard and time.monotonic() < deadline:
            time.sleep(0.01)
        assert heard == [{"step": 7}]


def test_an_error_of_a_listener_is_kept(tmp_path: Path) -> None:
    def refuse(record: Record) -> None:
        raise RuntimeError("pruned")

    write(tmp_path / "metrics.jsonl", 1)
    tail = LineTail(tmp_path / "metrics.jsonl", skip_present=False)
    with Follower([(tail, refuse)], interval_s=0.01) as follower:
        pass
    assert str(follower.error) == "pruned"


def test_a_line_in_words() -> None:
    record = {"epoch": 12.5, "loss": 0.123456, "valid": {"mrr": 0.34567}, "triples_per_second": 140123.9}
    assert describe(record) == "epoch 12.5  loss 0.1235  valid MRR 0.3457  140,123 triples/s"
    assert describe({"epoch": 1.0}) == "epoch 1"
    both = {"valid": {"mrr": 0.26}, "valid_by_weights": {"raw": {"mrr": 0.25}, "average": {"mrr": 0.26}}}
    assert describe(both) == "valid MRR 0.2600 (raw 0.2500, average 0.2600)"
    assert describe({"epoch": 100.0, "loss": None, "valid": None}) == "epoch 100"


def test_plain_lines_for_logs(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainDisplay() as display:
        display.metrics({"time": 12.34, "epoch": 2.0, "loss": 1.0})
        display.notice("worker 1 failed")
    assert capsys.readouterr().out == "[    12.3 s] epoch 2  loss 1.0000\nworker 1 failed\n"


def test_warnings_of_a_line_are_shown_beside_a_listener_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[dict[str, object]] = []
    listener = with_warnings(heard.append, PlainDisplay())
    lines: list[dict[str, object]] = [{"epoch": 1.0}, {"negatives": {"warnings": ["no luck"]}}, {"negatives": {}}]
    for line in lines:
        listener(line)
    assert heard == lines
    assert capsys.readouterr().out == "WARNING: no luck\n"


def test_the_bar_keeps_the_latest_validation() -> None:
    console = Console(record=True, force_terminal=True, width=160)
    with BarDisplay(epochs=4, console=console) as display:
        display.metrics({"epoch": 1.0, "loss": 2.0, "valid": {"mrr": 0.25}})
        display.metrics({"epoch": 2.0, "loss": 1.0})
        display.notice("[worker 1] failed")
    text = console.export_text()
    assert "[worker 1] failed" in text
    assert "50 %" in text
    assert "epoch 2  loss 1.0000  valid MRR 0.2500" in text


def test_lines_that_are_no_objects_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": \nnull\n\xff\n' + b"[" * 100_000 + b'\n{"loss": NaN, "step": 2}\n')
    assert steps(LineTail(path, skip_present=False)) == [1, 2]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_the_place_of_metrics_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert LineTail(tmp_path / "metrics.jsonl").read() == []
