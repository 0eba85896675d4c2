"""Folder of a run: its configuration, provenance, metrics, checkpoints, notices and result."""

from __future__ import annotations

import json
import logging
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from distkg import __version__
from distkg.config import ConfigError, RunConfig, load_written_config
from distkg.data.storage.atomic_file import replace_text
from distkg.data.storage.file_changes import changed
from distkg.data.storage.local_path import local_path
from distkg.data.storage.location import make_folder
from distkg.data.storage.working_copy import delete
from distkg.redaction import redact

Record = dict[str, Any]

LEASE = "lease.json"
"""File that names the driver which writes to a run folder or search; see ``distkg.cluster.watch.lease``."""
_log = logging.getLogger(__name__)

_LIBRARIES = ("torch", "numpy", "numba", "pyarrow", "ray", "dgl")


class RunFolder:
    """Paths and atomic writes of a run folder; only the first rank writes."""

    def __init__(self, path: Path) -> None:
        self.path = path = local_path(path, "run folder")
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.provenance = path / "provenance.json"
        self.saved = path / "checkpoints.jsonl"
        self.notices = path / "notices.jsonl"

    def write_config(self, config: RunConfig) -> None:
        make_folder(self.path, private=config.private)
        replace_text(self.config, config.to_yaml(help_text=True))

    def read_config(self) -> RunConfig:
        """Read the configuration of the run.

        Raises:
            ConfigError: the folder is not a run folder.
        """
        if not self.config.is_file():
            raise ConfigError(
                f"{self.path} is no run folder: it holds no config.yaml. Use a folder that `distkg train` wrote."
            )
        return load_written_config(str(self.config))

    def report(self, line: Record) -> None:
        """Append a line to metrics.jsonl."""
        _append(self.metrics, line)

    def note_checkpoint(self, name: str) -> float:
        """Append a committed checkpoint to checkpoints.jsonl, and return the Unix time that it records; the line is
        kept when the checkpoint is deleted."""
        now = round(time.time(), 3)
        _append(self.saved, {"time": now, "checkpoint": name})
        return now

    def last_checkpoint_time(self) -> float | None:
        """Return the Unix time at which the last checkpoint was committed; None if there was none, or an earlier
        version did not record it.

        The last line, not the latest time, because the wall clock may have been set back since.
        """
        times = [line["time"] for line in _lines(self.saved) if isinstance(line.get("time"), int | float)]
        return times[-1] if times else None

    def last_checkpoint(self) -> str | None:
        """Return the name of the last checkpoint that was ever committed; None if there was none."""
        return next((str(line["checkpoint"]) for line in reversed(_lines(self.saved)) if "checkpoint" in line), None)

    def last_step(self) -> int:
        """Return the last step in metrics.jsonl; 0 if it has no line."""
        return max((line["step"] for line in _lines(self.metrics) if isinstance(line.get("step"), int)), default=0)

    def notice(self, text: str) -> None:
        """Append a notice for the user to notices.jsonl, from which the driver and the report show it."""
        _log.warning("%s", text)
        _append(self.notices, {"time": round(time.time(), 3), "notice": redact(text)})

    def read_notices(self) -> list[str]:
        """Return the texts of notices.jsonl."""
        return [str(line["notice"]) for line in _lines(self.notices) if "notice" in line]

    def forget_after(self, step: int, *, validated: bool) -> None:
        """Delete the lines of steps that a resumed run repeats, and the result that it will replace.

        Args:
            step: step from which it continues.
            validated: whether the checkpoint of that step includes its validation; if not, the validation was lost
                with the process, and its model is not kept as the best.
        """
        delete(self.result)
        if self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            replace_text(self.metrics, "".join(line for line in lines if _place(line) <= (step, validated)))

    def write_result(self, result: Record) -> None:
        replace_text(self.result, json.dumps(result, indent=2) + "\n")


def versions(*more: str) -> dict[str, str]:
    """Return the versions of distkg, Python, the installed libraries that affect a result, and the libraries
    ``more``."""
    versions_by_name = {"distkg": __version__, "python": platform.python_version()}
    for library in (*_LIBRARIES, *more):
        try:
            versions_by_name[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions_by_name


def _append(path: Path, line: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    changed(path)


def _lines(path: Path) -> list[Record]:
    """Return the JSON objects of a file of lines; a line cut off by a crash is left out."""
    if not path.exists():
        return []
    values = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in values if isinstance(line, dict)]


def _place(line: str) -> tuple[int, bool]:
    """Return the step of a line, and whether it has a validation, which comes after the step's other lines."""
    try:
        record = json.loads(line)
        return int(record["step"]), "valid" in record
    except (ValueError, KeyError, TypeError):
        return 1 << 62, True  # a line cut off by a crash
