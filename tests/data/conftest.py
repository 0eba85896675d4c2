"""Fixtures of the data tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compressed import compress
from kept_rejects import KeptRejects

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
        return find_sources(str(path), read_options(**options))["train"]

    return write


@pytest.fixture
def rejects() -> KeptRejects:
    return KeptRejects()


@pytest.fixture
def problems(rejects: KeptRejects) -> Callable[[OnError], Problems]:
    return lambda on_error: Problems(on_error, lambda: rejects)


@pytest.fixture
def upload(bucket: Callable[[str], str]) -> Callable[[str, bytes], None]:
    """Puts a file into the bucket."""

    def put(path: str, content: bytes) -> None:
        location = Location.of(bucket(path))
        with location.filesystem.open_output_stream(location.path) as stream:
            stream.write(content)

    return put
