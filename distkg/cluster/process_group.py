"""Process group of the workers on the network interface that Ray itself uses.

Gloo announces the address to which the host name resolves. If that is the loopback address of a machine with a network
(Debian's 127.0.1.1), or if the name does not resolve, workers on two nodes never connect. Ray already knows an address
by which the nodes reach each other, so every worker binds gloo to the interface that carries it.

The rendezvous store of the workers listens on that address too, at a port that the system assigns when it starts to
listen. Ray's own backend looks for a free port and has torch listen there later, on all interfaces: two runs that start
on one machine may get the same port.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend


def interface_of(address: str) -> str | None:
    """Return the name of this machine's network interface that carries an IP address; None if there is none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == address for entry in addresses):
            return name
    return None


def bind_gloo_to_node_address() -> None:
    """Set gloo's interface to that of this node's Ray address, unless GLOO_SOCKET_IFNAME is already set."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


_meeting_point: list[dist.TCPStore] = []
"""Rendezvous store of the first worker, kept open while its process lives; empty in other workers."""


def open_meeting_point(workers: int, timeout_s: int) -> tuple[str, int]:
    """Open the rendezvous store in the first worker's process and return its address and port."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, 0), family=family, backlog=workers + 1)
    except OSError:  # the cluster's address of this node is not its own, such as that of its router
        listener = socket.create_server(("", 0), backlog=workers + 1)
    port = int(listener.getsockname()[1])
    store = dist.TCPStore(
        address,
        port,
        workers,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    _meeting_point[:] = [store]
    return address, port


def join_process_group(backend: str, rank: int, workers: int, meeting: tuple[str, int], timeout_s: int) -> None:
    """Join the process group; return when all workers have joined."""
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = (
        meeting[0],
        str(meeting[1]),
    )  # for code that reads these variables
    timeout = timedelta(seconds=timeout_s)
    store = (
        _meeting_point[0] if rank == 0 else dist.TCPStore(*meeting, workers, timeout=timeout, wait_for_workers=False)
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=workers, timeout=timeout)


class _NodeAddressBackend(_TorchBackend):
    """Ray's torch backend with a rendezvous on the nodes' own addresses."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(bind_gloo_to_node_address)
        worker_group.execute(_set_torch_distributed_env_vars)
        workers, timeout_s = len(worker_group), backend_config.timeout_s
        meeting = worker_group.execute_single(0, open_meeting_point, workers, timeout_s)
        join = [
            worker_group.execute_single_async(
                rank, join_process_group, backend_config.backend, rank, workers, meeting, timeout_s
            )
            for rank in range(workers)
        ]
        ray.get(join)


@dataclass
class ProcessGroupConfig(TorchConfig):
    """Ray Train's torch process group over the nodes' own addresses: gloo, and NCCL for tensors on GPUs."""

    @property
    def backend_cls(self) -> type[_NodeAddressBackend]:
        return _NodeAddressBackend


def process_group(gpus_per_worker: float) -> ProcessGroupConfig:
    """Return the process group configuration: gloo on CPU; with GPUs NCCL for GPU tensors, and gloo for checkpoints
    and small objects."""
    backend = "cpu:gloo,cuda:nccl" if gpus_per_worker > 0 else "gloo"
    return ProcessGroupConfig(backend=backend)
