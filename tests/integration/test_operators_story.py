"""jobs/operators_story.py on a small graph, and how it ends when it cannot go on."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs import operators_story

ROOT = Path(__file__).resolve().parents[2]


def processes_with(text: str) -> list[str]:
    """Command lines on this machine that contain a text."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if text in line and process.pid != psutil.Process().pid:
            found.append(line)
    return found


def tell(folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "jobs" / "operators_story.py", "--folder", folder, *options]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=560)


@pytest.mark.slow
@pytest.mark.cluster
def test_the_story_of_a_small_graph(tmp_path: Path) -> None:
    """A run loses a node and goes on; other numbers of workers and NumPy say what the run says; nothing is left."""
    sizes = ("--entities", 3000, "--triples", 40_000, "--epochs", 12, "--batch-size", 64, "--ranked", 100)
    done = tell(tmp_path / "night", *sizes, "--minutes", 9)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    log = done.stdout
    order = [
        "kill -9",
        "Restarting from the newest checkpoint",
        "the run reports again",
        "Job 'night' succeeded",
        "# equal: metrics",
    ]
    assert [text for _, text in sorted((log.index(text), text) for text in order)] == order
    assert len(re.findall(r"^# equal: metrics by (this process|two workers)", log, re.MULTILINE)) == 2
    assert len(re.findall(r"^# equal: score of \w+: -?[\d.]+$", log, re.MULTILINE)) == 5
    assert "# 12 epochs and 6,756 steps, " in log
    assert "Traceback" not in log
    assert str(tmp_path) not in log
    assert processes_with(str(tmp_path)) == []


def test_a_story_that_takes_too_long_ends_with_all_its_processes(tmp_path: Path) -> None:
    done = tell(tmp_path / "night", "--minutes", 0.05)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: not done after 3 s; raise --minutes or lower the sizes"
    assert "$ moto_server" in done.stdout
    port = re.search(r"moto_server -H 127.0.0.1 -p (\d+)", done.stdout)
    assert port is not None
    assert processes_with(f"-p {port[1]}") == []


def test_orphans_of_a_story_end_with_it(tmp_path: Path) -> None:
    """A process whose parent has ended is found by its environment."""
    with operators_story.Shell(tmp_path / "night") as shell:
        output = shell.run("sh", "-c", "sleep 321 > /dev/null 2>&1 & echo $!")
        orphan = psutil.Process(int(output))
        assert orphan.is_running()
    deadline = time.monotonic() + 10
    while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    with (
        operators_story.Shell(tmp_path / "night") as shell,
        pytest.raises(operators_story.StoryError, match=r"exit code 3: sh -c 'exit 3'"),
    ):
        shell.run("sh", "-c", "exit 3")


def test_figures_that_differ_end_the_story(tmp_path: Path) -> None:
    with (
        operators_story.Shell(tmp_path / "night") as shell,
        pytest.raises(operators_story.StoryError, match=r"the sum: 2 instead of 3"),
    ):
        shell.check("the sum", 2, 3)


def test_a_folder_that_exists_and_a_missing_store_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for found, expected in ((True, "name a new folder"), (None, "pip install 'moto[s3,server]'")):
        monkeypatch.setattr(operators_story, "find_spec", lambda name, found=found: found)
        with pytest.raises(SystemExit) as ended:
            operators_story.main(["--folder", str(tmp_path)])
        assert ended.value.code == 2
        assert expected in capsys.readouterr().err
