"""Fixtures of the data tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from compressed import compress
from kept_rejects import KeptRejects
from moto.server import ThreadedMotoServer

from distkg.data.readers.problems import OnError, Problems
from distkg.data.readers.sources import SourceFile, find_sources, read_options
from distkg.data.storage.location import Location


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., SourceFile]:
    """Writes a file (compressed as its name says) and gives it as a source; options are those of ``read_options``."""

    def write(name: str, content: bytes | str, **options: Any) -> SourceFile:
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.write_bytes(compress(data, name))
        return find_sources(str(path), "auto", None, None, read_options(**options))["train"]

    return write


@pytest.fixture
def rejects() -> KeptRejects:
    return KeptRejects()


@pytest.fixture
def problems(rejects: KeptRejects) -> Callable[[OnError], Problems]:
    return lambda on_error: Problems(on_error, lambda: rejects)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Host and port of an S3 server on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A fresh bucket; gives the address of a path in it. Credentials come from the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-a-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-a-test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    name = f"graphs-{uuid4().hex}"
    boto3.client("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1").create_bucket(Bucket=name)
    host, _, port = s3_server.partition(":")
    return lambda path: f"s3://{name}/{path}?endpoint_override=http%3A%2F%2F{host}%3A{port}&region=us-east-1"


@pytest.fixture
def upload(bucket: Callable[[str], str]) -> Callable[[str, bytes], None]:
    """Puts a file into the bucket."""

    def put(path: str, content: bytes) -> None:
        location = Location.of(bucket(path))
        with location.filesystem.open_output_stream(location.path) as stream:
            stream.write(content)

    return put
