"""A search on Ray over a store named with credentials: neither its folder nor Ray's files hold them, at any time."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import ray
from moto.server import ThreadedMotoServer

from distkg.cluster.tune import launch_search
from distkg.config import load_config
from distkg.data.generate import generate
from distkg.search.space import parse_space
from distkg.search.trials import Trial

CANARY = b"c4n4ry"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a store on an S3 server, with credentials that are given nowhere else."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **keys).create_bucket(
        Bucket="graphs"
    )
    address = f"s3://c4n4ry-key:c4n4ry%2F@graphs/x?endpoint_override=http%3A%2F%2F{host}%3A{port}&region=us-east-1"
    generate(address, entities=60, relations=3, triples=500, seed=1)
    yield address
    server.stop()


def files_with_the_canary(folder: Path) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink() and CANARY in path.read_bytes():
                found.append(path)
        except OSError:
            continue  # a file of Ray's that is gone again
    return found


@pytest.mark.slow
@pytest.mark.cluster
def test_a_search_leaves_no_credentials_behind(store: str, tmp_path: Path) -> None:
    training = ["train.epochs=1", "model.dim=8", "objective.name=one_vs_all", "train.workers=1"]
    config = load_config("preset:demo", [f"data.store={store}", "cluster.address=local", *training])
    space = parse_space({"optimizer.learning_rate": {"choice": [0.1, 0.2]}}, "a test")
    seen: list[list[Path]] = []

    def ended(trial: Trial) -> None:
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        seen.append([*files_with_the_canary(tmp_path), *files_with_the_canary(session)])
        assert any((tmp_path / "search" / ".launch").iterdir())

    trials = launch_search(config, space, tmp_path / "search", trials=1, ended=ended)
    assert [(trial.state, trial.error) for trial in trials] == [("finished", "")]
    assert seen == [[]]
    assert files_with_the_canary(tmp_path) == []
    assert stat.S_IMODE((tmp_path / "search").stat().st_mode) == 0o700
