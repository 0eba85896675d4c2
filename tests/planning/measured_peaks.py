"""Peak memory of work on a rank or in a negative actor, beside its plan.

One process serves all cases. For each it does the work on a tiny store, which loads and compiles what a process takes
once, and then forks a process for each store: what earlier cases have left in the heap would change the peak.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import select
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar, cast

import torch

from distkg.cluster.sampling.hosting import make_servers
from distkg.cluster.session.worker_environment import worker_environment
from distkg.config import RunConfig, parse_config
from distkg.config.sections import ClusterConfig
from distkg.foundation.graphs.training_graphs import LearnedGraph, graphs_of
from distkg.foundation.initial_model import made_graph
from distkg.foundation.mining import relation_miners
from distkg.foundation.model_files import MODEL_FOLDER
from distkg.negatives.prefetch.pool_client import Arrays, Numbered
from distkg.negatives.prefetch.pool_events import PoolEvent
from distkg.negatives.prefetch.source_server import SourceServer
from distkg.planning.resources import Resources
from distkg.process_memory import keep_freed_memory, return_freed_memory
from distkg.sharding.ranks import Ranks
from distkg.training.family import GraphChoice, family_of
from distkg.training.run import train_on_rank
from distkg.training.services import Services
from tests.in_process_pool import InProcessPool

Tree = dict[str, dict[str, Any]]
Result = TypeVar("Result")

Work = Literal["training", "answers", "actor"]
"""What is measured: a training; the evaluation and export of a trained model; a negative actor of a training."""


@dataclass(frozen=True)
class Peak:
    """Bytes that work took beyond its process, and those of the plan.

    Attributes:
        taken: resident bytes at the peak, over those before; pages of mapped files are not counted.
        planned: bytes of the plan without the base process.
        uses: bytes of the plan, by use.
    """

    taken: int
    planned: int
    uses: dict[str, int]


@contextmanager
def measuring_process() -> Iterator[Pool]:
    """Start the process in which ``peaks_of`` measures, with the environment of a worker."""
    environment = worker_environment(ClusterConfig())
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with get_context("spawn").Pool(1, _prepare) as pool:
            pool.apply(int)
            yield pool
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def peaks_of(pool: Pool, work: Work, tree: Tree, stores: Sequence[str], tiny: str) -> list[Peak]:
    """Do the work on each store, in a process that has done the same on a tiny one."""
    peaks: list[Peak] = pool.apply(_peaks_of, (work, tree, stores, tiny))
    return peaks


def _prepare() -> None:
    import distkg.inference.export
    import distkg.relation_prediction.family  # noqa: F401  what is imported on first use is no memory of a run

    torch.set_num_threads(1)
    keep_freed_memory()
    gc.collect()
    gc.freeze()  # forks need not look at, and thereby copy, what was imported


def _peaks_of(work: Work, tree: Tree, stores: Sequence[str], tiny: str) -> list[Peak]:
    prepare, make = _WORK[work]
    with TemporaryDirectory() as folder:
        configs = [parse_config({**tree, "data": {**tree.get("data", {}), "store": store}}, "test") for store in stores]
        small = parse_config({**tree, "data": {**tree.get("data", {}), "store": tiny}}, "test")
        _make_vectors(small, Path(folder) / "tiny-vectors")
        prepare(small, Path(folder) / "tiny")
        make(small, Path(folder) / "tiny")()
        _planned(work, small)
        gc.collect()
        peaks = []
        for number, config in enumerate(configs):
            run = Path(folder) / str(number)
            _make_vectors(config, run.with_suffix(".vectors"))
            uses = in_child(lambda config=config, run=run: prepare(config, run) or _planned(work, config))  # type: ignore[misc]
            taken = growth_in_child(partial(make, config, run))
            peaks.append(Peak(taken, sum(uses.values()), uses))
    return peaks


def _make_vectors(config: RunConfig, run: Path) -> None:
    """Train the embedding run that a configuration of a foundation model reads, if it names one."""
    if config.negatives.vectors:
        tree = {"model": {"name": "distmult", "dim": 128}, "train": {"epochs": 1}, "data": {"store": config.data.store}}
        in_child(partial(_train, parse_config(tree, "vectors"), run))
        config.negatives.vectors = str(run)


def in_child(work: Callable[[], Result]) -> Result:
    """Return the result of work in a fork of this process."""
    with _forked(work) as (_, results):
        return cast("Result", _received(results))


def growth_in_child(make: Callable[[], Callable[[], object]]) -> int:
    """Return the bytes at the peak of the work that ``make`` returns, over those before, in a fork of this process.

    Pages of files do not count, and this process looks at those of the other: the system keeps no peak without files.
    """
    reading, writing = os.pipe()

    def measured() -> tuple[int, int]:
        work = make()
        return_freed_memory()
        before = anonymous_bytes()
        os.close(writing)  # the start, for the process that looks
        work()
        return before, anonymous_bytes()

    with _forked(measured) as (child, results):
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        most = 0
        while not select.select([results], [], [], LOOK_SECONDS)[0]:
            most = max(most, anonymous_bytes(child))
        before, after = _received(results)
        return max(most, after) - before


LOOK_SECONDS = 0.001


@contextmanager
def _forked(work: Callable[[], object]) -> Iterator[tuple[int, int]]:
    """Do work in a fork of this process; yields its process id, and the end of a pipe that gets its outcome."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            outcome: tuple[bool, Any] = True, work()
        except BaseException:
            outcome = False, traceback.format_exc()
        os.write(writing, pickle.dumps(outcome))
        os._exit(0)
    os.close(writing)
    try:
        yield child, reading
    finally:
        os.close(reading)
        os.waitpid(child, 0)


def _received(results: int) -> Any:
    with os.fdopen(os.dup(results), "rb") as file:
        sent = file.read()
    done, result = pickle.loads(sent) if sent else (False, "the process died")
    if not done:
        raise RuntimeError(result)
    return result


def anonymous_bytes(process: int | str = "self") -> int:
    """Return the resident bytes of a process that are not those of files, which the system can read again."""
    try:
        fields = Path(f"/proc/{process}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(fields[1]) - int(fields[2])) * resource.getpagesize()


def _planned(work: Work, config: RunConfig) -> dict[str, int]:
    """Return the planned bytes of the work by use, without the base process."""
    plan = family_of(config).plan(config, Resources(memory=None))
    hosted = {f"actor: {use}": size for use, size in plan.actor_memory.items()}
    uses = {
        "training": plan.memory | hosted,
        "answers": {use: size for use, size in plan.memory.items() if use in OF_ANSWERS},
        "actor": hosted,
    }[work]
    return {use: size for use, size in uses.items() if not use.endswith("base process")}


def _no_preparation(config: RunConfig, run: Path) -> None:
    pass


def _training(config: RunConfig, run: Path) -> Callable[[], object]:
    """Return a training, with the actor in the same process if the run has one."""
    train = partial(train_on_rank, config, run, Ranks.single())
    if not config.negatives.pool.actors:
        return train
    graphs = _graphs_of(config)
    return lambda: train(services=_services(config, graphs, partial(ForgetfulPool, depth=config.negatives.pool.depth)))


def _train(config: RunConfig, run: Path) -> None:
    train_on_rank(config, run, Ranks.single())


def _answers(config: RunConfig, run: Path) -> Callable[[], object]:
    """Return the work of ``distkg evaluate`` and ``distkg export`` on a trained model."""
    family = family_of(config)
    folder = run if family.has_vectors else run / MODEL_FOLDER
    graph = GraphChoice() if family.has_vectors else GraphChoice(store=config.data.store)

    def answer() -> None:
        with family.open(folder, Ranks.single(), graph) as predictor:
            predictor.evaluate("test", config.evaluate.max_final_triples)
            if predictor.export is not None:
                predictor.export(run / "export", False)

    return answer


CALLS = "calls.pickle"
OF_ANSWERS = frozenset(
    {
        "relations and networks",
        "evaluation",
        "known facts",
        "model and optimizer",
        "states of a batch",
        "graphs",
        "weights of edges",
    }
)
"""Uses of a run that an evaluation and an export have too."""


def _record(config: RunConfig, run: Path) -> None:
    """Train, and store what the worker publishes and requests."""
    pools: list[RecordingPool] = []

    def recording(server: SourceServer[Any, Any]) -> RecordingPool:
        pools.append(RecordingPool(server))
        return pools[-1]

    train_on_rank(config, run, Ranks.single(), services=_services(config, _graphs_of(config), recording))
    (run / CALLS).write_bytes(pickle.dumps([pool.calls for pool in pools]))


def _actor(config: RunConfig, run: Path) -> Callable[[], object]:
    """Return the work of an actor in a training: all that a worker has published and requested, again.

    What a worker sends and graphs are there before, as they lie in Ray's object store.
    """
    graphs, recorded = _graphs_of(config), pickle.loads((run / CALLS).read_bytes())

    def serve() -> None:
        for server, calls in zip(_servers(config, graphs).values(), recorded, strict=True):
            for method, *arguments in calls:
                outcome = getattr(server, method)(*arguments)
                assert not isinstance(outcome, PoolEvent), outcome

    return serve


def _graphs_of(config: RunConfig) -> dict[str, LearnedGraph]:
    if family_of(config).has_vectors:
        return {}
    return {address: made_graph(address, config) for address in graphs_of(config)}


def _servers(config: RunConfig, graphs: dict[str, LearnedGraph]) -> dict[str, SourceServer[Any, Any]]:
    if not graphs:
        return make_servers(config, {}, 0)
    miners = relation_miners(config, list(graphs.values()))
    return {address: SourceServer(miner) for address, miner in zip(graphs, miners, strict=True)}


def _services(
    config: RunConfig, graphs: dict[str, LearnedGraph], make: Callable[[SourceServer[Any, Any]], InProcessPool]
) -> Services:
    pools = {key: make(server) for key, server in _servers(config, graphs).items()}
    return Services(pool_of=pools.__getitem__, graph_of=graphs.__getitem__ if graphs else None)


class ForgetfulPool(InProcessPool):
    """Pool that keeps what actors and Ray's object store keep: two versions of the published vectors, and requests and
    replies until they are taken."""

    def __init__(self, host: SourceServer[Any, Any], depth: int) -> None:
        super().__init__(host, most=2 * depth)

    def ask(self, requests: Sequence[Numbered]) -> int:
        return super().ask(requests[: self.room()])

    def take(self, number: int, timeout: float | None) -> Any:
        self.requests = [request for request in self.requests if request.number != number]
        return super().take(number, timeout)

    def publish(self, version: int, first: int, arrays: Arrays, *, wait: bool) -> None:
        super().publish(version, first, arrays, wait=wait)
        del self.arrays[:-2]


class RecordingPool(InProcessPool):
    """Pool that records the calls of its server."""

    def __init__(self, host: SourceServer[Any, Any]) -> None:
        super().__init__(host)
        self.calls: list[tuple[Any, ...]] = []

    def ask(self, requests: Sequence[Numbered]) -> int:
        count = super().ask(requests)
        self.calls += [("answer", request) for request in requests[:count]]
        return count

    def publish(self, version: int, first: int, arrays: Arrays, *, wait: bool) -> None:
        super().publish(version, first, arrays, wait=wait)
        self.calls.append(("publish", version, 0, 1, first, self.arrays[-1]))


Prepare = Callable[[RunConfig, Path], None]
Make = Callable[[RunConfig, Path], Callable[[], object]]

_WORK: dict[str, tuple[Prepare, Make]] = {
    "training": (_no_preparation, _training),
    "answers": (_train, _answers),
    "actor": (_record, _actor),
}
"""What is done before, in another process, and what returns the work that is measured."""
