"""What a run leaves in its folder: its configuration, provenance, metrics, checkpoints, notices and result."""

from __future__ import annotations

import json
import logging
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from distkg import __version__
from distkg.config import ConfigError, RunConfig, load_config
from distkg.data.storage.atomic_file import replace_text
from distkg.data.storage.local_path import local_path
from distkg.data.storage.location import make_folder

Record = dict[str, Any]

LEASE = "lease.json"
"""Names the driver that writes to a run folder or search, while there is one; see ``distkg.cluster.watch.lease``."""
_log = logging.getLogger(__name__)

_LIBRARIES = ("torch", "numpy", "numba", "pyarrow", "ray", "dgl")


class RunFolder:
    """Paths and atomic writes; only the first rank writes."""

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
        """The configuration of the run.

        Raises:
            ConfigError: the folder is no run folder.
        """
        if not self.config.is_file():
            raise ConfigError(
                f"{self.path} is no run folder: it holds no config.yaml. Name a folder that training wrote."
            )
        return load_config(str(self.config))

    def report(self, line: Record) -> None:
        """Append a line to metrics.jsonl."""
        _append(self.metrics, line)

    def note_checkpoint(self, name: str) -> None:
        """Append a checkpoint that was committed to checkpoints.jsonl; the line outlives the checkpoint."""
        _append(self.saved, {"time": round(time.time(), 3), "checkpoint": name})

    def last_checkpoint(self) -> str | None:
        """Name of the last checkpoint that was ever committed; None where there was none."""
        return next((str(line["checkpoint"]) for line in reversed(_lines(self.saved)) if "checkpoint" in line), None)

    def last_step(self) -> int:
        """The last step that metrics.jsonl reports; 0 where it has no line."""
        return max((line["step"] for line in _lines(self.metrics) if isinstance(line.get("step"), int)), default=0)

    def notice(self, text: str) -> None:
        """Append what the user must know to notices.jsonl, from where the driver and the report show it."""
        _log.warning("%s", text)
        _append(self.notices, {"time": round(time.time(), 3), "notice": text})

    def read_notices(self) -> list[str]:
        """The texts of notices.jsonl."""
        return [str(line["notice"]) for line in _lines(self.notices) if "notice" in line]

    def forget_after(self, step: int, *, validated: bool) -> None:
        """Drop the lines of steps that a resumed run takes again, and the result that it will replace.

        Args:
            step: the one that it goes on from.
            validated: whether the checkpoint of that step knows of its validation; else that was lost with the process,
                and its model is not kept as the best.
        """
        self.result.unlink(missing_ok=True)
        if self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            replace_text(self.metrics, "".join(line for line in lines if _place(line) <= (step, validated)))

    def write_result(self, result: Record) -> None:
        replace_text(self.result, json.dumps(result, indent=2) + "\n")


def versions(*more: str) -> dict[str, str]:
    """Versions of distkg, Python and those installed of the libraries that decide a result, and of ``more``."""
    found = {"distkg": __version__, "python": platform.python_version()}
    for library in (*_LIBRARIES, *more):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _append(path: Path, line: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _lines(path: Path) -> list[Record]:
    """The JSON objects of a file of lines; a line torn by a crash is left out."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]


def _place(line: str) -> tuple[int, bool]:
    """The step of a line, and whether it tells of a validation, which comes after the step's other lines."""
    try:
        found = json.loads(line)
        return int(found["step"]), "valid" in found
    except (ValueError, KeyError, TypeError):
        return 1 << 62, True  # a line torn by a crash
