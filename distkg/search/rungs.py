"""Rungs of a search by successive halving on k-cores: GraSH (Kochsiek et al. 2022, arXiv 2207.04979).

Every rung may spend the same part of the budget, whose unit is a full run: all training triples, all epochs. The first
rung trains every configuration on a small core for a few epochs; each later rung trains the best ones of the rung
before, from new vectors, on a larger core for more epochs. A rung ranks the validation triples whose entities are in
its core, so scores are compared within one rung only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from distkg.config import RunConfig
from distkg.search.space import Choice, Interval, Parameters, Space, SpaceError, Value, describe_value, with_parameters
from distkg.search.trials import SearchError, Trial, finished_trials

CORES = "cores"
"""Folder of the stores of k-cores in that of a search."""

LEAST_VALID = 50
"""Smallest number of validation triples in a core, where the whole graph has as many: fewer would be noise."""


@dataclass(frozen=True)
class Rung:
    """One rung of a search.

    Attributes:
        trials: number of configurations that it trains.
        share: cost of each of its trials, as a share of a full run.
        core: k of the core on which they train; 0 for the whole graph.
        entities, triples, valid_triples: sizes of the core: entities, training triples, and validation triples whose
            entities are both in it.
        entity_share: its share of all entities.
        epochs: epochs of each trial.
    """

    trials: int
    share: float
    core: int
    entities: int
    triples: int
    valid_triples: int
    entity_share: float
    epochs: int


@dataclass(frozen=True)
class Core:
    """Sizes of a k-core: its k, entities, training triples and validation triples."""

    k: int
    entities: int
    triples: int
    valid_triples: int


def rung_sizes(trials: int, rungs: int) -> list[int]:
    """Return the trials of each rung: ``trials`` in the first, and the same reduction from rung to rung, down to one
    configuration after the last.

    Raises:
        SearchError: too few trials, so that two rungs would have the same size.

    >>> rung_sizes(64, 3), rung_sizes(32, 3)
    ([64, 16, 4], [32, 10, 3])
    """
    sizes = _sizes(trials, rungs)
    if any(larger <= smaller for larger, smaller in pairwise([*sizes, 1])):
        enough = next(n for n in range(trials, 4**rungs + 1) if all(a > b for a, b in pairwise([*_sizes(n, rungs), 1])))
        raise SearchError(
            f"--trials {trials} are too few for --rungs {rungs}: each rung trains fewer configurations than the one "
            f"before. Give --trials {enough} or more, or fewer rungs"
        )
    return sizes


def _sizes(trials: int, rungs: int) -> list[int]:
    return [round(trials ** ((rungs - i) / rungs)) for i in range(rungs)]


def plan_rungs(
    config: RunConfig, cores: Sequence[Core], count_valid: Callable[[int], int], sizes: Sequence[int], budget: float
) -> tuple[Rung, ...]:
    """Plan the rungs: a trial may cost ``budget`` / rungs / trials of its rung, in full runs, at most 1.

    The core is the smallest one with at least the square root of that share of the training triples, and with
    ``LEAST_VALID`` validation triples; the epochs make up the rest, so that triples and epochs are reduced alike.

    Args:
        cores: every core of the training triples by rising k, the whole graph first (k = 0); ``valid_triples`` may be
            unknown, -1.
        count_valid: number of validation triples inside the k-core.
        budget: cost of all rungs together, in full runs.

    Raises:
        SearchError: a trial would train for less than half an epoch.
    """
    rungs = []
    for place, trials in enumerate(sizes, 1):
        share = min(1.0, budget / len(sizes) / trials)
        core = _smallest(cores, count_valid, math.sqrt(share))
        epochs = share * config.train.epochs * cores[0].triples / core.triples
        if epochs < 0.5:
            raise SearchError(
                f"trials of rung {place} would train for {epochs:.2g} epochs: {trials} trials of train.epochs = "
                f"{config.train.epochs} share {budget / len(sizes):.3g} full runs. Give a larger --budget, fewer "
                "--trials, or more train.epochs"
            )
        part = core.entities / cores[0].entities
        rungs.append(
            Rung(trials, share, core.k, core.entities, core.triples, core.valid_triples, part, max(1, round(epochs)))
        )
    return tuple(rungs)


def _smallest(cores: Sequence[Core], count_valid: Callable[[int], int], share: float) -> Core:
    whole = cores[0]
    least = min(LEAST_VALID, count_valid(0))
    for core in reversed(cores):
        if core.triples >= share * whole.triples and (valid := count_valid(core.k)) >= least:
            if core.triples == whole.triples:
                break
            return Core(core.k, core.entities, core.triples, valid)
    return Core(0, whole.entities, whole.triples, count_valid(0))


def rung_config(config: RunConfig, rung: Rung, store: str) -> RunConfig:
    """Return the configuration of a trial in a rung; its warm-up, time limit and negatives are reduced too.

    As in GraSH, the number of negatives of a query is reduced with the number of entities, so that as large a share
    of them is drawn.

    Args:
        store: address of the store of the rung's core.
    """
    whole = config.train.epochs
    changes: dict[str, Value] = {"data.store": store, "train.epochs": rung.epochs}
    if config.train.time_limit_seconds is not None:
        changes["train.time_limit_seconds"] = config.train.time_limit_seconds * rung.share
    if config.optimizer.warmup_epochs:
        changes["optimizer.warmup_epochs"] = config.optimizer.warmup_epochs * rung.epochs / whole
    negatives: Mapping[str, Any] = config.model_dump().get("negatives", {})
    if "count" in negatives:
        changes["negatives.count"] = math.ceil(negatives["count"] * rung.entity_share)
    return with_parameters(config, changes)


def check_batches(config: RunConfig, space: Space, rungs: Sequence[Rung]) -> None:
    """Refuse batches that are larger than a core: a step would use all its triples, whatever the batch size.

    Raises:
        SearchError, SpaceError: ``train.batch_size`` of the configuration, or of the space, is larger than a core.
    """
    smallest = min(rungs, key=lambda rung: rung.triples)
    form = space.get("train.batch_size")
    largest = _largest(form) if form is not None else config.train.batch_size
    if largest <= smallest.triples:
        return
    error = (
        f"is {describe_value(largest)}, and the {describe_core(smallest)} of rung {rungs.index(smallest) + 1} has "
        f"{smallest.triples:,} training triples. Lower it, or give a larger --budget or fewer --trials, which makes "
        "the cores larger"
    )
    if form is None:
        raise SearchError(f"train.batch_size {error}")
    raise SpaceError(f"the space: the largest train.batch_size {error}")


def _largest(form: Choice | Interval) -> float:
    return max(value for value in form.samples() if isinstance(value, int | float))


def describe_core(rung: Rung) -> str:
    """Return the name of the graph of a rung: ``12-core``, or ``whole graph``."""
    return f"{rung.core}-core" if rung.core else "whole graph"


def describe_rungs(rungs: Sequence[Rung]) -> Iterator[str]:
    """Yield a line for each rung: trials, core and epochs."""
    for place, rung in enumerate(rungs, 1):
        yield (
            f"rung {place}: {rung.trials} trials on the {describe_core(rung)} ({rung.triples:,} training triples, "
            f"{rung.entities:,} entities, {rung.valid_triples:,} validation triples) for {rung.epochs} epochs: "
            f"{rung.share:.3g} of a full run each"
        )


@dataclass(frozen=True)
class Started:
    """Trial of a rung that was started: its number, its rung from 1, and the trial that it was promoted from."""

    number: int
    rung: int
    promoted_from: int | None


@dataclass(frozen=True)
class Proposal:
    """Next trial of a search: of ``rung`` from 1, with the parameters of a trial of the rung before; None for new
    parameters."""

    rung: int
    promoted: Trial | None = None

    @property
    def parameters(self) -> Parameters | None:
        return None if self.promoted is None else self.promoted.parameters


WAIT, DONE = "wait", "done"


def next_proposal(rungs: Sequence[Rung], started: Sequence[Started], ended: Sequence[Trial]) -> Proposal | str:
    """Return the next trial to start, ``WAIT`` until trials of the current rung have ended, or ``DONE``.

    The state of a search by rungs is this function of its trials, so that a resumed search goes on where it was.
    """
    for place, rung in enumerate(rungs, 1):
        begun = [each for each in started if each.rung == place]
        if place == 1:
            expected = rung.trials
            if len(begun) < expected:
                return Proposal(1)
        else:
            chosen = promoted(ended, place - 1, rung.trials)
            expected, taken = len(chosen), {each.promoted_from for each in begun}
            for trial in chosen:
                if trial.number not in taken:
                    return Proposal(place, trial)
        if sum(trial.rung == place for trial in ended) < expected:
            return WAIT
    return DONE


def promoted(ended: Sequence[Trial], rung: int, count: int) -> list[Trial]:
    """Return the best finished trials of a rung, at most ``count``, best first; the earlier of equal ones."""
    trials = [trial for trial in finished_trials(ended) if trial.rung == rung]
    return sorted(trials, key=lambda trial: (-trial.value, trial.number))[:count]
