"""Folder of a search: config.yaml, space.yaml, method.yaml, search.jsonl, best.yaml, and a run for each trial.

The log holds one line for each trial that ended. A trial folder without a line in the log was interrupted. A search
with two objectives has a folder ``front`` of configurations, one by rungs has stores of k-cores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distkg.config import RunConfig, default_values, flatten, load_written_config
from distkg.data.storage.atomic_file import replace_text
from distkg.data.storage.local_path import local_path
from distkg.data.storage.working_copy import delete, delete_folder, flush, names_in, refresh_below
from distkg.data.store.identity import LABELS, mismatch
from distkg.printable import printable
from distkg.redaction import redact
from distkg.search.front import COST_NAMES, Cost, cost_of, pareto_front
from distkg.search.method import Method, method_yaml, read_method
from distkg.search.rungs import CORES, Started, describe_core
from distkg.search.space import Parameters, Space, read_space, space_yaml, with_parameters
from distkg.search.trials import SearchError, Trial, TrialState, best_trial, trial_name
from distkg.training.provenance import Provenance, read_provenance, warn_unrecorded, write_provenance
from distkg.training.run_dir import LEASE

RUNG = "rung.json"
"""File of a trial's folder that names its rung."""

_TRIAL = TypeAdapter(Trial)
_STARTED = TypeAdapter(Started)


class SearchFolder:
    """Paths of a search folder, and the reading and writing of its files; only the driver writes, except in a
    trial's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path = local_path(path, "search folder")
        self.config = path / "config.yaml"
        self.space = path / "space.yaml"
        self.method = path / "method.yaml"
        self.log = path / "search.jsonl"
        self.best = path / "best.yaml"
        self.front = path / "front"
        self.trials = path / "trials"

    def start(
        self, config: RunConfig, space: Space, record: Provenance | None = None, method: Method | None = None
    ) -> None:
        """Write configuration, space and method, or compare the former two with those of the search in this folder.

        Args:
            method: method of a new search; default: ASHA.
            record: provenance of the stores that trials train on; a store may have moved since.

        Raises:
            SearchError: the folder holds files but no search, or a search with another configuration, space or stores.
            StoreMismatchError: the search was on another store.
        """
        self.check(config, space, record)
        if not self.space.exists():
            if record is not None:
                write_provenance(self.path, record)
            replace_text(self.config, config.to_yaml(help_text=True))
            replace_text(self.method, method_yaml(method or Method()))
            replace_text(self.space, space_yaml(space))  # last: with it the folder is a search
            return
        if record is not None:
            write_provenance(self.path, record)
        replace_text(self.config, config.to_yaml(help_text=True))
        self.write_configurations(self.ended())  # of a store that has moved

    def check(self, config: RunConfig, space: Space, record: Provenance | None = None) -> None:
        """Raise the errors of ``start``; nothing is written."""
        if self.space.exists():
            self._check_same(config, space, record)
        elif any(not _is_driver_file(entry.name) for entry in self.path.iterdir()):
            raise SearchError(f"{self.path} is no search: it holds no space.yaml. Use a folder that is new or empty.")

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

    def read_method(self) -> Method:
        """Return the method of the search; ASHA for searches of earlier versions, which have no such file.

        Raises:
            SearchError: its file cannot be read.
        """
        return read_method(self.method)

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
        """Append a trial to the log, and rewrite best.yaml and the configurations of the front."""
        trials = [*self.ended(), trial]
        # Write the whole log, so that a line cut off by a crash is not joined with this one.
        replace_text(self.log, "".join(json.dumps(asdict(each)) + "\n" for each in trials))
        self.write_configurations(trials)

    def write_configurations(self, trials: Sequence[Trial]) -> None:
        """Write the configurations of the best trial (best.yaml) and of the front, ready for `distkg train`."""
        best = best_trial(trials)
        if best is None:
            return
        method = self.read_method()
        self._write_configuration(self.best, best, f"validation MRR {best.value:.4f}{_in_rung(best, method)}")
        if method.against is not None:
            self._write_front(trials, method.against)

    def _write_front(self, trials: Sequence[Trial], against: Cost) -> None:
        front = {f"{trial.name}.yaml": trial for trial in pareto_front(trials, against)}
        for name, trial in front.items():
            cost = f"{COST_NAMES[against]} {cost_of(trial, against):.4g}"
            self._write_configuration(self.front / name, trial, f"validation MRR {trial.value:.4f}, {cost}")
        for left in names_in(self.front) - front.keys():
            delete(self.front / left)

    def _write_configuration(self, path: Path, trial: Trial, scores: str) -> None:
        lead = f"# Trial {trial.number} of the search: {scores}.\n" + self._searched_on()
        path.parent.mkdir(exist_ok=True)
        config = with_parameters(self.read_config(), trial.parameters)
        replace_text(path, lead + config.to_yaml(help_text=True))

    def _searched_on(self) -> str:
        """Return comment lines that name the stores of the search."""
        record = read_provenance(self.path)
        return "".join(
            f"# Searched on the store whose {LABELS[0]} has SHA-256 {graph.files[LABELS[0]]}.\n"
            for graph in (record.graphs if record else [])
        )

    def begin(self, parameters: Parameters, rung: int | None = None, promoted_from: int | None = None) -> int:
        """Create the folder of a new trial and return its number.

        Args:
            rung: rung of the trial, from 1.
            promoted_from: trial of the rung before whose parameters these are.
        """
        number = max(self._numbers(), default=0) + 1
        self.trial(number).mkdir(parents=True)
        if rung is not None:
            place = {"rung": rung, "promoted_from": promoted_from}
            replace_text(self.trial(number) / RUNG, json.dumps(place) + "\n")
        replace_text(self.trial(number) / "parameters.json", json.dumps(parameters) + "\n")
        flush(self.path)  # before a process elsewhere looks for it
        return number

    def trial(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.trials / trial_name(number)

    def parameters(self, number: int) -> Parameters:
        """Return the parameters of a trial."""
        refresh_below(self.trial(number))
        parameters: Parameters = json.loads((self.trial(number) / "parameters.json").read_text(encoding="utf-8"))
        return parameters

    def started(self, number: int) -> Started | None:
        """Return the rung in which a trial was started; None in a search without rungs.

        Raises:
            SearchError: its file cannot be read.
        """
        path = self.trial(number) / RUNG
        if not path.is_file():
            return None
        try:
            return _STARTED.validate_python({"number": number, **json.loads(path.read_bytes())})
        except (ValueError, TypeError):
            raise SearchError(
                f"{path} does not name a rung. Remove the folder of this trial; another one will take its place"
            ) from None

    def all_started(self) -> list[Started]:
        """Return the trials of rungs that were started, in order."""
        return [started for number in sorted(self._complete()) if (started := self.started(number)) is not None]

    def interrupted(self) -> list[int]:
        """Return the numbers of trials that were started and are not in the log."""
        ended = {trial.number for trial in self.ended()}
        return sorted(number for number in self._complete() if number not in ended)

    def note_failure(self, number: int, error: BaseException) -> None:
        """Write the reason of a failure to the trial's folder."""
        lines = str(error).strip().splitlines() or [""]
        reason = redact(f"{type(error).__name__}: {lines[0]}")[:500]
        self.trial(number).mkdir(parents=True, exist_ok=True)
        replace_text(self.trial(number) / "error.txt", printable(reason) + "\n")
        flush(self.path)  # before the driver looks for it

    def outcome(self, number: int, state: TrialState) -> Trial:
        """Return the trial that ended, from the files of its run.

        A trial with error.txt has failed, and one with a result has finished, whatever ``state`` says.
        """
        folder = self.trial(number)
        refresh_below(folder)
        error = folder / "error.txt"
        if error.exists():
            state = "failed"
        elif (folder / "result.json").exists():
            state = "finished"
        lines, started = metric_lines(folder), self.started(number)
        message = error.read_text(encoding="utf-8").strip() if error.exists() else "its process died"
        return Trial(
            number=number,
            parameters=self.parameters(number),
            state=state,
            valid_mrr=max((mrr for _, mrr in validations(lines)), default=None),
            epochs=max((float(line.get("epoch", 0)) for line in lines), default=0.0),
            seconds=max((float(line.get("time", 0)) for line in lines), default=0.0),
            error=message if state == "failed" else "",
            peak_mb=_peak_mb(folder, lines),
            rung=None if started is None else started.rung,
            promoted_from=None if started is None else started.promoted_from,
        )

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints of every trial that ended, except those of the best one and of the front."""
        trials, against = self.ended(), self.read_method().against
        kept = [best_trial(trials), *(pareto_front(trials, against) if against else [])]
        for trial in trials:
            if trial not in kept:
                delete_folder(self.trial(trial.number) / "checkpoints")

    def _complete(self) -> list[int]:
        """Return the numbers of trials whose folder was written to its end."""
        return [number for number in self._numbers() if (self.trial(number) / "parameters.json").exists()]

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
    return name in (".launch", CORES) or LEASE in name


def _in_rung(trial: Trial, method: Method) -> str:
    """Return the core and the epochs that the MRR of a trial is of; empty without rungs."""
    if trial.rung is None or trial.rung > len(method.rungs):
        return ""
    rung = method.rungs[trial.rung - 1]
    return f" in rung {trial.rung}, on the {describe_core(rung)} after {rung.epochs} epochs"


def _peak_mb(run: Path, lines: Sequence[dict[str, Any]]) -> float | None:
    """Return the peak memory (MB) of the largest worker in the result of a run, or of the first one so far."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return max(map(float, json.loads((run / "result.json").read_bytes())["train"]["peak_rss_mb_per_worker"]))
    return max((float(line["peak_rss_mb"]) for line in lines if "peak_rss_mb" in line), default=None)
