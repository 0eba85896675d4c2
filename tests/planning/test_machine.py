import itertools
from pathlib import Path

import psutil
import pytest
import torch

from distkg import host_memory
from distkg.planning import machine
from distkg.planning.machine import Machine, measure, memory_limit


def test_rates_fall_as_processes_share_the_cores() -> None:
    alone = Machine(flops=8e10, bandwidth=2e10)
    assert alone.shared_by(4) == Machine(2e10, 5e9)
    assert alone.shared_by(0.25) == alone


def test_measured_rates_are_those_of_real_work() -> None:
    # A hundred times slower or faster than any core there is would be a mistake of units.
    found = measure(seconds=0.05)
    assert 1e8 < found.flops < 1e14
    assert 1e8 < found.bandwidth < 1e13


def test_a_rate_is_that_of_the_time_without_other_load(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([0.0, 3.0, 1.5, 2.0, 1.5, 9.0])  # the first counts from the start, and the last ends it
    now = itertools.accumulate(taken)
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(now))
    actions: list[int] = []
    assert machine.best_seconds(lambda: actions.append(1), seconds=10) == 1.5
    assert len(actions) == 1 + 5  # one to compile and to allocate


def test_memory_is_that_of_the_machine_without_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (tmp_path / "absent",))
    assert memory_limit() == psutil.virtual_memory().total


@pytest.mark.parametrize(("text", "expected"), [("1048576\n", 1 << 20), ("max\n", None), (str(1 << 62), None)])
def test_a_container_may_allow_less(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, expected: int | None
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(text)
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (limit,))
    assert memory_limit() == (expected or psutil.virtual_memory().total)


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("9:name=systemd:/\n4:memory:/a/b\n0::/\n", "memory/a/memory.limit_in_bytes"),
        ("3:cpu,memory:/a/b\n", "memory/a/b/memory.limit_in_bytes"),
        ("0::/a/b.scope\n", "a/memory.max"),
        ("0::/\n", "memory.max"),
        ("", "memory.max"),
    ],
)
def test_limits_are_those_of_the_own_control_group_and_of_the_ones_around_it(
    tmp_path: Path, groups: str, file: str
) -> None:
    (tmp_path / "own").write_text(groups)
    (tmp_path / "root" / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "root" / file).write_text("1048576\n")
    assert host_memory.memory_limit(host_memory.cgroup_limits(tmp_path / "own", tmp_path / "root")) == 1 << 20


def test_limits_of_other_controllers_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("4:pids:/a\n")
    assert all("/a/" not in str(path) for path in host_memory.cgroup_limits(tmp_path / "own", tmp_path))


def test_measuring_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measure(seconds=0.01)
    assert torch.equal(torch.rand(1), expected)
