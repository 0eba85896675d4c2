"""A secret that is put wherever an address can be given shows up nowhere: not in a file, not on a stream."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner, Result

from distkg.cli import app
from distkg.cli.app import show_traceback
from distkg.config import RunConfig, load_config
from distkg.data.storage import s3_objects
from distkg.data.storage.location import Location
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

CANARY = "c4n4ry"
SETTINGS = ["train.epochs=1", "model.dim=8", "objective.name=one_vs_all", "evaluate.every=1"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def bucket(server: str) -> str:
    name = f"graphs-{uuid4().hex}"
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{server}",
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="module")
def plain(server: str, bucket: str) -> Callable[[str], str]:
    """The address of a path in the bucket, without credentials."""
    options = f"endpoint_override={quote(f'http://{server}', safe='')}&region=us-east-1"
    return lambda path: f"s3://{bucket}/{path}?{options}"


@pytest.fixture(scope="module")
def secret(plain: Callable[[str], str]) -> Callable[[str], str]:
    """The same with a key and a password."""
    return lambda path: plain(path).replace("s3://", f"s3://{CANARY}-key:{CANARY}%2F%40@")


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))


@pytest.fixture
def signed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")


def run_cli(*arguments: str | Path) -> Result:
    """Run a command; its output must not hold the secret, nor its error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert CANARY not in result.output, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def assert_clean(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if CANARY.encode() in path.read_bytes() or CANARY in path.name] == []


@pytest.fixture(scope="module")
def remote_store(secret: Callable[[str], str]) -> str:
    made = CliRunner().invoke(
        app,
        ["generate", "--store", secret("g"), "--entities", "60", "--relations", "3", "--triples", "500", "--seed", "1"],
        env={"AWS_EC2_METADATA_DISABLED": "true"},
    )
    assert made.exit_code == 0, made.output
    assert CANARY not in made.output
    return secret("g")


@pytest.fixture(scope="module")
def trained(remote_store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose store was named with credentials."""
    config = load_config("preset:demo", [f"data.store={remote_store}", "train.workers=1", *SETTINGS])
    run = tmp_path_factory.mktemp("runs") / "run"
    train_on_rank(config, run, Ranks.single())
    return run


def test_a_source_and_a_store_named_with_credentials(secret: Callable[[str], str], plain: Callable[[str], str]) -> None:
    train = "".join(f"n{i}\tr\tn{(7 * i + 1) % 50}\n" for i in range(50)) + "a bad line\n"
    for name, content in {"files/train.tsv": train, "valid.tsv": "n1\tr\tn9\n", "test.tsv": "n2\tr\tn7\n"}.items():
        Location.of(secret(name)).write_bytes(content.encode())
    arguments = ("prepare", secret("files"), "--valid", secret("valid.tsv"), "--test", secret("test.tsv"))
    refused = run_cli(*arguments, "--store", secret("p"))
    assert refused.exit_code == 2
    assert "train.tsv:51" in refused.output
    made = run_cli(*arguments, "--store", secret("p"), "--on-error", "skip")
    assert made.exit_code == 0, made.output
    folder = Location.of(secret("p"))
    for name in folder.names():
        assert CANARY.encode() not in folder.child(name).read_bytes(), name
    assert b"files" in folder.child("manifest.json").read_bytes()


def test_a_store_made_here_of_what_needs_credentials_is_private(secret: Callable[[str], str], tmp_path: Path) -> None:
    Location.of(secret("one.tsv")).write_bytes(b"a\tr\tb\nb\tr\tc\nc\tr\td\nd\tr\ta\n" * 5)
    assert run_cli("prepare", secret("one.tsv"), "--store", tmp_path / "store").exit_code == 0
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    assert_clean(tmp_path)


def test_a_run_and_all_that_is_made_of_it(trained: Path, remote_store: str, tmp_path: Path) -> None:
    assert_clean(trained)
    assert stat.S_IMODE(trained.stat().st_mode) == 0o700
    recorded = yaml.safe_load((trained / "config.yaml").read_text())["data"]["store"]
    assert recorded.startswith("s3://graphs-")
    assert "endpoint_override=http" in recorded
    assert "region=us-east-1" in recorded
    assert run_cli("report", trained).exit_code == 0
    other = Path(str(trained) + "-2")
    config = load_config("preset:demo", [f"data.store={remote_store}", "train.seed=1", "train.workers=1", *SETTINGS])
    train_on_rank(config, other, Ranks.single())
    assert run_cli("report", trained, other, "--to", tmp_path / "comparison.html").exit_code == 0
    for folder in (trained, other, tmp_path):
        assert_clean(folder)


def test_a_run_is_read_with_the_credentials_of_the_environment(
    trained: Path, remote_store: str, signed_in: None, tmp_path: Path
) -> None:
    assert run_cli("evaluate", trained).exit_code == 0
    assert run_cli("export", trained, "--to", tmp_path / "export").exit_code == 0
    assert stat.S_IMODE((tmp_path / "export").stat().st_mode) == 0o700
    assert run_cli("negatives", remote_store, "--run", trained, "--show", "1", "--sample", "5").exit_code == 0
    assert_clean(tmp_path)


def test_a_store_that_asks_who_is_there_says_where_credentials_come_from(trained: Path) -> None:
    refused = run_cli("evaluate", trained)
    assert refused.exit_code == 2, refused.output
    assert "AWS_SECRET_ACCESS_KEY" in refused.output


def test_what_is_local_keeps_the_mode_that_the_user_chose(tmp_path: Path) -> None:
    world = ("--entities", "30", "--relations", "2", "--triples", "100", "--seed", "1")
    assert run_cli("generate", "--store", tmp_path / "g@b?c", *world).exit_code == 0
    assert stat.S_IMODE((tmp_path / "g@b?c").stat().st_mode) & 0o077 == 0o077 & ~_umask()
    config = load_config("preset:demo", [f"data.store={tmp_path / 'g@b?c'}", "train.workers=1", *SETTINGS])
    assert not config.private
    assert config.redacted() == config


def test_commands_about_a_store_named_with_credentials(remote_store: str, tmp_path: Path) -> None:
    settings = [argument for change in (f"data.store={remote_store}", *SETTINGS) for argument in ("--set", change)]
    assert run_cli("plan", "preset:demo", *settings).exit_code == 0
    shown = run_cli("config", "preset:demo", *settings)
    assert "warning: credentials in addresses are left out" in shown.stderr
    assert yaml.safe_load(shown.stdout)["data"]["store"].startswith("s3://graphs-")
    graphs = [
        "--set",
        f"data.graphs=[{remote_store!r}]",
        "--set",
        "negatives.count=4",
        "--set",
        "train.steps_per_epoch=1",
    ]
    for extra in ([], ["--json"]):
        planned = run_cli("plan", "preset:ultra", *graphs, *extra)
        assert planned.exit_code == 0, planned.output
        assert "s3://graphs-" in planned.output
    assert (
        run_cli(
            "inductive-split", remote_store, "--to", tmp_path / "two", "--kind", "entities", "--seed", "1"
        ).exit_code
        == 0
    )
    assert run_cli("tokens", remote_store, "--numeric", tmp_path / "none.tsv").exit_code == 2
    assert_clean(tmp_path)


@pytest.mark.parametrize("flags", [[], ["--debug"]])
@pytest.mark.parametrize(
    "address",
    [
        f"s3://{CANARY}:{CANARY}@no-such-bucket-{CANARY[:0]}x/g",
        f"S3://{CANARY}:{CANARY}@bucket/g",
        f"s3://{CANARY}:a/{CANARY}@bucket/g",
        f"s3://{CANARY}:a {CANARY}@bucket/g",
        f"s3://bucket/g?secret_key={CANARY}",
        f"s3://bucket/g?region=x&X-Amz-Signature={CANARY}",
        f"https://host/g.tsv?sig={CANARY}&se=2030",
        f"hdfs://{CANARY}@host/g",
        f"ftp://{CANARY}:{CANARY}@host/g#{CANARY}=1",
    ],
)
def test_errors_and_tracebacks_name_no_secret(
    address: str,
    flags: list[str],
    tmp_path: Path,
    server: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_objects, "FIRST_SECONDS", 0.1)  # nobody answers at addresses without an endpoint
    if address.endswith("x/g"):
        address += f"?endpoint_override={quote(f'http://{server}', safe='')}&region=us-east-1"
    commands = [
        ("prepare", address, "--store", tmp_path / "a"),
        ("generate", "--store", address, "--entities", "9", "--relations", "1", "--triples", "20", "--seed", "1"),
        ("negatives", address),
        ("plan", "preset:demo", "--set", f"data.store={address}"),
        ("plan", "preset:ultra", "--set", f"data.graphs=[{address!r}]"),
        ("config", address),
        ("evaluate", address),
        ("report", address),
        ("predict", address, "--anchor", "a", "--relation", "r"),
        ("tokens", address, "--labels"),
        ("train", "preset:demo", "--run", tmp_path / "run", "--set", f"data.store={address}"),
    ]
    for command in commands:
        result = CliRunner().invoke(app, [*flags, *map(str, command)])
        assert result.exit_code != 0, command
        assert CANARY not in result.output, (command, result.output)
        if not isinstance(result.exception, SystemExit):
            assert flags
            assert result.exc_info is not None
            show_traceback(*result.exc_info)
    printed = capsys.readouterr().err
    assert CANARY not in printed
    assert ("Traceback" in printed) == bool(flags)


def test_a_configuration_is_written_without_secrets_whatever_holds_them() -> None:
    address = f"s3://{CANARY}:{CANARY}@bucket/x?region=eu&secret_key={CANARY}"
    keys = {
        "data": {"store": address, "graphs": [address, "a/b@c"]},
        "model": {
            "name": "ultra",
            "start": address,
            "options": {"file": address, "list": [address], "api_key": CANARY},
        },
        "objective": {"name": "margin"},
        "negatives": {"vectors": address, "options": {address: address}},
        "cluster": {"address": f"{CANARY}:{CANARY}@head:6379"},
    }
    config = RunConfig.model_validate(keys)
    for text in (config.to_yaml(), config.to_yaml(help_text=True), str(config.redacted())):
        assert CANARY not in text
    written = RunConfig.model_validate(yaml.safe_load(config.to_yaml()))
    assert written.data.graphs == ["s3://bucket/x?region=eu", "a/b@c"]
    assert written.cluster.address == "head:6379"
    assert written.sha256() == config.sha256()
    assert config.private


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask
