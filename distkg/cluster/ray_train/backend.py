"""Ray Train's hooks for the process group of the workers.

Ray Train's controller reads this module before it starts the workers, on the same cores: it imports no torch.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig

from distkg.cluster.process_group import (
    TIMEOUT_SECONDS,
    backend_name,
    bind_gloo_to_node_address,
    join_group,
    leave_process_group,
    open_meeting_point,
)

END_SECONDS = 5.0  # maximum wait for workers that leave the process group
_log = logging.getLogger(__name__)


def join_process_group(backend: str, rank: int, workers: int, meeting: tuple[str, int], timeout_s: int) -> None:
    """Join the process group from a worker of Ray Train; return when all workers have joined."""
    context = ray.train.get_context()
    os.environ |= {  # for code that reads these variables, as torchrun sets them
        "MASTER_ADDR": meeting[0],
        "MASTER_PORT": str(meeting[1]),
        "RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
    }
    join_group(backend, rank, workers, meeting, timeout_s)


class NodeAddressBackend(Backend):
    """Ray Train's hooks that open and close the process group on the nodes' own addresses."""

    share_cuda_visible_devices = True  # NCCL sees the GPUs of a node by the same numbers from all of its workers

    def on_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        worker_group.execute(bind_gloo_to_node_address)
        workers = len(worker_group)
        meeting = worker_group.execute_single(0, open_meeting_point, workers, TIMEOUT_SECONDS)
        join = [
            worker_group.execute_single_async(
                rank, join_process_group, backend_config.backend, rank, workers, meeting, TIMEOUT_SECONDS
            )
            for rank in range(workers)
        ]
        ray.get(join)

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        try:
            ray.get(worker_group.execute_async(leave_process_group), timeout=END_SECONDS)
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError):
            pass  # a worker is lost, which is why the others end
        except ray.exceptions.GetTimeoutError:
            _log.warning("workers have not left their process group in %g seconds", END_SECONDS)
        except ray.exceptions.RayError:
            return  # a worker is gone, which failures.jsonl says; Ray Train would print a traceback


@dataclass
class ProcessGroupConfig(BackendConfig):
    """Process group of the workers, by the name of its torch backend."""

    backend: str

    @property
    def backend_cls(self) -> type[NodeAddressBackend]:
        return NodeAddressBackend


def process_group(gpus_per_worker: float) -> ProcessGroupConfig:
    """Return the process group configuration of a run."""
    return ProcessGroupConfig(backend=backend_name(gpus_per_worker))
