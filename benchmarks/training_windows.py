"""The training loop of a configuration, in windows of steps that are timed; and what each scorer's work costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.common import finished_at
from benchmarks.rooflines import QUICK_SECONDS, SECONDS, Rooflines
from distkg.config import RunConfig, parse_config
from distkg.data.store.graph_store import Store
from distkg.embedding.build import build_objective
from distkg.embedding.loop import WINDOW, Loop
from distkg.embedding.model import BY_RELATION, TrainingModel
from distkg.sharding.ranks import Ranks
from distkg.sharding.replicated_parameters import ReplicatedParameters

_FLOPS_PER_SCORE = 6  # per dimension: a multiply and an add, forward and for either gradient
_BYTES_PER_SCORE = 16  # per dimension: both float32 operands, forward and backward
_ROOTS_PER_SCORE = 1  # per dimension: a modulus for every two floats, forward and backward


@dataclass(frozen=True)
class Workload:
    """The work that peers were given: sizes of a training step.

    Attributes:
        dim: real floats per entity.
        negatives: per positive triple in all, half of them for either query.
        batch_size: triples per worker and step; a peer's batch.
        steps: timed steps.
        independent_steps: timed steps where every query draws its own negatives.
        peer_batches: batches of a peer, the first of which is not timed.
        roofline_seconds: for each rate of the machine.
    """

    dim: int = 256
    negatives: int = 256
    batch_size: int = 1024
    steps: int = 40
    independent_steps: int = 8
    peer_batches: int = 3
    roofline_seconds: float = SECONDS

    def for_pykeen(self) -> dict[str, int]:
        """The same work as options of ``pykeen_peer.train``."""
        sizes = {"dim": self.dim, "batch_size": self.batch_size, "negatives": self.negatives}
        return {**sizes, "batches": self.peer_batches}

    @classmethod
    def quick(cls) -> Workload:
        steps = {"steps": 2, "independent_steps": 2, "peer_batches": 2}
        return cls(dim=16, negatives=16, batch_size=32, **steps, roofline_seconds=QUICK_SECONDS)


SCORERS: dict[str, dict[str, Any]] = {
    "DistMult": {"name": "distmult"},
    "ComplEx": {"name": "complex"},
    "TransE L2": {"name": "transe", "options": {"norm": "l2"}},
    "TransE L1": {"name": "transe", "options": {"norm": "l1"}},
    "RotatE": {"name": "rotate"},
}
"""Name in the tables → ``model`` of the configuration."""

PAIRWISE = ("TransE L1", "RotatE")


def sampled_config(scorer: str, store: str, work: Workload, batch_size: int, *, shared: bool = True) -> RunConfig:
    """Training with sampled negatives; ``batch_size`` triples per step over all workers."""
    return parse_config(
        {
            "data": {"store": store},
            "model": {**SCORERS[scorer], "dim": work.dim},
            "objective": {"name": "logistic"},
            "negatives": {"count": work.negatives // 2, "shared": shared, **({"chunk_size": 256} if shared else {})},
            "optimizer": {"name": "rowwise_adagrad"},
            "train": {"batch_size": batch_size},
        },
        "this benchmark",
    )


def shares(scorer: str, work: Workload, rate: float, machine: Rooflines, *, shared: bool = True) -> dict[str, float]:
    """Percent of the rooflines that ``rate`` triples per second use, counting comparisons with negatives only."""
    terms = rate * work.negatives * work.dim
    if shared and scorer not in PAIRWISE:
        flops = _FLOPS_PER_SCORE * terms
        return {"% oneDNN": 100 * flops / machine.onednn, "% torch.mm": 100 * flops / machine.torch_mm}
    found = {"% bandwidth": 100 * _BYTES_PER_SCORE * terms / machine.bandwidth}
    if scorer == "RotatE":
        found["% sqrt"] = 100 * _ROOTS_PER_SCORE * terms / machine.square_roots
    return found


@dataclass(frozen=True)
class Window:
    """A timed window.

    Attributes:
        triples_per_second: positive triples over all workers.
        step_ms: wall time of a step.
        phase_ms: this rank's share of it by phase.
    """

    triples_per_second: float
    step_ms: float
    phase_ms: Mapping[str, float]

    def columns(self) -> dict[str, float]:
        """As columns of a table."""
        return {
            "triples/s": self.triples_per_second,
            "step ms": self.step_ms,
            **{f"{phase} ms": value for phase, value in self.phase_ms.items()},
        }


class TimedTraining:
    """A model in training on this rank."""

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        store = Store.open(config.data.store)
        self.ranks = ranks
        self.model = TrainingModel(config, store.num_entities, store.num_relations, ranks)
        self.batches, self.step = build_objective(config, store, self.model)
        self._config = config
        self._dense = ReplicatedParameters(self.model, config.optimizer, ranks, by_row=BY_RELATION)
        self._epoch = 0

    def window(self, steps: int, *, overlap: bool = False) -> Window:
        """Warm up for one exchange of ids, then time ``steps`` steps from the start of an epoch on; collective."""
        loop = Loop(
            self.model,
            self.batches,
            self.step,
            self._dense,
            self._config.optimizer.learning_rate,
            lambda epoch, step: 1.0,
            self._config.train.seed,
            overlap=overlap,
        )
        self._run(loop, min(WINDOW, steps))
        loop.clock.lap()
        self.ranks.barrier()
        start = finished_at(self.ranks.device)
        self._run(loop, steps)
        finished_at(self.ranks.device)
        self.ranks.barrier()
        step_seconds = (time.perf_counter() - start) / steps
        phases = {phase: 1e3 * seconds / steps for phase, seconds in loop.clock.lap().items()}
        return Window(self.batches.triples / self.batches.steps / step_seconds, 1e3 * step_seconds, phases)

    def _run(self, loop: Loop, steps: int) -> None:
        while steps > 0:
            now = min(steps, self.batches.steps)
            loop.run(self._epoch, 0, now, lambda step: True)
            self._epoch += 1
            steps -= now
