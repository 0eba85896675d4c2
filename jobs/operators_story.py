"""A night with a Ray cluster, as its operator lives it, on this machine alone:

python jobs/operators_story.py --folder /tmp/night --entities 1000000 --triples 5000000

Starts an object store and three Ray nodes, and goes on by `ray job submit`: makes a graph in the store, plans, trains
with graph and run folder at s3:// addresses, loses a node in the middle of an epoch and replaces it, evaluates and
exports on other numbers of workers, predicts, and reads the export with NumPy. Every command is printed before its
output. All processes end with the script; the folder stays, with their logs.

The object store is moto's server, which is a development dependency of distkg.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import psutil
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
HOST, BUCKET = "127.0.0.1", "night"
GRAPH, RUN, EXPORT = (f"s3://{BUCKET}/{name}" for name in ("graph", "run", "export"))
ANCHOR, RELATION = "person_0", "works_at"
RELATIONS, DIM, NEGATIVES = 12, 32, 64
OBJECT_STORE_BYTES = 128 * 2**20
LONGEST_LINE = 200
STOPS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
RAYS_DECORATION = re.compile(r"\x1b\[[\d;]*m|^\d{4}-\S+ \S+\t(?:INFO|SUCC|WARNING) \S+ -- ")
MARK = "DISTKG_OPERATORS_STORY"  # in the environment of every process of a story
RAY_READY = "Ray runtime started"
EPOCH, RESTART = re.compile(r"\] epoch ([\d.]+)"), "Restarting from the newest checkpoint"


T = TypeVar("T")


class StoryError(Exception):
    """Error of a step: a command that failed, a figure that differs, or a night that took too long."""


class EndedError(StoryError):
    """Error of a process in the background that ended before it was ready."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of graph and run; ``ranked`` is the number of test triples that are ranked."""

    entities: int
    triples: int
    epochs: int
    batch_size: int
    ranked: int


def tell(sizes: Sizes, shell: Shell) -> None:
    """Tell the story from the first process to the last."""
    shell.chapter("An object store, and three Ray nodes with room for a worker each")
    start_store(shell)
    persist(lambda: start_head(shell))
    nodes = [persist(partial(start_node, shell, name)) for name in ("node-2", "node-3")]
    wait_for_nodes(shell, 3)

    shell.chapter("What every job brings along: the code and a configuration")
    make_project(shell, sizes)

    shell.chapter("A graph in the object store, and the plan of a run")
    counts = ("--entities", sizes.entities, "--relations", RELATIONS, "--triples", sizes.triples, "--seed", 1)
    shell.job("-m", "distkg", "generate", "--store", GRAPH, *counts)
    shell.run("python", "-m", "distkg", "plan", "night.yaml")

    shell.chapter("The run, which loses a node in the middle of an epoch")
    shell.submit("night", "jobs/train.py", "night.yaml", "--run", RUN, "--resume")
    recovery = follow_and_lose(shell, nodes[-1])
    result = json.loads(shell.read(f"{RUN}/result.json"))

    shell.chapter("The metrics of the run, from this process and from a job of two workers")
    options = ("--triples", sizes.ranked, "--json")
    alone = shell.run("python", "-m", "distkg", "evaluate", RUN, *options)
    together = shell.job("jobs/evaluate.py", RUN, *options, "--workers", 2)
    for reader, output in (("this process", alone), ("two workers", together)):
        shell.check(f"metrics by {reader}", the_json(output)["metrics"], result["metrics"]["test"])

    shell.chapter("Predictions of the run, and the same scores from an export by two workers")
    query = ("--anchor", ANCHOR, "--relation", RELATION, "--known", "mark", "--top", 5)
    predicted = the_json(shell.run("python", "-m", "distkg", "predict", RUN, *query, "--json"))
    shell.job("-m", "distkg", "export", RUN, "--to", EXPORT, "--workers", 2)
    scores = scores_of_export(shell, [answer["entity"] for answer in predicted])
    for answer, score in zip(predicted, scores, strict=True):
        shell.check(f"score of {answer['label']}", score, answer["score"], tolerance=1e-5)

    shell.chapter("The morning")
    metrics, train = result["metrics"]["test"], result["train"]
    shell.say(
        f"# {train['epochs']:g} epochs and {train['steps']:,} steps, {train['workers']} workers at the end\n"
        f"# MRR {metrics['mrr']:.4f} and Hits@10 {metrics['hits@10']:.4f} of {metrics['queries']:,} queries\n"
        f"# {recovery:.0f} s from the loss of the node to the next report\n"
    )


# What the chapters do.


def start_store(shell: Shell) -> None:
    (port,) = free_ports(1)
    shell.export(
        AWS_ENDPOINT_URL=f"http://{HOST}:{port}",
        AWS_ACCESS_KEY_ID="key-of-the-night",
        AWS_SECRET_ACCESS_KEY="secret-of-the-night",
        AWS_DEFAULT_REGION="us-east-1",
    )
    shell.start("store", "moto_server", "-H", HOST, "-p", port, ready="Running on")
    shell.run("python", "-c", f'import boto3; boto3.client("s3").create_bucket(Bucket="{BUCKET}")')


def start_head(shell: Shell) -> None:
    gcs, dashboard, client = free_ports(3)
    (shell.folder / "token").write_text(secrets.token_hex(32))
    temporary = tempfile.mkdtemp(dir=shell.sockets)
    shell.export(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(shell.folder / "token"),
        RAY_API_SERVER_ADDRESS=f"http://{HOST}:{dashboard}",
    )
    ports = (f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}")
    head = ("ray", "start", "--head", "--block", *ports, f"--temp-dir={temporary}", *node_options())
    shell.start("head", *head, ready=RAY_READY)
    shell.cluster = f"{HOST}:{gcs}"


def persist(start: Callable[[], T]) -> T:
    """Start a Ray node, again if it has ended, as systemd would: on a busy machine it gives up after 30 s."""
    for _ in range(2):
        with suppress(EndedError):
            return start()
    return start()


def start_node(shell: Shell, name: str) -> subprocess.Popen[bytes]:
    # One log monitor on a machine: else every line of a worker is shown once for each node.
    address = (f"--address={shell.cluster}", "--include-log-monitor=false")
    command = ("ray", "start", "--block", *address, *node_options())
    return shell.start(name, *command, ready=RAY_READY)


def node_options() -> list[str]:
    (agent,) = free_ports(1)
    return [
        f"--dashboard-agent-listen-port={agent}",
        "--num-cpus=1",
        '--resources={"train_slot": 1}',
        f"--object-store-memory={OBJECT_STORE_BYTES}",
    ]


def wait_for_nodes(shell: Shell, count: int) -> None:
    status = ("ray", "status", f"--address={shell.cluster}")
    while shell.output(*status).count(" node_") < count:
        time.sleep(1)
    shell.run(*status)


def make_project(shell: Shell, sizes: Sizes) -> None:
    for name in ("distkg", "jobs"):
        shutil.copytree(ROOT / name, shell.project / name, ignore=shutil.ignore_patterns("__pycache__"))
    steps = max(2, sizes.triples // sizes.batch_size)
    configuration = {
        "data": {"store": GRAPH},
        "model": {"name": "complex", "dim": DIM},
        "objective": {"name": "logistic"},
        "negatives": {"count": NEGATIVES},
        "optimizer": {"name": "rowwise_adagrad"},
        "train": {"workers": 3, "epochs": sizes.epochs, "batch_size": sizes.batch_size, "seed": 7},
        "evaluate": {"every": 1, "max_valid_triples": sizes.ranked // 2, "max_final_triples": sizes.ranked},
        "checkpoint": {"every_steps": steps // 4},
        "cluster": {"min_workers": 1},
    }
    (shell.project / "night.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))
    shell.run("ls")
    shell.run("cat", "night.yaml")


def follow_and_lose(shell: Shell, node: subprocess.Popen[bytes]) -> float:
    """Follow the log of the run to its end; kill a node after the first report of the second epoch, and start another
    one as soon as the run has gone on. Returns the seconds between the two."""
    killed = restarted = recovered = None
    for line in shell.lines("ray", "job", "logs", "night", "--follow"):
        epoch = EPOCH.search(line)
        if killed is None and epoch and float(epoch[1]) > 1:
            shell.kill(node)
            killed = time.monotonic()
        elif killed and RESTART in line:
            restarted = True
        elif killed and restarted and epoch and recovered is None:
            recovered = time.monotonic() - killed
            shell.say(f"# {recovered:.0f} s after the loss the run reports again, on two workers. A new node:")
            persist(lambda: start_node(shell, "node-4"))
    status = shell.run("ray", "job", "status", "night")
    shell.say(f"# {RUN}/failures.jsonl:\n{shell.read(f'{RUN}/failures.jsonl').decode()}")
    if "succeeded" not in status or recovered is None:
        raise StoryError("the run did not end as it should, or had no time to lose a node: use more --epochs")
    return recovered


def the_json(output: str) -> Any:
    """Return the value of the last line of an output that is JSON."""
    for line in reversed(output.splitlines()):
        if line.startswith(("{", "[")):
            with suppress(ValueError):
                return json.loads(line)
    raise StoryError("the last command has printed no JSON")


def scores_of_export(shell: Shell, answers: Sequence[int]) -> list[float]:
    """Return the scores of (ANCHOR, RELATION, answer) by the formula of docs/export.md for `complex`."""
    folder = shell.folder / "export"
    for key in shell.download(EXPORT, folder):
        shell.say(f"{key}")
    anchor, relation = (
        id_of(folder / f"{kind}.parquet", label) for kind, label in (("entities", ANCHOR), ("relations", RELATION))
    )
    files = json.loads((folder / "entities.index.json").read_text())["files"]
    entities = np.concatenate([load_file(folder / file["name"])["vectors"] for file in files])
    h, r = entities[anchor], load_file(folder / "relations.safetensors")["vectors"][relation]
    query = complex_numbers(h) * complex_numbers(r)
    return [float(np.sum(query * complex_numbers(entities[answer]).conj()).real) for answer in answers]


def id_of(file: Path, label: str) -> int:
    return int(pq.read_table(file, filters=[("label", "=", label)])["id"][0].as_py())


def complex_numbers(vector: np.ndarray) -> np.ndarray:
    real, imaginary = np.split(vector.astype(np.float64), 2)
    return real + 1j * imaginary


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


# The shell.


class Shell:
    """Runs commands of a user and prints them, their output and the time; ends what is left of them at the end.

    Attributes:
        folder: folder of the story: logs of nodes and store, token, the project.
        project: current directory of all commands, and what each job brings along.
        cluster: address of the cluster, once it stands.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.project = folder, folder / "project"
        self.cluster = ""
        self._started, self._mark = time.monotonic(), uuid4().hex
        self._others = set(psutil.Process().children())
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        self._environment = {
            **inherited,
            MARK: self._mark,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "DISTKG_SCRATCH": str(folder / "scratch"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # else other work on this machine would starve the workers
        }

    def __enter__(self) -> Shell:
        self.project.mkdir(parents=True)
        # Unix sockets have at most 107 characters in their path, so Ray's folder cannot lie deep.
        self.sockets = Path(tempfile.mkdtemp(prefix="ray-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes = self._processes()
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=30)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def _processes(self) -> list[psutil.Process]:
        """Every process of this story: descendants, and those whose parent has ended, by their environment."""
        started = set(psutil.Process().children()) - self._others
        found = {process.pid: process for root in started for process in (root, *root.children(recursive=True))}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get(MARK) == self._mark:
                    found[process.pid] = process
        return list(found.values())

    def chapter(self, title: str) -> None:
        self.say(f"\n## {title}\n")

    def say(self, text: str) -> None:
        for line in text.splitlines() or [""]:
            line = RAYS_DECORATION.sub("", line).replace(str(self.folder), "$NIGHT")
            print(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} […]", flush=True)

    def export(self, **variables: str) -> None:
        """Set variables of the environment of all later commands."""
        self._environment |= variables
        for name, value in variables.items():
            self.say(f"$ export {name}={value}")

    def start(self, name: str, *command: object, ready: str) -> subprocess.Popen[bytes]:
        """Start a process in the background; return once its output, which goes to NAME.log, has the text ``ready``."""
        words, log = self._prompt(command, f" > {name}.log &"), self.folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(words, **self._surroundings(), stdout=file, stderr=subprocess.STDOUT)
        while ready not in log.read_text(errors="replace"):
            if process.poll() is not None:
                raise EndedError(f"{name} has ended: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process and all that it has started, as when a machine loses power."""
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        self.say(f"[{self._elapsed()}] $ kill -9 {' '.join(str(each.pid) for each in tree)}")
        for send in (psutil.Process.suspend, psutil.Process.kill):  # at once: none sees the end of another
            for each in tree:
                with suppress(psutil.NoSuchProcess):
                    send(each)
        process.wait()

    def lines(self, *command: object, quiet: bool = False) -> Iterator[str]:
        """Run a command and give the lines of its output as they come."""
        words = [str(word) for word in command] if quiet else self._prompt(command)
        with subprocess.Popen(
            words, **self._surroundings(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if not quiet:
                    self.say(line)
                yield line
        if process.returncode and not quiet:
            raise StoryError(f"exit code {process.returncode}: {shlex.join(words)}")

    def run(self, *command: object) -> str:
        """Run a command and return its output."""
        return "".join(self.lines(*command))

    def output(self, *command: object) -> str:
        """Return the output of a command that is not part of the story."""
        return "".join(self.lines(*command, quiet=True))

    def job(self, *arguments: object) -> str:
        """Run Python with these arguments as a Ray job, and return its log."""
        return self.run("ray", "job", "submit", "--working-dir=.", "--", "python", *arguments)

    def submit(self, name: str, *arguments: object) -> None:
        """The same as a job of this name, which nobody waits for."""
        options = ("--working-dir=.", f"--submission-id={name}", "--no-wait")
        self.run("ray", "job", "submit", *options, "--", "python", *arguments)

    def _prompt(self, command: Sequence[object], after: str = "") -> list[str]:
        words = [str(word) for word in command]
        print(f"[{self._elapsed()}] $ {shlex.join(words)}{after}".replace(str(self.folder), "$NIGHT"), flush=True)
        return words

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._started:5.0f} s"

    def _surroundings(self) -> dict[str, Any]:
        return {"env": self._environment, "cwd": self.project, "stdin": subprocess.DEVNULL, "start_new_session": True}

    def check(self, what: str, value: Any, expected: Any, tolerance: float = 0.0) -> None:
        """Say that two values are equal, numbers up to a relative ``tolerance``, or end the story."""
        if not (math.isclose(value, expected, rel_tol=tolerance) if tolerance else value == expected):
            raise StoryError(f"{what}: {value} instead of {expected}")
        self.say(f"# equal: {what}: {value}")

    def read(self, address: str) -> bytes:
        bucket, _, key = address.removeprefix("s3://").partition("/")
        return bytes(self._s3().get_object(Bucket=bucket, Key=key)["Body"].read())

    def download(self, address: str, folder: Path) -> list[str]:
        """Download all files below an address and return their names."""
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        folder.mkdir()
        keys = [each["Key"] for each in self._s3().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]]
        for key in keys:
            self._s3().download_file(bucket, key, str(folder / Path(key).name))
        return keys

    def _s3(self) -> Any:
        import boto3

        keys = {name.lower(): value for name, value in self._environment.items() if name.startswith("AWS_")}
        return boto3.client(
            "s3",
            endpoint_url=keys["aws_endpoint_url"],
            aws_access_key_id=keys["aws_access_key_id"],
            aws_secret_access_key=keys["aws_secret_access_key"],
            region_name=keys["aws_default_region"],
        )


@contextmanager
def ended_on_time(seconds: float) -> Iterator[None]:
    """Raise an error here after this time, and SystemExit on signals; neither interrupts what follows."""

    def late(number: int, frame: FrameType | None) -> None:
        raise StoryError(f"not done after {seconds:g} s; raise --minutes or lower the sizes")

    def stopped(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGALRM, late)
    for number in STOPS:
        signal.signal(number, stopped)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tell the story once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="new folder for logs and the project of the jobs")
    parser.add_argument("--entities", type=int, default=1_000_000)
    parser.add_argument("--triples", type=int, default=5_000_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8192, help="triples in a step, over all workers")
    parser.add_argument("--ranked", type=int, default=500, help="test triples to rank, among all entities")
    parser.add_argument("--minutes", type=float, default=30, help="end everything after this time")
    options = parser.parse_args(arguments)
    if find_spec("moto") is None or find_spec("boto3") is None:
        parser.error("the object store of the story is moto's server, which is missing: pip install 'moto[s3,server]'")
    if options.folder.exists():
        parser.error(f"{options.folder} exists; name a new folder")
    sizes = Sizes(options.entities, options.triples, options.epochs, options.batch_size, options.ranked)
    try:
        with Shell(options.folder.absolute()) as shell, ended_on_time(60 * options.minutes):
            tell(sizes, shell)
    except StoryError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
