"""An entity table in memory, and in a mapped file that is larger than the memory of all processes together.

Trains an epoch on one worker, without Ray, and runs evaluate, export and predict of distkg on one random graph: with
the table in memory, and on disk, in buckets of entity partitions and at random. On disk, a control group of Linux
limits the memory of all processes of a command together to less than half of the table, the pages of files that they
use included. Version 1 of control groups needs the right to make a group in the own one, as root has.
``--variants`` chooses one of two graphs.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.common import BenchmarkError, Figures, Session, begin, finish, rows_wanted, settings_of
from benchmarks.large_graph import Workload, commands, one_epoch, watched, watched_process, write_queries
from distkg.config import load_config
from distkg.host_memory import CGROUP_LIMITS
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

MEASURED = ("evaluate", "export", "predict")


@dataclass(frozen=True)
class DiskWorkload(Workload):
    """As ``Workload``; ``memory_gb`` is what all processes have together with a table on disk, of which training in
    buckets uses ``resident_share`` at a time; training ends after ``seconds`` or an epoch."""

    entities: int = 400_000
    triples: int = 200_000
    dim: int = 1024
    negatives: int = 32
    batch_size: int = 512
    memory_gb: float = 0.8
    resident_share: float = 0.15
    seconds: float = 60.0

    @classmethod
    def quick(cls) -> DiskWorkload:
        return cls(**{**asdict(Workload.quick()), "triples": 150}, memory_gb=2.0)


WORKLOADS = {
    "wide rows": DiskWorkload(),
    "10 M entities": DiskWorkload(
        entities=10_000_000, triples=5_000_000, dim=64, negatives=256, batch_size=8192, memory_gb=1.25
    ),
}


class MemoryGroup:
    """Control group with a limit of memory, in the one of this process.

    Attributes:
        launcher: command line before another one, whose processes it puts into the group.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        into = f'echo $$ > {folder}/cgroup.procs && exec "$@"'
        self.launcher = ("sh", "-c", into, "sh")

    def peak_gb(self) -> float:
        """Return the GB that the group held at most, pages of files included."""
        return int((self._folder / "memory.max_usage_in_bytes").read_text()) / 1e9

    def reset_peak(self) -> None:
        (self._folder / "memory.max_usage_in_bytes").write_text("0")


@contextmanager
def memory_group(limit_gb: float) -> Iterator[MemoryGroup]:
    """Make a group with a limit, and remove it afterwards.

    Raises:
        BenchmarkError: this process may not make one, or the system has no such groups.
    """
    own = next((path.parent for path in CGROUP_LIMITS[2:] if path.name == "memory.limit_in_bytes"), None)
    if own is None:
        raise BenchmarkError("the memory controller of control groups, version 1, is not at /sys/fs/cgroup/memory")
    folder = own / "distkg-benchmark"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(int(limit_gb * 1e9)))
    except OSError as error:
        raise BenchmarkError(f"no control group can be made in {own}: {error.strerror}. Run it as root") from None
    try:
        yield MemoryGroup(folder)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    for _ in range(100):  # processes of Ray end a little later than the command
        try:
            folder.rmdir()
            return
        except OSError:
            time.sleep(0.1)
    raise BenchmarkError(f"{folder} still has processes: {(folder / 'cgroup.procs').read_text().split()}")


def arguments_of(folder: Path, work: DiskWorkload) -> dict[str, list[str]]:
    """Return the arguments of Python by name of the measured step."""
    here = f"from benchmarks.table_on_disk import train_alone; train_alone({str(folder)!r})"
    rest = {name: arguments for name, arguments in commands(folder, work).items() if name in MEASURED}
    alone = {name: arguments[: arguments.index("--workers")] for name, arguments in rest.items()}
    return {"train": ["-c", here], **{name: ["-m", "distkg", *arguments] for name, arguments in alone.items()}}


def train_alone(folder: str) -> None:
    """Train on one rank in this process."""
    train_on_rank(load_config(f"{folder}/run.yaml"), Path(folder) / "run", Ranks.single())


def run_commands(
    folder: Path,
    work: DiskWorkload,
    row: str,
    figures: Figures,
    changes: Mapping[str, object] | None = None,
    group: MemoryGroup | None = None,
) -> None:
    """Train with changes of the section ``train``, evaluate, export and predict, and add the figures of a row."""
    config = one_epoch(folder, work)
    train = {**dict(config["train"]), "workers": 1, "time_limit_seconds": work.seconds}  # type: ignore[call-overload]
    (folder / "run.yaml").write_text(yaml.safe_dump({**config, "train": {**train, **(changes or {})}}))
    launcher = () if group is None else group.launcher
    for name, command in arguments_of(folder, work).items():
        if group is not None:
            group.reset_peak()
        found = watched_process([*launcher, sys.executable, *command])
        values = {f"{name} s": found.seconds, f"{name} GB": found.together if group is None else group.peak_gb()}
        figures.add(row, values)
        print(f"{row}: {name} {found.seconds:.0f} s, {list(values.values())[1]:.1f} GB", flush=True)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(sum(line["seconds"].values()) for line in lines)
    figures.add(row, {"triples/s": lines[-1]["epoch"] * work.triples / seconds})
    for made in ("run", "export"):
        shutil.rmtree(folder / made)


def make_store(folder: Path, work: DiskWorkload) -> None:
    """Prepare random triples in which every entity occurs once: few of them, so that the table is large."""
    rng = np.random.default_rng(work.seed)
    raw = folder / "raw"
    raw.mkdir()
    trained = rng.permutation(work.entities)[: 2 * work.triples].reshape(2, -1)
    ranked = {split: rng.integers(work.entities, size=(2, work.queries)) for split in ("valid", "test")}
    for split, (heads, tails) in {"train": trained, **ranked}.items():
        columns = {"head": heads, "relation": rng.integers(work.relations, size=len(heads)), "tail": tails}
        table = pa.table({name: pa.array(values).cast(pa.string()) for name, values in columns.items()})
        pq.write_table(table, raw / f"{split}.parquet")
    watched("prepare", str(raw), "--store", str(folder / "store"))


def repetition(folder: Path, work: DiskWorkload, figures: Figures) -> None:
    """Both in a new folder."""
    if folder.exists():
        raise BenchmarkError(f"{folder} exists; name a new folder: the graph and the run are made in it")
    folder.mkdir(parents=True)
    make_store(folder, work)
    write_queries(folder, work)
    (folder / "rows").mkdir()
    on_disk = {"table_storage": "disk", "table_folder": str(folder / "rows")}
    in_buckets = {**on_disk, "resident_share": work.resident_share}
    run_commands(folder, work, "in memory", figures)
    with memory_group(work.memory_gb) as group:
        run_commands(folder, work, f"on disk in buckets, {work.memory_gb:g} GB in all", figures, in_buckets, group)
        run_commands(folder, work, f"on disk at random, {work.memory_gb:g} GB in all", figures, on_disk, group)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Each repetition in a numbered folder of its own."""
    session: Session = begin(__file__, str(__doc__), arguments, "folder", "variants", repetitions=1)
    (name,) = rows_wanted(session, WORKLOADS) if session.options.variants else ["wide rows"]
    work = DiskWorkload.quick() if session.quick else WORKLOADS[name]
    figures = Figures()
    for number in session.repetitions:
        repetition(Path(session.options.folder) / str(number), work, figures)
    table_gb = work.entities * work.dim * 4 / 1e9
    part = "" if name == "wide rows" else name.replace(" ", "_")
    return finish(session, settings_of(work, workers=1, table_gb=round(table_gb, 2)), figures, part=part)


if __name__ == "__main__":
    main()
