"""Compilation ahead of time: the kernels of configurations, into the cache that later commands read.

A kernel is compiled at its first call, which takes a second or two, and cached for the processor at hand. Here each
configuration trains for a few steps on a tiny generated graph, in as many processes as there are cores, so that the
first run on a machine, or of an image, does not compile.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from multiprocessing import get_context
from pathlib import Path

import torch

from distkg.cluster.launch import launch_training
from distkg.compilation import cache_folder
from distkg.config import RunConfig, load_config, preset_names
from distkg.data.generate import generate
from distkg.kernels.gather_scatter import gather_rows, sum_rows
from distkg.kernels.merge_sorted import merge_sorted

ENTITIES, RELATIONS, TRIPLES, SEED = 60, 4, 400, 1


@dataclass(frozen=True)
class Warmed:
    """Result of compiling the kernels of one configuration.

    Attributes:
        name: name or path of the configuration.
        seconds: duration of its training, in which they were compiled.
        error: why its kernels could not be compiled; empty if they were.
    """

    name: str
    seconds: float
    error: str = ""


def warm(configs: Sequence[str] = ()) -> Iterator[Warmed]:
    """Compile the kernels of configurations, by default of all presets, and yield each when it is done.

    Raises:
        ConfigError: no such configuration, or it is not valid.
        OSError: there is no folder in which compiled kernels could be kept.
    """
    if cache_folder() is None:
        raise OSError("no folder for compiled kernels can be written; set NUMBA_CACHE_DIR to one")
    names = list(configs) or [f"preset:{name}" for name in preset_names()]
    loaded = [load_config(name) for name in names]
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), max_tasks_per_child=1) as pool:
            yield from pool.map(_warm_one, names, loaded)
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _warm_one(name: str, config: RunConfig) -> Warmed:
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="distkg-warm-") as folder, redirect_stdout(StringIO()):
            store = str(Path(folder) / "store")
            generate(store, entities=ENTITIES, relations=RELATIONS, triples=TRIPLES, seed=SEED)
            launch_training(smallest(config, store), Path(folder) / "run")
            _exchange()
    except Exception as error:  # one configuration that does not run is no reason to leave out the others
        return Warmed(name, time.monotonic() - started, f"{type(error).__name__}: {error}")
    return Warmed(name, time.monotonic() - started)


def smallest(config: RunConfig, store: str) -> RunConfig:
    """Return a configuration that runs the same kernels for two steps on a store, on one worker, without Ray."""
    tree = config.model_dump(exclude_unset=True)
    sections: dict[str, dict[str, object]] = {
        "data": {"graphs": [store]} if "graphs" in tree.get("data", {}) else {"store": store},
        "train": {"workers": 1, "epochs": 2, "batch_size": 32, "time_limit_seconds": None},
        "evaluate": {"every": 1},
        "checkpoint": {"every": 1},
    }
    for section, values in sections.items():
        tree[section] = {**tree.get(section, {}), **values}
    if "steps_per_epoch" in tree["train"]:
        tree["train"]["steps_per_epoch"] = 2
    tree.pop("cluster", None)
    tree.get("negatives", {}).pop("pool", None)
    tree.get("model", {}).get("options", {}).pop("modalities", None)  # the graph has no tokens
    return RunConfig.model_validate(tree)


def _exchange() -> None:
    """Call the kernels of the exchange between workers, of which there is one here."""
    ids, rows = torch.arange(2), torch.zeros(2, 8)
    merge_sorted(ids, [1, 1])
    sum_rows([(ids, gather_rows(rows, ids))], 2)
