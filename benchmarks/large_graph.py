"""A generated graph of ten million entities and fifty million triples, from the first command to the last.

Runs the commands of a user one after the other on two workers: generate, train for an epoch, evaluate, export and
predict. Beside the seconds of each stand the memory of all its processes together, where a page that several map counts
once, and that of the largest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from benchmarks.common import BenchmarkError, Figures, begin, finish, settings_of
from benchmarks.processes import WORKERS
from distkg.data.store.graph_store import Store

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Workload:
    """Sizes of the graph and of the run; ``queries`` are evaluated, and as many predicted."""

    entities: int = 10_000_000
    relations: int = 100
    triples: int = 50_000_000
    dim: int = 64
    negatives: int = 256
    batch_size: int = 8192
    queries: int = 200
    seed: int = 0

    @classmethod
    def quick(cls) -> Workload:
        return cls(entities=300, relations=6, triples=3000, dim=16, negatives=16, batch_size=256, queries=20)


@dataclass(frozen=True)
class Watched:
    """What a command took.

    Attributes:
        seconds: wall time.
        together: GB of all its processes at their highest, pages that several map counted once.
        largest: GB of its largest process at its highest.
    """

    seconds: float
    together: float
    largest: float


def watched(*command: str) -> Watched:
    """Run a command of distkg and look at the memory of its processes twice a second; raises as ``watched_process``."""
    return watched_process([sys.executable, "-m", "distkg", *command])


def watched_process(arguments: Sequence[str]) -> Watched:
    """Run a command and look at the memory of its processes twice a second.

    Raises:
        BenchmarkError: it failed; the message ends with what it printed last.
    """
    start, together, largest = time.perf_counter(), 0.0, 0.0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        with subprocess.Popen(arguments, stdout=printed, stderr=subprocess.STDOUT) as process:
            root = psutil.Process(process.pid)
            while process.poll() is None:
                sizes = [_pss(each) for each in (root, *_children(root))]
                together, largest = max(together, sum(sizes)), max(largest, *sizes)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_SECONDS)
        printed.seek(0)
        output = printed.read()
    if process.returncode:
        command = " ".join(arguments)
        raise BenchmarkError(f"{command} ended with exit code {process.returncode}:\n{output[-2000:]}")
    return Watched(time.perf_counter() - start, together / 1e9, largest / 1e9)


def _children(root: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return root.children(recursive=True)
    return []


def _pss(process: psutil.Process) -> int:
    with suppress(psutil.Error, OSError):
        return int(process.memory_full_info().pss)
    return 0


def commands(folder: Path, work: Workload) -> dict[str, list[str]]:
    """Return the commands in their order: name → arguments of distkg."""
    store, run = str(folder / "store"), str(folder / "run")
    several = ["--workers", str(WORKERS)]
    sizes = {"--entities": work.entities, "--relations": work.relations, "--triples": work.triples, "--seed": work.seed}
    queries, answers = str(folder / "queries.tsv"), str(folder / "answers.parquet")
    return {
        "generate": ["generate", "--store", store, *(str(part) for pair in sizes.items() for part in pair)],
        "train": ["train", str(folder / "run.yaml"), "--run", run],
        "evaluate": ["evaluate", run, "--triples", str(work.queries // 2), "--json", *several],
        "export": ["export", run, "--to", str(folder / "export"), *several],
        "predict": ["predict", run, "--queries", queries, "--output", answers, *several],
    }


def one_epoch(folder: Path, work: Workload) -> dict[str, object]:
    """Return the configuration of an epoch of ComplEx with shared negatives."""
    return {
        "data": {"store": str(folder / "store")},
        "model": {"name": "complex", "dim": work.dim},
        "objective": {"name": "logistic"},
        "negatives": {"count": work.negatives // 2},
        "optimizer": {"name": "rowwise_adagrad"},
        "train": {"workers": WORKERS, "epochs": 1, "batch_size": work.batch_size, "overlap": True},
        "evaluate": {"max_valid_triples": work.queries // 2, "max_final_triples": work.queries // 2},
    }


def write_queries(folder: Path, work: Workload) -> None:
    """Write queries for the tails of test triples."""
    store = Store.open(str(folder / "store"))
    triples = store.triples("test")[: work.queries]
    relations = store.relation_labels().to_pylist()
    anchors = store.entity_labels_of(triples[:, 0])
    lines = (f"{anchor}\t{relations[r]}\n" for anchor, r in zip(anchors, triples[:, 1], strict=True))
    (folder / "queries.tsv").write_text("".join(lines))


def repetition(folder: Path, work: Workload, figures: Figures) -> None:
    """Everything once, in a new folder."""
    if folder.exists():
        raise BenchmarkError(f"{folder} exists; name a new folder: the graph and the run are made in it")
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(one_epoch(folder, work)))
    total, most = 0.0, 0.0
    for name, command in commands(folder, work).items():
        if name == "predict":
            write_queries(folder, work)
        found = watched(*command)
        figures.add(name, {"seconds": found.seconds, "GB together": found.together, "GB largest": found.largest})
        print(f"{name}: {found.seconds:.0f} s, {found.together:.1f} GB, largest {found.largest:.1f} GB", flush=True)
        if name != "generate":
            total, most = total + found.seconds, max(most, found.together)
    line = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[0])
    figures.add("train, of it the epoch", {"triples/s": line["triples_per_second"]})
    figures.add("train to predict", {"seconds": total, "GB together": most})


def main(arguments: Sequence[str] | None = None) -> Path:
    """Each repetition in a numbered folder of its own."""
    session = begin(__file__, str(__doc__), arguments, "folder", repetitions=1)
    work = Workload.quick() if session.quick else Workload()
    figures = Figures()
    for number in session.repetitions:
        repetition(Path(session.options.folder) / str(number), work, figures)
    return finish(session, settings_of(work, workers=WORKERS), figures)


if __name__ == "__main__":
    main()
