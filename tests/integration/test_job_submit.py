"""jobs/ under `ray job submit`, against a head that `ray start` made, with token authentication."""

import asyncio
import json
import math
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from distkg.cluster.watch.run_folder import newest_step
from distkg.data.generate import generate
from tests.monitoring import samples

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"


@dataclass(frozen=True)
class Head:
    """A Ray head of this test's own: where its jobs are sent, the token that it asks for, its page of metrics."""

    url: str
    token: str
    metrics: str
    environment: dict[str, str]

    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.url, headers={"Authorization": f"Bearer {self.token}"})


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Unix sockets end at 107 characters, so Ray's folder cannot lie deep in pytest's.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # as in conftest.py
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else its end takes half a minute
    }
    process, url, metrics = start_head(folder, environment)
    try:
        wait_for(url, process, folder / "log")
        yield Head(url, token, metrics, environment)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def start_head(folder: Path, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], str, str]:
    """The process of a head, and the addresses of its dashboard and of its metrics."""
    gcs, dashboard, client, agent, metrics = free_ports(5)
    options = {
        "--port": gcs,
        "--dashboard-port": dashboard,
        "--ray-client-server-port": client,
        "--dashboard-agent-listen-port": agent,
        "--metrics-export-port": metrics,
        "--node-ip-address": "127.0.0.1",
        "--num-cpus": 4,
        "--object-store-memory": 128 * 2**20,
        "--temp-dir": folder / "ray",
    }
    flags = [f"{name}={value}" for name, value in options.items()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", *flags], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    return process, f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics"


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the head ended:\n{log.read_text()}"
        try:
            if requests.get(f"{url}/api/version", timeout=5).status_code in (200, 401):
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    pytest.fail(f"the head did not answer within {seconds} s:\n{log.read_text()}")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "small"
    generate(str(path), entities=300, relations=6, triples=3000, seed=1)
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user's checkout holds, without this machine's environment; it is uploaded with every job."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("distkg", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def submit(
    head: Head, project: Path, store: Path, run: Path, epochs: int, *flags: str, python: str = sys.executable
) -> str:
    config = {
        "data": {"store": str(store)},
        "model": {"name": "distmult", "dim": 16},
        "train": {"workers": 2, "epochs": epochs, "batch_size": 256},
        "evaluate": {"every": 1},
    }
    return submit_config(head, project, config, run, *flags, python=python)


def submit_config(
    head: Head, project: Path, config: dict[str, Any], run: Path, *flags: str, python: str = sys.executable
) -> str:
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    return head.client().submit_job(
        entrypoint=f"{python} jobs/train.py config.yaml --run {run} {' '.join(flags)}",
        runtime_env={"working_dir": str(project), **({} if "uv run" in python else {"py_executable": python})},
    )


def wait_until_ended(client: JobSubmissionClient, job: str, seconds: float) -> JobStatus:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = client.get_job_status(job)
        if status.is_terminal():
            return status
        time.sleep(0.5)
    pytest.fail(f"job {job} is {status} after {seconds} s:\n{client.get_job_logs(job)}")


def epochs_of(metrics: Path) -> list[float]:
    return [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]


async def follow(client: JobSubmissionClient, job: str) -> str:
    return "".join([text async for text in client.tail_job_logs(job)])


def test_without_the_token_nothing_is_accepted(head: Head) -> None:
    answer = requests.post(f"{head.url}/api/jobs/", json={"entrypoint": "true"}, timeout=30)
    assert answer.status_code == 401


def test_a_submitted_job_pretrains_on_two_graphs(head: Head, project: Path, store: Path, tmp_path: Path) -> None:
    generate(str(tmp_path / "other"), entities=80, relations=3, triples=500, seed=2)
    config = {
        "data": {"graphs": [str(store), str(tmp_path / "other")]},
        "model": {"name": "ultra", "options": {"width": 8, "layers": 2, "hidden": 8}},
        "objective": {"name": "self_adversarial", "margin": 0.0},
        "negatives": {
            "source": "kmas",
            "options": {"schedule": "constant", "refresh_steps": 5},
            "count": 8,
            "pool": {"actors": 1, "cpus_per_actor": 0.5, "sync": True},
        },
        "optimizer": {"name": "adam", "learning_rate": 0.005},
        "train": {"workers": 2, "epochs": 2, "batch_size": 8, "steps_per_epoch": 10},
        "evaluate": {"every": 1, "max_valid_triples": 10},
    }
    client = head.client()
    uv = f"{Path(sys.executable).parent / 'uv'} run --no-project --python {sys.executable}"
    job = submit_config(head, project, config, tmp_path / "run", python=uv)
    log = asyncio.run(follow(client, job))
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, log
    assert "Graphs, once on each node" in log
    assert "epoch 2" in log
    assert "100% of negatives delivered" in log
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [Path(each["graph"]).name for each in result["by_graph"]] == ["small", "other"]
    assert "By graph" in (tmp_path / "run" / "report.html").read_text()
    check_metrics(head, str(tmp_path / "run"), steps=20)
    check_dashboard(head, job)


def metrics_of(head: Head, run: Path) -> set[str]:
    """Names of metrics of a run, distkg's and Ray Train's, that are not 0."""
    runs = {("run", str(run)), ("ray_train_run_name", run.name)}
    found = samples(requests.get(head.metrics, timeout=30).text)
    return {name for name, each in found.items() if any(value and runs & set(labels.items()) for labels, value in each)}


def check_metrics(head: Head, run: str, steps: int) -> None:
    """A cluster's own port exports the counters of the run, also after it; foundation models fetch no rows."""
    page = requests.get(head.metrics, timeout=30).text
    counted = {
        name: sum(value for labels, value in each if labels.get("run") == run) for name, each in samples(page).items()
    }
    assert counted["ray_distkg_steps_total"] == steps
    assert counted["ray_distkg_triples_total"] > 0
    assert counted["ray_distkg_exchanged_bytes_total"] > 0
    assert counted.get("ray_distkg_fetched_rows_total", 0) == 0


def check_dashboard(head: Head, job: str) -> None:
    """Ray Train's page of the dashboard has the run of a job by its name, with both workers."""
    address, login = f"{head.url}/api/train/v2/runs/v1", {"Authorization": f"Bearer {head.token}"}
    runs = requests.get(address, headers=login, timeout=60).json()["train_runs"]
    (run,) = (run for run in runs if run["job_details"]["submission_id"] == job)
    assert (run["name"], run["status"]) == ("run", "FINISHED")
    assert [worker["world_rank"] for worker in run["attempts"][-1]["workers"]] == [0, 1]


def test_a_job_is_stopped_cleanly_and_resumed_and_its_log_can_be_followed(
    head: Head, project: Path, store: Path, tmp_path: Path
) -> None:
    client = head.client()
    job = submit(head, project, store, tmp_path / "run", epochs=10_000)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline, client.get_job_logs(job)
        assert not client.get_job_status(job).is_terminal(), client.get_job_logs(job)
        time.sleep(0.25)
    reported = "ray_train_report_total_blocked_time_s"
    while not {"ray_distkg_validation_mrr", reported} <= (seen := metrics_of(head, tmp_path / "run")):
        assert time.monotonic() < deadline, seen
        time.sleep(0.5)

    assert client.stop_job(job)
    assert wait_until_ended(client, job, 60) == JobStatus.STOPPED
    assert not (tmp_path / "run" / "result.json").exists()
    log = client.get_job_logs(job)
    last = re.search(r"stopped by SIGTERM, with a checkpoint at step ([\d,]+)\. Continue with the same command", log)
    assert last is not None, f"no checkpoint within the grace of `ray job stop`:\n{log}"
    assert int(last[1].replace(",", "")) == newest_step(tmp_path / "run")
    time.sleep(3)
    lines = metrics.read_text().count("\n")
    time.sleep(3)
    assert metrics.read_text().count("\n") == lines, "workers of the stopped job go on training"

    reached = math.ceil(epochs_of(metrics)[-1])
    # Workers run in an environment of the job's own, here this one behind another name.
    environment = tmp_path / "python"
    environment.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/started\nexec {sys.executable} "$@"\n')
    environment.chmod(0o755)
    again = submit(head, project, store, tmp_path / "run", reached + 2, "--resume", python=str(environment))
    log = asyncio.run(follow(client, again))
    assert client.get_job_status(again) == JobStatus.SUCCEEDED, log
    assert f"epoch {reached + 2}" in log
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["train"]["workers"] == 2
    assert result["train"]["epochs"] == reached + 2
    assert result["metrics"]["test"]["mrr"] > 0.1
    assert (tmp_path / "run" / "report.html").exists()
    started = (tmp_path / "started").read_text()
    assert "jobs/train.py" in started
    assert started.count("default_worker.py") >= 2
    epochs = epochs_of(metrics)
    assert epochs == sorted(set(epochs)), "the resumed run repeats what was already reported"


def test_a_job_with_a_relative_run_folder_fails_with_the_way_out(head: Head, project: Path, store: Path) -> None:
    client = head.client()
    job = submit(head, project, store, Path("runs/first"), epochs=1)
    assert wait_until_ended(client, job, 120) == JobStatus.FAILED
    assert "--run an absolute path on storage that every node sees" in client.get_job_logs(job)
