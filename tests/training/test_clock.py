"""Seconds by phase, of the host and of a device that is late."""

from __future__ import annotations

import pytest
import torch

from distkg.training import clock as module
from distkg.training.clock import Clock, DeviceClock

NOTHING = {"data": 0.0, "exchange": 0.0, "compute": 0.0, "optimizer": 0.0}


class Device:
    """Queue of a device: work of some milliseconds, and marks that get the time at which the device passes them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.queue: list[float | Mark] = []
        self.marks = 0
        self.waits = 0

    def run(self, milliseconds: float) -> None:
        """Let the device work; marks that it comes to are passed."""
        end = self.now + milliseconds
        while self.queue:
            first = self.queue[0]
            if isinstance(first, Mark):
                first.passed = self.now
            else:
                done = min(first, end - self.now)
                self.now += done
                if done < first:
                    self.queue[0] = first - done
                    return
            self.queue.pop(0)
        self.now = end

    def mark(self) -> Mark:
        self.marks += 1
        return Mark(self)


class Mark:
    def __init__(self, device: Device) -> None:
        self.device, self.passed = device, None

    passed: float | None

    def record(self) -> None:
        self.passed = None
        self.device.queue.append(self)

    def query(self) -> bool:
        return self.passed is not None

    def synchronize(self) -> None:
        self.device.waits += 1
        while self.passed is None:
            self.device.run(1)

    def elapsed_time(self, end_event: Mark) -> float:
        assert self.passed is not None
        assert end_event.passed is not None
        return end_event.passed - self.passed


def test_a_phase_is_what_the_device_computes_not_how_long_it_is_asked() -> None:
    device = Device()
    clock = DeviceClock(device.mark)
    for _ in range(3):
        with clock("compute"):
            device.queue.append(40.0)
        with clock("optimizer"):
            device.queue.append(5.0)
    assert device.waits == 0
    assert clock.lap() == NOTHING | {"compute": pytest.approx(0.12), "optimizer": pytest.approx(0.015)}
    assert device.waits == 1
    assert clock.lap() == NOTHING
    assert device.waits == 1


def test_what_the_host_does_counts_while_the_device_has_nothing_to_do() -> None:
    device = Device()
    clock = DeviceClock(device.mark)
    with clock("compute"):
        device.queue.append(30.0)
    with clock("data"):
        device.run(20)  # the device is at work: nobody waits for the batch
    with clock("data"):
        device.run(50)  # it ends after 10 ms, and is idle for 40
    assert clock.lap() == NOTHING | {"compute": pytest.approx(0.03), "data": pytest.approx(0.04)}


def test_marks_are_used_again() -> None:
    device = Device()
    clock = DeviceClock(device.mark)
    for _ in range(50):
        with clock("compute"):
            device.queue.append(1.0)
        device.run(2)
    assert device.marks <= 4
    assert clock.lap()["compute"] == pytest.approx(0.05)


def test_the_clock_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 3.5, 10.0, 10.25])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(times))
    clock = Clock.of(torch.device("cpu"))
    with clock("data"), pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError
    with clock("data"):
        pass
    assert clock.lap() == NOTHING | {"data": 2.75}
    assert clock.lap() == NOTHING
