"""Process group of the workers on the network interface that Ray itself uses.

Gloo announces the address to which the host name resolves. If that is the loopback address of a machine with a network
(Debian's 127.0.1.1), or if the name does not resolve, workers on two nodes never connect. Ray already knows an address
by which the nodes reach each other, so every worker binds gloo to the interface that carries it.

The rendezvous store of the workers listens on that address too, at a port that the system assigns when it starts to
listen. Ray's own backend looks for a free port and has torch listen there later, on all interfaces: two runs that start
on one machine may get the same port.

Imports torch only in the functions that workers run, and Ray Train not at all: processes that need neither read this
module before the workers start, on the same cores.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

import psutil
import ray

if TYPE_CHECKING:
    import torch.distributed as dist

TIMEOUT_SECONDS = 1800  # of a collective


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
    import torch.distributed as dist

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


def join_group(backend: str, rank: int, workers: int, meeting: tuple[str, int], timeout_s: int) -> None:
    """Join the process group; return when all workers have joined."""
    import torch.distributed as dist

    timeout = timedelta(seconds=timeout_s)
    store = (
        _meeting_point[0] if rank == 0 else dist.TCPStore(*meeting, workers, timeout=timeout, wait_for_workers=False)
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=workers, timeout=timeout)


def leave_process_group() -> None:
    """Leave the process group, if this process is in one."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def backend_name(gpus_per_worker: float) -> str:
    """Return torch's name of the backend: gloo on CPU; with GPUs NCCL for GPU tensors, and gloo for checkpoints and
    small objects."""
    return "cpu:gloo,cuda:nccl" if gpus_per_worker > 0 else "gloo"
