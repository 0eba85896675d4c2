import os
from pathlib import Path

import pytest

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
