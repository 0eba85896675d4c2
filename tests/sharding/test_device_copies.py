"""Copies of host tensors on a simulated device."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from distkg.sharding import device_copies
from distkg.sharding.device_copies import DeviceCopies, moved
from tests.simulated_device import DEVICE, DeviceTensor, SimulatedDevice


@dataclass(frozen=True)
class Inner:
    mask: Tensor | None
    ids: Tensor


@dataclass(frozen=True)
class Record:
    ids: Tensor
    inner: Inner | None
    count: int


def records() -> list[Record]:
    ids = torch.arange(6).view(2, 3)
    first = Record(ids.T, Inner(torch.tensor([True, False]), ids[0]), 7)
    return [first, Record(torch.empty(0, dtype=torch.int64), None, 8)]


def test_all_tensors_of_a_type_are_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    copy = device_copies._copied
    monkeypatch.setattr(device_copies, "_copied", lambda *args: copied.append(args[0][0].dtype) or copy(*args))
    with SimulatedDevice() as device:
        first, second = moved(records(), DEVICE)
        assert not device.waits
        assert first.inner is not None
        assert first.inner.mask is not None
        for tensor in (first.ids, first.inner.mask, first.inner.ids, second.ids):
            assert isinstance(tensor, DeviceTensor)
        found = first.ids.cpu().tolist(), first.inner.mask.cpu().tolist(), first.inner.ids.cpu().tolist()
        assert found == ([[0, 3], [1, 4], [2, 5]], [True, False], [0, 1, 2])
        assert second.ids.shape == (0,)
    assert (first.count, second.count, second.inner) == (7, 8, None)
    assert sorted(map(str, copied)) == ["torch.bool", "torch.int64"]


def test_what_is_on_the_device_stays() -> None:
    with SimulatedDevice():
        there = torch.ones(2).to(DEVICE)
        (record,) = moved([Inner(torch.tensor([True]), there)], DEVICE)
        assert record.ids is there
        assert isinstance(record.mask, DeviceTensor)


def test_nothing_is_copied_for_the_host() -> None:
    given = records()
    assert moved(given, torch.device("cpu")) == given


def test_a_constant_is_copied_once_to_a_device() -> None:
    constant = torch.tensor([1, 2])
    copies = DeviceCopies(constant)
    with SimulatedDevice():
        assert copies.on(torch.device("cpu")) is constant
        assert copies.on(DEVICE) is copies.on(DEVICE)
        assert copies.on(DEVICE).cpu().tolist() == [1, 2]
