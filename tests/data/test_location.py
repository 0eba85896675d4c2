import os
from pathlib import Path

import pytest
from pyarrow import fs

from distkg.data.errors import StoreError
from distkg.data.storage.location import Location, without_secrets


def test_a_plain_path_is_local_and_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    location = Location.of("graphs/x")
    assert location.local
    assert location.path == os.path.join(os.getcwd(), "graphs/x")
    assert location.child("train.parquet").path.endswith("graphs/x/train.parquet")
    assert location.name == "x"


def test_a_file_uri_is_local_too(tmp_path: Path) -> None:
    assert Location.of(tmp_path.as_uri() + "/").path == str(tmp_path)


def test_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    folder = Location.of(str(tmp_path))
    folder.child("x").write_bytes(b"content")
    assert folder.is_folder()
    assert not folder.is_file()
    assert folder.child("x").is_file()
    assert folder.child("x").read_bytes() == b"content"
    assert folder.names() == {"x"}
    assert Location.of(str(tmp_path / "none")).names() == set()


@pytest.mark.parametrize("local", [True, False])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, local: bool) -> None:
    filesystem = fs.LocalFileSystem() if local else fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    file = Location(filesystem, str(tmp_path / "x") if local else "x")
    assert file.local == local
    file.write_bytes(b"old")
    with file.replaced() as unfinished:
        (tmp_path / unfinished.name).write_bytes(b"new")
        assert (tmp_path / "x").read_bytes() == b"old"
    assert (tmp_path / "x").read_bytes() == b"new"

    def write_half() -> None:
        with file.replaced() as unfinished:
            (tmp_path / unfinished.name).write_bytes(b"half")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        write_half()
    assert (tmp_path / "x").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("address", ["", "ftp://host/x", "s3://bucket/x?no_such_option=1"])
def test_an_unusable_address_is_an_error(address: str) -> None:
    with pytest.raises(StoreError, match="address"):
        Location.of(address)


def test_secrets_are_not_shown() -> None:
    assert without_secrets("s3://key:secret@bucket/x?secret_key=y&region=z") == "s3://bucket/x"
    assert without_secrets("/plain/path?") == "/plain/path?"
    with pytest.raises(StoreError) as raised:
        Location.of("s3://key:hidden@bucket/x?no_such_option=hidden")
    assert "s3://bucket/x is not" in str(raised.value)
