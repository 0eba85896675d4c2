"""Folders of objects, over real HTTP with injected faults, and on a file system."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import boto3
import numpy as np
import pytest
from pyarrow import fs

from distkg.data.errors import StoreError
from distkg.data.storage import objects, s3_objects
from distkg.data.storage.location import Location
from distkg.data.storage.objects import (
    FilesystemObjects,
    Objects,
    StoreUnavailableError,
    TransientError,
    objects_at,
    persist,
)
from tests.faulty_s3 import FaultyS3

Faulty = tuple[FaultyS3, Callable[[str], str]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds, a patience of seconds, and parts of the smallest size that S3 takes."""
    monkeypatch.setattr(objects, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(objects, "_LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(objects, "PATIENCE_SECONDS", 20.0)
    monkeypatch.setattr(objects, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(s3_objects, "PART_BYTES", 5 << 20)


@pytest.fixture(params=["s3", "filesystem"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "s3":
        return objects_at(request.getfixturevalue("bucket")("runs/x"))
    (tmp_path / "store").mkdir()
    return FilesystemObjects(
        Location(fs.SubTreeFileSystem(str(tmp_path / "store"), fs.LocalFileSystem()), "x"), "mem://x"
    )


def test_objects_are_written_read_listed_and_deleted(folder: Objects) -> None:
    assert folder.read("a") is None
    assert folder.look("a") is None
    assert folder.entries() == []
    folder.write("a", b"one")
    folder.write("b/c", b"three")
    folder.write("a", b"2")
    assert folder.read("a") == b"2"
    assert sorted((info.name, info.bytes) for info in folder.entries()) == [("a", 1), ("b/c", 5)]
    assert [info.name for info in folder.entries("b/")] == ["b/c"]
    folder.delete(["a", "absent", "b/c"])
    assert folder.entries() == []


def test_a_conditional_write_succeeds_once(folder: Objects) -> None:
    assert folder.create("lease", b"mine")
    assert not folder.create("lease", b"yours")
    seen = folder.look("lease")
    assert seen is not None
    assert seen.content == b"mine"
    assert 0 <= seen.age < 60
    assert not folder.replace("lease", b"yours", "another version")
    assert folder.replace("lease", b"yours", seen.version)
    assert folder.read("lease") == b"yours"
    assert not folder.replace("absent", b"yours", seen.version)


def test_of_many_that_create_one_object_one_succeeds(bucket: Callable[[str], str]) -> None:
    wins: list[int] = []
    threads = [
        threading.Thread(
            target=lambda i=i: objects_at(bucket("x")).create("lease", b"%d" % i) and wins.append(i)  # type: ignore[misc, func-returns-value]
        )
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert objects_at(bucket("x")).read("lease") == b"%d" % wins[0]


@pytest.mark.parametrize("size", [0, 1, 5 << 20, (5 << 20) + 1, 17 << 20])
def test_files_go_and_come_back_whatever_their_size(folder: Objects, tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "sent").write_bytes(content)
    folder.upload("x.safetensors", tmp_path / "sent")
    folder.download("x.safetensors", tmp_path / "came")
    assert (tmp_path / "came").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        folder.download("absent", tmp_path / "none")


@pytest.mark.parametrize("fault", ["unavailable", "throttled", "internal", "skewed", "cut", "lost", "half", "slow"])
@pytest.mark.parametrize("every", [2, 3])
def test_every_fault_that_passes_is_outlasted(faulty_bucket: Faulty, tmp_path: Path, fault: str, every: int) -> None:
    proxy, address = faulty_bucket
    folder = objects_at(address("runs/x"))
    proxy.policy = lambda method, path, number: fault if number % every == 1 else None
    content = np.random.default_rng(7).bytes(12 << 20)
    (tmp_path / "sent").write_bytes(content)
    folder.upload("big", tmp_path / "sent")
    folder.write("small", b"text")
    folder.download("big", tmp_path / "came")
    assert (tmp_path / "came").read_bytes() == content
    assert folder.read("small") == b"text"
    assert {info.name for info in folder.entries()} == {"big", "small"}
    assert folder.create("lease", b"me")
    seen = folder.look("lease")
    assert seen is not None
    assert folder.replace("lease", b"still me", seen.version)
    folder.delete(["small"])
    assert folder.read("small") is None
    assert proxy.injected


def test_only_the_part_that_failed_is_sent_again(faulty_bucket: Faulty, tmp_path: Path) -> None:
    proxy, address = faulty_bucket
    folder = objects_at(address("runs/x"))
    failed: set[str] = set()

    def fails_once(method: str, path: str, number: int) -> str | None:
        part = path.partition("partNumber=")[2][:1]
        if method == "PUT" and part in ("2", "3") and part not in failed:
            failed.add(part)
            return "lost"
        return None

    proxy.policy = fails_once
    (tmp_path / "sent").write_bytes(bytes(18 << 20))
    folder.upload("big", tmp_path / "sent")
    sent = [path.partition("partNumber=")[2][:1] for method, path in proxy.requests if method == "PUT"]
    assert sorted(sent) == ["1", "2", "2", "3", "3", "4"]


def test_a_download_goes_on_where_it_broke(faulty_bucket: Faulty, tmp_path: Path) -> None:
    proxy, address = faulty_bucket
    folder = objects_at(address("runs/x"))
    content = np.random.default_rng(3).bytes(16 << 20)
    (tmp_path / "sent").write_bytes(content)
    folder.upload("big", tmp_path / "sent")
    answers: list[str] = []

    def breaks_four_times(method: str, path: str, number: int) -> str | None:
        answers.extend([path] * (method == "GET"))
        return "half" if method == "GET" and len(answers) <= 4 else None

    proxy.policy = breaks_four_times
    folder.download("big", tmp_path / "came")
    assert (tmp_path / "came").read_bytes() == content
    assert proxy.count("GET") == 5


def test_an_upload_that_never_ends_leaves_no_parts(
    faulty_bucket: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, address = faulty_bucket
    monkeypatch.setattr(objects, "PATIENCE_SECONDS", 0.3)
    folder = objects_at(address("runs/x"))
    folder.write("before", b"")
    proxy.policy = lambda method, path, number: "unavailable" if "partNumber=3" in path else None
    (tmp_path / "sent").write_bytes(bytes(18 << 20))
    with pytest.raises(StoreUnavailableError, match=r"write part 3 of big failed \d+ times in .* s: ServiceUn"):
        folder.upload("big", tmp_path / "sent")
    assert folder.read("big") is None
    assert _unfinished(proxy, address) == 0


def test_parts_of_a_writer_that_died_are_dropped(faulty_bucket: Faulty) -> None:
    proxy, address = faulty_bucket
    client = _client(proxy)
    bucket = address("x").removeprefix("s3://").partition("/")[0]
    for key in ("runs/x/checkpoints/a", "runs/y/b"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    objects_at(address("runs/x")).drop_unfinished("checkpoints/")
    assert _unfinished(proxy, address) == 1


def _client(proxy: FaultyS3) -> object:
    return boto3.client("s3", endpoint_url=f"http://{proxy.endpoint}", region_name="us-east-1")


def _unfinished(proxy: FaultyS3, address: Callable[[str], str]) -> int:
    bucket = address("x").removeprefix("s3://").partition("/")[0]
    return len(_client(proxy).list_multipart_uploads(Bucket=bucket).get("Uploads", []))  # type: ignore[attr-defined]


def test_a_listing_of_many_pages_is_read_to_its_end(
    bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = objects_at(bucket("x"))
    client = folder._client  # type: ignore[attr-defined]
    whole = client.list_objects_v2
    monkeypatch.setattr(client, "list_objects_v2", lambda **more: whole(MaxKeys=2, **more))
    for name in "abcde":
        folder.write(name, b"")
    assert sorted(info.name for info in folder.entries()) == list("abcde")


def test_mistakes_are_said_at_once(
    bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = "s3://no-such-bucket/" + bucket("x").partition("/x")[2].join(["x", ""])
    with pytest.raises(StoreError, match=r"no bucket 'no-such-bucket' at s3://no-such-bucket/x.*Create it"):
        objects_at(missing).entries()
    with pytest.raises(StoreError, match="names no folder"):
        objects_at("s3://bucket")
    with pytest.raises(StoreError, match="unknown options colour"):
        objects_at("s3://bucket/x?colour=blue")
    with pytest.raises(StoreError, match="is not an address that pyarrow can open"):
        objects_at("ftp://host/x")
    with pytest.raises(StoreError, match="write the path without file://"):
        objects_at(tmp_path.as_uri())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"no credentials for s3://.*AWS_ACCESS_KEY_ID"):
        objects_at(bucket("x")).entries()


def test_refused_credentials_are_not_tried_again(faulty_bucket: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, address = faulty_bucket
    from tests import faulty_s3

    monkeypatch.setitem(faulty_s3._ERRORS, "refused", (403, "InvalidAccessKeyId"))
    proxy.policy = lambda method, path, number: "refused"
    with pytest.raises(StoreError, match=r"refuses to list it: InvalidAccessKeyId injected\. Check the credentials"):
        objects_at(address("x")).entries()
    assert len(proxy.requests) == 1


def test_a_store_that_is_not_there_is_given_up_after_seconds(monkeypatch: pytest.MonkeyPatch, s3_keys: None) -> None:
    monkeypatch.setattr(s3_objects, "FIRST_SECONDS", 0.2)
    with pytest.raises(StoreUnavailableError, match=r"s3://bb/x: to list it failed \d+ times .*127\.0\.0\.1:9"):
        objects_at("s3://bb/x?endpoint_override=http%3A%2F%2F127.0.0.1%3A9&region=us-east-1").entries()


def test_a_file_system_that_does_not_answer_is_given_up_after_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "FIRST_SECONDS", 0.2)
    files = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    folder = FilesystemObjects(Location(files, "x"), "mem://x")

    def no_answer() -> None:
        raise OSError("no route to host")

    with pytest.raises(StoreUnavailableError, match=r"mem://x: to look failed \d+ times in 0 s: no route to host"):
        folder._request(no_answer, "look")
    assert objects._with_short_retries("gs://b/x") == "gs://b/x?retry_limit_seconds=0.2"
    assert objects._with_short_retries("gs://b/x?retry_limit_seconds=9") == "gs://b/x?retry_limit_seconds=9"
    assert objects._with_short_retries("hdfs://h/x") == "hdfs://h/x"


def test_credentials_of_an_address_are_used_and_never_shown(
    bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    folder = objects_at(bucket("x").replace("s3://", "s3://c4n4ry:c4n4ry%2F@"))
    folder.write("a", b"")
    assert folder._client._request_signer._credentials.secret_key == "c4n4ry/"  # type: ignore[attr-defined]
    assert "c4n4ry" not in folder.address


def test_patience_ends() -> None:
    tries = []

    def fails() -> None:
        tries.append(1)
        raise TransientError("busy")

    with pytest.raises(StoreUnavailableError, match=r"to do it failed \d+ times in 0 s: busy"):
        persist(fails, "to do it", 0.1)
    assert len(tries) > 2


def test_an_interrupted_write_to_a_file_system_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    folder = FilesystemObjects(Location(files, "x"), "mem://x")
    folder.write("a", b"old")
    monkeypatch.setattr(objects, "PATIENCE_SECONDS", 0.0)

    def broken(stream: fs.NativeFile) -> None:
        stream.write(b"ne")
        raise OSError("the connection was reset")

    with pytest.raises(StoreUnavailableError, match="the connection was reset"):
        folder._put("a", broken)
    assert folder.read("a") == b"old"
    folder.drop_unfinished("")
    assert [info.name for info in folder.entries()] == ["a"]
