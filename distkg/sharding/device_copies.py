"""Copies of host tensors on a device: one for all tensors of a data type, or one that stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class DeviceCopies:
    """Constant tensor, with a copy on each device that has asked for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._copies = {tensor.device: tensor}
        self._tensor = tensor

    def on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            self._copies[device] = self._tensor.to(device)
        return self._copies[device]


def moved(records: Sequence[T], device: torch.device) -> list[T]:
    """Copy the host tensors of dataclasses to a device, with one copy for each data type among all of their tensors.

    The copies to a GPU are from pinned memory and asynchronous: the host does not wait, and work that is queued later
    on the current stream finds them done.
    """
    if device.type == "cpu":
        return list(records)
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in _tensors(records):
        by_type.setdefault(tensor.dtype, []).append(tensor)
    copies: dict[int, Tensor] = {}
    for tensors in by_type.values():
        parts = _copied(tensors, device).split([tensor.numel() for tensor in tensors])
        copies |= {id(tensor): part.view(tensor.shape) for tensor, part in zip(tensors, parts, strict=True)}
    return [_with(record, copies) for record in records]


def _copied(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Copy tensors of one data type to a device, one after the other: [n]."""
    count, pinned = sum(tensor.numel() for tensor in tensors), device.type == "cuda"
    host = torch.empty(count, dtype=tensors[0].dtype, pin_memory=pinned)
    torch.cat([tensor.detach().flatten() for tensor in tensors], out=host)
    return host.to(device, non_blocking=True)


def _tensors(records: Sequence[Any]) -> Iterator[Tensor]:
    for record in records:
        for field in fields(record):
            value = getattr(record, field.name)
            if isinstance(value, Tensor) and value.is_cpu:
                yield value
            elif is_dataclass(value):
                yield from _tensors([value])


def _with(record: Any, copies: dict[int, Tensor]) -> Any:
    """Return a dataclass with copies for its tensors, by their ids."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    changed = {name: copies[id(value)] for name, value in values.items() if id(value) in copies}
    inner = {name: _with(value, copies) for name, value in values.items() if is_dataclass(value)}
    return replace(record, **changed, **inner)
