"""Reader of run folders: configuration, metric lines and result, also of unfinished runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distkg.data.storage.local_path import local_path
from distkg.printable import printable_lines
from distkg.redaction import redact_tree


class RunError(ValueError):
    """Error of a folder that is not a run, or of a run's file that cannot be read; the message names it."""


@dataclass(frozen=True)
class RunRecord:
    """Content of a run folder. The folder is untrusted: values may be of any type, and numbers of any magnitude.

    Attributes:
        folder: the run folder.
        config: config.yaml as a nested dict, without the secrets of addresses; empty if it is missing.
        lines: the lines of metrics.jsonl in order of step. After a restart, later lines replace those of repeated
            steps, and ``time`` continues from the line before.
        result: result.json; empty if the run has not finished.
        damaged_lines: number of lines of metrics.jsonl that are not JSON objects; a run killed while writing leaves
            one.
        notices: notices of the run, such as a damaged checkpoint that it skipped.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    damaged_lines: int = 0
    notices: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return bool(self.result)

    def column(self, key: str, against: str) -> list[tuple[float, float]]:
        """Return pairs (``against``, ``key``) of the lines that hold both as finite numbers; keys may be dotted."""
        pairs = [(reach(line, against), reach(line, key)) for line in self.lines]
        return [(x, y) for x, y in pairs if x is not None and y is not None]

    def peak_memory(self) -> list[float]:
        """Return the peak resident bytes in the result, of each worker or of the largest alone; empty if there are
        none."""
        peaks = section(self.result, "train").get("peak_rss_mb_per_worker")
        values = [number(peak) for peak in (peaks if isinstance(peaks, list) else [peaks])]
        return [value * 1e6 for value in values if value is not None]


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; missing parts stay empty.

    Raises:
        RunError: the folder does not exist or holds none of the three files, or a file cannot be parsed.
    """
    folder = local_path(folder, "run folder")
    if not folder.is_dir():
        raise RunError(f"there is no run folder {str(folder)!r}; give the folder named by `distkg train --run`")
    if not any((folder / name).exists() for name in ("config.yaml", "metrics.jsonl", "result.json")):
        raise RunError(
            f"{str(folder)!r} holds no config.yaml, metrics.jsonl or result.json: it is not a run folder; "
            "give the folder named by `distkg train --run`"
        )
    lines, damaged = _read_lines(folder / "metrics.jsonl")
    config, result = _read_config(folder / "config.yaml"), _read_result(folder / "result.json")
    notices = [str(line["notice"]) for line in _read_lines(folder / "notices.jsonl")[0] if "notice" in line]
    return RunRecord(folder, config, continued(lines), result, damaged, notices)


def metrics_by_split(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metrics of a result by split; those of weights that are not the model's by split and weights.

    >>> metrics_by_split({"metrics": {"test": {"mrr": 0.3}}, "weights": "average", "metrics_by_weights": {
    ...     "average": {"test": {"mrr": 0.3}}, "raw": {"test": {"mrr": 0.2}}}})
    {'test': {'mrr': 0.3}, 'test, raw weights': {'mrr': 0.2}}
    """
    splits = {split: value for split, value in section(result, "metrics").items() if isinstance(value, dict)}
    weights = section(result, "metrics_by_weights")
    for name in weights:
        others = {} if name == result.get("weights") else section(weights, name)
        splits |= {f"{split}, {name} weights": each for split, each in others.items() if isinstance(each, dict)}
    return splits


def as_text(value: Any) -> str:
    """Return a configuration value as YAML on one line.

    >>> [as_text(v) for v in ("complex", 512, None, True, {"norm": "l1"})]
    ['complex', '512', 'null', 'true', '{norm: l1}']
    """
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def section(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the dict at a key; empty if there is none, or another type."""
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


def reach(tree: Any, dotted: str) -> float | None:
    """Return the finite number at a dotted path of nested dicts, or None."""
    for key in dotted.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return number(tree)


def number(value: Any) -> float | None:
    """Return ``value`` as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of floats
        return None


def continued(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge the lines of a run and its restarts into one history.

    A restart continues from the latest checkpoint, so its first steps repeat steps already written: the later lines
    replace the earlier ones. If its clock restarts at zero, the time of the history before is added.
    """
    history: list[dict[str, Any]] = []
    offset = 0.0
    for line in lines:
        step, time = number(line.get("step")), number(line.get("time")) or 0.0
        while step is not None and history and (number(history[-1].get("step")) or 0.0) >= step:
            history.pop()
        if history and offset + time < history[-1]["time"]:
            offset = history[-1]["time"]
        history.append({**line, "time": offset + time})
    return history


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    parsed = [_object(line) for line in _text(path).split("\n") if line]
    good = [line for line in parsed if line is not None]
    return good, len(parsed) - len(good)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(_text(path), _WithoutAliases) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is not valid YAML: {printable_lines(str(error))}") from None
    if not isinstance(tree, dict):
        raise RunError(f"{path} is no mapping of sections, so it is not a configuration that `distkg train` wrote")
    config: dict[str, Any] = redact_tree({str(name): part for name, part in tree.items()})
    return config


def _read_result(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        result = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not a JSON object: {error}") from None
    if not isinstance(result, dict):
        raise RunError(f"{path} is not a JSON object: it is a {type(result).__name__}")
    return result


class _WithoutAliases(yaml.SafeLoader):
    """YAML loader that refuses aliases, with which a few lines make an endless tree; distkg writes no aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name), which distkg does not write")
        return super().compose_node(parent, index)


def _text(path: Path) -> str:
    """Return the text of a file; empty if there is none."""
    if not path.exists():
        return ""
    if not path.is_file():
        raise RunError(f"{path} is not a plain file, so it is not a file that `distkg train` wrote")
    return path.read_text(encoding="utf-8", errors="replace")
