"""What a run leaves in its folder: config.yaml, provenance.json, metrics.jsonl, result.json."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from distkg import __version__
from distkg.config import ConfigError, RunConfig, load_config

Record = dict[str, Any]

LEASE = "lease.json"
"""Names the driver that writes to a run folder or search, while there is one; see ``distkg.cluster.lease``."""

_LIBRARIES = ("torch", "numpy", "numba", "pyarrow", "ray", "dgl")


class RunFolder:
    """Paths and atomic writes; only the first rank writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.provenance = path / "provenance.json"

    def write_config(self, config: RunConfig) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        _write(self.config, config.to_yaml(help_text=True))

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
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed run takes again, and the result that it will replace."""
        self.result.unlink(missing_ok=True)
        if self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            _write(self.metrics, "".join(line for line in lines if _step(line) <= step))

    def write_result(self, result: Record) -> None:
        _write(self.result, json.dumps(result, indent=2) + "\n")

    def read_result(self) -> Record | None:
        """result.json, or None where the run has not ended."""
        if not self.result.exists():
            return None
        result: Record = json.loads(self.result.read_text(encoding="utf-8"))
        return result


def versions(*more: str) -> dict[str, str]:
    """Versions of distkg, Python and those installed of the libraries that decide a result, and of ``more``."""
    found = {"distkg": __version__, "python": platform.python_version()}
    for library in (*_LIBRARIES, *more):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # a line torn by a crash


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
