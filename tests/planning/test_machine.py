from pathlib import Path

import psutil
import pytest
import torch

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


def test_the_measured_product_takes_as_long_as_it_says() -> None:
    class Clock:
        """Each call of perf_counter is one second later, so that every action takes two."""

        now = 0.0

        def __call__(self) -> float:
            self.now += 1.0
            return self.now

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.time, "perf_counter", Clock())
        rate = machine._rate(lambda: None, seconds=10, device="cpu")
    assert rate == pytest.approx(9 / 11)


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


def test_measuring_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measure(seconds=0.01)
    assert torch.equal(torch.rand(1), expected)
