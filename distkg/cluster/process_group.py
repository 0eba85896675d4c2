"""The process group of the workers, on the network interface that Ray itself uses.

Gloo announces the address that the host name resolves to. Where that is the loopback address of a machine
with a network (Debian's 127.0.1.1), or nothing at all, workers on two nodes never meet. Ray already knows an
address by which the nodes reach each other, so every worker binds gloo to the interface that carries it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


def interface_of(address: str) -> str | None:
    """Name of this machine's network interface that carries an IP address; None where none does."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == address for entry in addresses):
            return name
    return None


def bind_gloo_to_node_address() -> None:
    """Point gloo at the interface of this node's Ray address, unless GLOO_SOCKET_IFNAME is already set."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


class _NodeAddressBackend(_TorchBackend):
    """Ray's torch backend, with gloo bound before the group is formed."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(bind_gloo_to_node_address)
        super().on_start(worker_group, backend_config)


@dataclass
class ProcessGroupConfig(TorchConfig):
    """Ray Train's torch process group over the nodes' own addresses: gloo, and NCCL for tensors on GPUs."""

    @property
    def backend_cls(self) -> type[_NodeAddressBackend]:
        return _NodeAddressBackend


def process_group(gpus_per_worker: float, timeout_s: int = 1800) -> ProcessGroupConfig:
    """Gloo on CPU; with GPUs NCCL for their tensors, and gloo beside it for checkpoints and small objects."""
    backend = "cpu:gloo,cuda:nccl" if gpus_per_worker > 0 else "gloo"
    return ProcessGroupConfig(backend=backend, timeout_s=timeout_s)
