"""Training of a run on one worker, whichever launcher has started it.

Does not import Ray Train: workers that stay from trial to trial do without it.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distkg.cluster.sampling.negative_pool import actors_of_worker
from distkg.cluster.shared_graphs import SharedGraphs, graphs_of_node
from distkg.cluster.watch.draining_nodes import NodesLeavingError
from distkg.cluster.watch.lease import check_lease
from distkg.cluster.watch.run_folder import RunFolderError
from distkg.cluster.watch.run_metrics import Evaluated, Evaluations, exported
from distkg.cluster.watch.run_watch import signs_of_life
from distkg.config import parse_config
from distkg.data.storage.objects import is_address
from distkg.data.storage.working_copy import folder_at, shown
from distkg.sharding.ranks import Ranks
from distkg.training.run_dir import LEASE, Record
from distkg.training.services import Services, TrainOnRank


@dataclass(frozen=True)
class WorkerTask:
    """Training that every worker of a launch receives.

    Attributes:
        train: function that runs it.
        config: configuration of the run, with the secrets of addresses.
        run: absolute path of the run folder, or its address in an object store.
        graphs: graphs that the processes of a node share.
        lease: token of the driver's lease of the run folder.
    """

    train: TrainOnRank
    config: dict[str, Any]
    run: str
    graphs: SharedGraphs
    lease: str

    def on_worker(self, rank: int, device: torch.device, evaluated: Evaluated | None = None) -> Record:
        """Train in this process, which has joined the process group; collective.

        Args:
            evaluated: collective function, called with the line of metrics.jsonl of a validation.

        Raises:
            NodesLeavingError: a checkpoint is saved, and the group is to start again on other nodes.
        """
        config = parse_config(self.config, "the launched run")
        torch.set_num_threads(config.cluster.threads)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with (
            folder_at(self.run) as run,
            signs_of_life(shown(run), rank) as stop,
            exported(shown(run), rank) as metrics,
        ):
            ranks = Ranks.from_process_group(device)
            pool_of = actors_of_worker(config, shown(run), ranks, self.graphs)
            check_writer = partial(check_lease, run, self.lease)
            services = Services(
                pool_of,
                graphs_of_node(self.graphs),
                check_writer=check_writer,
                stop=stop,
                observer=Evaluations(metrics, ranks, evaluated),
            )
            # A new launch starts in an empty folder, so a checkpoint there means that this group is a replacement.
            result = self.train(config, run, ranks, resume=True, listener=None, services=services)
        if "stopped" in result and stop.leaving:
            raise NodesLeavingError(stop.leaving)
        return result

    def on_kept_worker(self, rank: int) -> Record:
        """Train in a worker that stays, which sees no GPUs but its own; collective.

        Raises:
            RunFolderError: this node does not see the run folder.
        """
        if not is_address(self.run) and not (Path(self.run) / LEASE).exists():
            raise RunFolderError(
                f"run folder {self.run} is not seen by the node of worker {rank} ({socket.gethostname()}). Name one on "
                "storage that every node sees"
            )
        gpu = self.config["cluster"]["gpus_per_worker"] > 0
        return self.on_worker(rank, torch.device("cuda", 0) if gpu else torch.device("cpu"))
