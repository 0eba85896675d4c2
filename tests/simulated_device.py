"""A device that is not there: its tensors have values in host memory, and can be used only as those of a GPU can.

They say that they are on torch's meta device. An operation on tensors of the host and of the device raises, apart from
copies and indices, which torch takes from the host too. What makes the host wait for the device is counted.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_FROM_BOTH = {_aten.copy_.default, _aten.index.Tensor, _aten.index_put_.default, _aten._index_put_impl_.default}
_DATA_DECIDES_SHAPE = {_aten.nonzero.default, _aten._unique2.default, _aten.unique_dim.default, _aten.bincount.default}


class DeviceTensor(Tensor):
    """Tensor of the device; ``values`` are in host memory."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> DeviceTensor:
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, values.stride(), values.storage_offset(), dtype=values.dtype, device=DEVICE
        )
        made.values = values
        return made

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        assert isinstance(other, DeviceTensor)
        self.values = other.values

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("a tensor of the simulated device is used outside of it")


class SimulatedDevice(TorchDispatchMode):
    """Context in which the device is there.

    Attributes:
        waits: number of times that the host waited, by operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        there = [each for each in tensors if isinstance(each, DeviceTensor)]
        result_there = bool(there)
        if kwargs.get("device") is not None:
            result_there = torch.device(kwargs["device"]) == DEVICE
            kwargs["device"] = torch.device("cpu")
        self._check(func, tensors, there, args, result_there=result_there)
        wrappers = {id(each.values): each for each in there}
        result = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        return tree_map(lambda each: _on_device(each, wrappers), result) if result_there else result

    def _check(
        self, func: Any, tensors: list[Tensor], there: list[DeviceTensor], args: Any, *, result_there: bool
    ) -> None:
        here = [each for each in tensors if not isinstance(each, DeviceTensor) and each.ndim]
        if there and here and func not in _FROM_BOTH:
            raise RuntimeError(f"{func} of tensors on two devices")
        copied_back = func is _aten.copy_.default and not isinstance(args[0], DeviceTensor) and bool(there)
        waits = func in _DATA_DECIDES_SHAPE or func is _aten._local_scalar_dense.default or copied_back
        waits |= func is _aten._to_copy.default and not result_there
        waits |= func is _aten.index.Tensor and any(each.dtype == torch.bool for each in tensors[1:])
        if there and waits:
            self.waits[func.__name__.split(".")[0]] += 1


def _values(value: Any) -> Any:
    return value.values if isinstance(value, DeviceTensor) else value


def _on_device(value: Any, wrappers: dict[int, DeviceTensor]) -> Any:
    if not isinstance(value, Tensor):
        return value
    return wrappers[id(value)] if id(value) in wrappers else DeviceTensor(value)
