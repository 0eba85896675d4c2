"""The launcher on a Ray of its own: workers that meet, metrics that arrive, errors that come back."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from distkg.cluster.launch import launch_training, run_on_workers
from distkg.cluster.watch.lease import Holder, RunTakenOverError
from distkg.cluster.watch.run_folder import RunFolderError
from distkg.config import ConfigError, RunConfig
from distkg.data.generate import generate
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from distkg.training.run_dir import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _no_cluster_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def run_config(store: Path | None = None, **train: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"store": str(store or "")},
            "model": {"name": "distmult", "dim": 16},
            "train": {"epochs": 3, "batch_size": 256, **train},
            "evaluate": {"every": 1},
        }
    )


def test_four_workers_meet_on_this_machine_whatever_its_cores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: Any, run: Path, ranks: Any, *, resume: bool, listener: Any, services: Any) -> dict[str, Any]:
        total = torch.tensor([ranks.rank + 1])
        ranks.all_reduce(total)
        if ranks.first:
            with (run / "metrics.jsonl").open("a") as file:
                file.writelines(json.dumps({"epoch": epoch}) + "\n" for epoch in (1, 2))
            RunFolder(run).notice("checkpoint step-1 is skipped")
        names = ("THP_MEM_ALLOC_ENABLE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GLOO_SOCKET_IFNAME")
        return {
            "total": int(total),
            "ranks": [ranks.rank, ranks.size],
            "environment": {name: os.environ.get(name) for name in names},
            "threads": torch.get_num_threads(),
            "store": config.data.store,
            "pid": os.getpid(),
        }

    heard: list[dict[str, Any]] = []
    config = run_config(tmp_path / "store", workers=4)
    result = run_on_workers(train, config, tmp_path / "run", listener=heard.append)

    assert result["total"] == 1 + 2 + 3 + 4
    assert result["ranks"] == [0, 4]
    assert result["threads"] == 1
    assert result["pid"] != os.getpid()
    assert result["store"] == str(tmp_path / "store")
    interface = result["environment"].pop("GLOO_SOCKET_IFNAME")
    assert interface
    assert result["environment"] == {
        "THP_MEM_ALLOC_ENABLE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    assert heard == [{"epoch": 1}, {"epoch": 2}]
    assert "checkpoint step-1 is skipped" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.jsonl", "notices.jsonl"]
    assert not ray.is_initialized()


MEET = """
import json, os, sys, torch
from distkg.cluster.launch import run_on_workers
from distkg.config import RunConfig

def train(config, run, ranks, *, resume, listener, services):
    total = torch.tensor([ranks.rank + 1])
    ranks.all_reduce(total)
    return {"total": int(total), "address": os.environ["MASTER_ADDR"]}

config = RunConfig.model_validate({"train": {"workers": 2}})
print(json.dumps(run_on_workers(train, config, sys.argv[1])))
"""


def test_two_workers_meet_on_a_machine_without_a_network(tmp_path: Path) -> None:
    alone = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode != 0:
        pytest.skip("this system does not let a test make a network namespace (unshare --net)")
    script = f'ip link set lo up && exec "{sys.executable}" -c "$0" "{tmp_path / "run"}"'
    done = subprocess.run([*alone, "sh", "-c", script, MEET], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"total": 1 + 2, "address": "127.0.0.1"}


WAIT = """
import sys, time
from distkg.cluster.launch import run_on_workers
from distkg.config import RunConfig

def train(config, run, ranks, *, resume, listener, services):
    (run / "started").write_text("")
    time.sleep(600)

run_on_workers(train, RunConfig.model_validate({"cluster": {"address": "local"}}), sys.argv[1])
"""


def test_an_interrupted_run_ends_its_workers_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", WAIT, str(run)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (run / "started").exists():
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    family = psutil.Process(driver.pid).children(recursive=True)
    assert any("RayTrainWorker" in name for name in names_of(family))
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=90)
    assert driver.returncode != 0
    assert f"Continue with the same command and --resume; the run is in {run}" in output
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(family, timeout=30)
    assert names_of(alive) == []


def names_of(processes: list[psutil.Process]) -> list[str]:
    names = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(" ".join(process.cmdline()) or process.name())
    return names


@pytest.mark.usefixtures("shared_ray")
def test_a_mistake_comes_back_as_the_worker_raised_it_and_is_not_retried(tmp_path: Path) -> None:
    def train(config: Any, run: Path, ranks: Any, *, resume: bool, listener: Any, services: Any) -> dict[str, Any]:
        (run / f"attempt-{os.getpid()}").write_text("")
        if ranks.rank == 1:
            raise ConfigError("model.dim must be even. Write model.dim=128.")
        ranks.barrier()
        return {}

    with pytest.raises(ConfigError, match=r"^model\.dim must be even\. Write model\.dim=128\.$"):
        run_on_workers(train, run_config(workers=2), tmp_path / "run")
    assert len(list((tmp_path / "run").glob("attempt-*"))) <= 2
    record = [json.loads(line) for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert (1, False) in [(line["rank"], line["restart"]) for line in record]


@pytest.mark.usefixtures("shared_ray")
def test_one_worker_learns_on_ray_what_it_learns_without(tmp_path: Path) -> None:
    generate(str(tmp_path / "store"), entities=200, relations=5, triples=3000, seed=2)
    config = run_config(tmp_path / "store", workers=1)
    launch_training(config, tmp_path / "on_ray", listener=lambda line: None)
    train_on_rank(config, tmp_path / "alone", Ranks.single())
    on_ray, alone = (
        {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in (tmp_path / name).rglob("*.safetensors")}
        for name in ("on_ray", "alone")
    )
    assert on_ray
    assert on_ray == alone


@pytest.mark.usefixtures("shared_ray")
def test_a_run_is_not_written_over_but_goes_on_with_accepted_changes_until_it_is_taken_over(tmp_path: Path) -> None:
    generate(str(tmp_path / "store"), entities=300, relations=6, triples=3000, seed=1)
    config, run = run_config(tmp_path / "store", workers=2), tmp_path / "run"
    heard: list[dict[str, Any]] = []
    result = launch_training(config, run, listener=heard.append)

    saved = json.loads((run / "result.json").read_text())
    assert result == saved
    assert saved["train"]["workers"] == 2
    assert saved["train"]["epochs"] == 3
    metrics = saved["metrics"]["test"]
    assert 0 < metrics["mrr_pessimistic"] <= metrics["mrr"] <= metrics["mrr_optimistic"] <= 1
    assert metrics["hits@1"] <= metrics["hits@3"] <= metrics["hits@10"]
    # 300 entities: a random order of the answers has an MRR of about ln(300) / 300 = .02.
    assert metrics["mrr"] > 0.1
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert heard == [json.loads(line) for line in lines]
    assert heard[-1]["epoch"] == 3

    assert not (run / "failures.jsonl").exists()

    with pytest.raises(RunFolderError, match="--resume, or name another folder"):
        launch_training(config, run)
    assert json.loads((run / "result.json").read_text()) == saved
    assert not (run / "lease.json").exists()

    def taken_over(config: Any, run: Path, ranks: Any, **options: Any) -> dict[str, Any]:
        other = Holder.this_process().model_copy(update={"machine": "elsewhere", "host": "node7", "pid": 4711})
        if ranks.first:
            (run / "lease.json").write_text(other.model_dump_json())
        ranks.barrier()
        return train_on_rank(config, run, ranks, **options)

    changed = run_config(tmp_path / "store", workers=2, epochs=5, seed=1)
    result = launch_training(changed, run, resume=True, accept_changes=True, listener=lambda line: None)
    assert [(change["key"], change["epoch"]) for change in result["accepted_changes"]] == [("train.seed", 3.0)]
    assert result["train"]["epochs"] == 5
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    result_before = (run / "result.json").read_bytes()
    longer = run_config(tmp_path / "store", workers=2, epochs=7, seed=1)
    with pytest.raises(RunTakenOverError, match="now held by process 4711 on node7"):
        run_on_workers(taken_over, longer, run, resume=True)
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()} == before
    assert (run / "result.json").read_bytes() == result_before
    assert json.loads((run / "lease.json").read_text())["host"] == "node7"
