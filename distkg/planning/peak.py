"""Peak memory of tensors during a computation."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the peak number of bytes of the tensors that ``work`` creates and that are alive at once, on any
    device."""
    with _Living() as living:
        work()
    return living.most


class _Living(TorchDispatchMode):
    """Dispatch mode that tracks the storages of the results of operations until they are freed."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch's compiler, which takes a second

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._known: dict[int, weakref.finalize[..., Any]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf, before)
        return result

    def _see(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._known or id(storage) in before:
            return
        size = storage.nbytes()
        self._now += size
        self.most = max(self.most, self._now)
        self._known[id(storage)] = weakref.finalize(storage, self._forget, id(storage), size)

    def _forget(self, key: int, size: int) -> None:
        self._now -= size
        self._known.pop(key, None)
