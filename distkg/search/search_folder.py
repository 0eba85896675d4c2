"""Folder of a search: config.yaml, space.yaml, search.jsonl, best.yaml, and a run for each trial.

The log holds one line for each trial that ended. A trial folder without a line in the log was interrupted.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from distkg.config import RunConfig, default_values, flatten, load_written_config
from distkg.data.storage.atomic_file import replace_text
from distkg.data.storage.local_path import local_path
from distkg.data.store.identity import LABELS, mismatch
from distkg.printable import printable
from distkg.redaction import redact
from distkg.search.space import Parameters, Space, read_space, space_yaml, with_parameters
from distkg.training.provenance import Provenance, read_provenance, warn_unrecorded, write_provenance
from distkg.training.run_dir import LEASE

TrialState = Literal["finished", "pruned", "failed"]


class SearchError(ValueError):
    """Error of a search that cannot continue; the message says why and what to do."""


@dataclass(frozen=True)
class Trial:
    """Trial that ended.

    Attributes:
        number: index in the order of starts, from 1.
        parameters: value of each key of the space.
        state: finished; pruned, if it was stopped early because others were better; or failed.
        valid_mrr: best validation MRR; None if it was never validated.
        epochs: epochs trained.
        seconds: training time, of all its processes together.
        error: why it failed.
    """

    number: int
    parameters: Parameters
    state: TrialState
    valid_mrr: float | None
    epochs: float
    seconds: float
    error: str = ""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return trial_name(self.number)

    @property
    def value(self) -> float:
        """Objective value for the sampler; a failed trial counts as an MRR of 0, so that similar ones are avoided."""
        return self.valid_mrr if self.state != "failed" and self.valid_mrr is not None else 0.0


_TRIAL = TypeAdapter(Trial)


def trial_name(number: int) -> str:
    """Return the name of a trial's folder.

    >>> trial_name(7)
    '0007'
    """
    return f"{number:04d}"


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the finished trial with the highest validation MRR, the earlier of equal ones; None if none has
    finished."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.valid_mrr is not None]
    return max(finished, key=lambda trial: (trial.value, -trial.number), default=None)


class SearchFolder:
    """Paths of a search folder, and the reading and writing of its files; only the driver writes, except in a
    trial's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path = local_path(path, "search folder")
        self.config = path / "config.yaml"
        self.space = path / "space.yaml"
        self.log = path / "search.jsonl"
        self.best = path / "best.yaml"
        self.trials = path / "trials"

    def start(self, config: RunConfig, space: Space, record: Provenance | None = None) -> None:
        """Write configuration and space, or compare them with those of the search in this folder.

        Args:
            record: provenance of the stores that trials train on; a store may have moved since.

        Raises:
            SearchError: the folder holds files but no search, or a search with another configuration, space or stores.
            StoreMismatchError: the search was on another store.
        """
        if not self.space.exists():
            if any(not _is_driver_file(entry.name) for entry in self.path.iterdir()):
                raise SearchError(
                    f"{self.path} is no search: it holds no space.yaml. Use a folder that is new or empty."
                )
            if record is not None:
                write_provenance(self.path, record)
            replace_text(self.config, config.to_yaml(help_text=True))
            replace_text(self.space, space_yaml(space))
            return
        self._check_same(config, space, record)
        if record is not None:
            write_provenance(self.path, record)
        replace_text(self.config, config.to_yaml(help_text=True))
        self.write_best(self.ended())  # of a store that has moved

    def _check_same(self, config: RunConfig, space: Space, record: Provenance | None) -> None:
        if read_space(str(self.space)) != space:
            raise SearchError(
                f"the search in {self.path} has another space than this one. Continue it with its own space "
                f"({self.space}), or use another folder for a new search."
            )
        # The section cluster may change: a stopped search may continue on other machines.
        moved = self._check_stores(record)
        there, here = flatten(self.read_config()), flatten(config.redacted())
        changed = [
            key
            for key in dict.fromkeys([*here, *there])
            if there.get(key) != here.get(key)
            and not key.startswith("cluster.")
            and not (moved and key in ("data.store", "data.graphs"))
        ]
        if changed:
            raise SearchError(
                f"the search in {self.path} has another configuration than this one: {', '.join(changed)} differ. "
                f"Continue it with its own configuration ({self.config}), or use another folder for a new search."
            )

    def _check_stores(self, record: Provenance | None) -> bool:
        """Return whether stores may have other addresses than before, because their recorded checksums match."""
        before = read_provenance(self.path)
        if before is None or record is None:
            for graph in record.graphs if record is not None else []:
                warn_unrecorded(self.path, graph.address)
            return False
        if len(before.graphs) != len(record.graphs):
            raise SearchError(
                f"the search in {self.path} is on {len(before.graphs)} stores, this one on {len(record.graphs)}. Use "
                "the stores of that search, or another folder for a new search."
            )
        for old, new in zip(before.graphs, record.graphs, strict=True):
            name = old.difference(new, "everything")
            if name is not None:
                raise mismatch(old, new.address, name, f"the search in {self.path}")
        return True

    def read_config(self) -> RunConfig:
        """Return the base configuration of the trials."""
        return load_written_config(str(self.config))

    def read_space(self) -> Space:
        """Return the space of the search."""
        return read_space(str(self.space))

    def ended(self) -> list[Trial]:
        """Return the trials of the log, in the order in which they ended; a line cut off by a crash is left out."""
        if not self.log.is_file():
            return []
        trials = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                trials.append(_TRIAL.validate_json(line))
            except ValidationError:
                continue
        return trials

    def append(self, trial: Trial) -> None:
        """Append a trial to the log, and rewrite best.yaml."""
        trials = [*self.ended(), trial]
        # Write the whole log, so that a line cut off by a crash is not joined with this one.
        replace_text(self.log, "".join(json.dumps(asdict(each)) + "\n" for each in trials))
        self.write_best(trials)

    def write_best(self, trials: Sequence[Trial]) -> None:
        """Write best.yaml: the configuration of the best trial, ready for `distkg train`."""
        best = best_trial(trials)
        if best is not None:
            lead = f"# Trial {best.number} of the search: validation MRR {best.value:.4f}.\n" + self._searched_on()
            config = with_parameters(self.read_config(), best.parameters)
            replace_text(self.best, lead + config.to_yaml(help_text=True))

    def _searched_on(self) -> str:
        """Return comment lines that name the stores of the search."""
        record = read_provenance(self.path)
        return "".join(
            f"# Searched on the store whose {LABELS[0]} has SHA-256 {graph.files[LABELS[0]]}.\n"
            for graph in (record.graphs if record else [])
        )

    def begin(self, parameters: Parameters) -> int:
        """Create the folder of a new trial and return its number."""
        number = max(self._numbers(), default=0) + 1
        self.trial(number).mkdir(parents=True)
        replace_text(self.trial(number) / "parameters.json", json.dumps(parameters) + "\n")
        return number

    def trial(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.trials / trial_name(number)

    def parameters(self, number: int) -> Parameters:
        """Return the parameters of a trial."""
        parameters: Parameters = json.loads((self.trial(number) / "parameters.json").read_text(encoding="utf-8"))
        return parameters

    def interrupted(self) -> list[int]:
        """Return the numbers of trials that were started and are not in the log."""
        ended = {trial.number for trial in self.ended()}
        started = (number for number in self._numbers() if (self.trial(number) / "parameters.json").exists())
        return sorted(number for number in started if number not in ended)

    def note_failure(self, number: int, error: BaseException) -> None:
        """Write the reason of a failure to the trial's folder."""
        lines = str(error).strip().splitlines() or [""]
        reason = redact(f"{type(error).__name__}: {lines[0]}")[:500]
        replace_text(self.trial(number) / "error.txt", printable(reason) + "\n")

    def outcome(self, number: int, state: TrialState) -> Trial:
        """Return the trial that ended, from the files of its run.

        A trial with error.txt has failed, and one with a result has finished, whatever ``state`` says.
        """
        folder = self.trial(number)
        error = folder / "error.txt"
        if error.exists():
            state = "failed"
        elif (folder / "result.json").exists():
            state = "finished"
        lines = metric_lines(folder)
        message = error.read_text(encoding="utf-8").strip() if error.exists() else "its process died"
        return Trial(
            number=number,
            parameters=self.parameters(number),
            state=state,
            valid_mrr=max((mrr for _, mrr in validations(lines)), default=None),
            epochs=max((float(line.get("epoch", 0)) for line in lines), default=0.0),
            seconds=max((float(line.get("time", 0)) for line in lines), default=0.0),
            error=message if state == "failed" else "",
        )

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints of every trial that ended, except the best one."""
        trials = self.ended()
        best = best_trial(trials)
        for trial in trials:
            if trial is not best:
                shutil.rmtree(self.trial(trial.number) / "checkpoints", ignore_errors=True)

    def _numbers(self) -> list[int]:
        if not self.trials.exists():
            return []
        return [int(entry.name) for entry in self.trials.iterdir() if entry.name.isdigit()]


def metric_lines(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl; empty if there is no such file."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue  # cut off by a crash
    return [line for line in lines if isinstance(line, dict)]


def validations(lines: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Return the lines with a validation, each with the best MRR so far."""
    lines_and_best: list[tuple[dict[str, Any], float]] = []
    best = -1.0
    for line in lines:
        mrr = (line.get("valid") or {}).get("mrr")
        if mrr is not None and math.isfinite(mrr):
            best = max(best, float(mrr))
            lines_and_best.append((line, best))
    return lines_and_best


def budget_share(config: RunConfig, line: dict[str, Any]) -> float:
    """Return the used share of a run's epochs or time limit, whichever is larger, at a line of its metrics."""
    limit = config.train.time_limit_seconds
    epochs = float(line.get("epoch", 0)) / config.train.epochs
    return epochs if limit is None else max(epochs, float(line.get("time", 0)) / limit)


def differences(base: RunConfig, other: RunConfig) -> list[tuple[str, Any, Any]]:
    """Return the dotted keys of ``other`` whose values differ, with both values; a key that ``base`` lacks has its
    default there."""
    before, after = default_values() | flatten(base), flatten(other)
    return [(key, before.get(key), after[key]) for key in after if before.get(key) != after[key]]


def _is_driver_file(name: str) -> bool:
    """Return whether a file of the folder belongs to a driver and not to a search."""
    return name == ".launch" or LEASE in name
