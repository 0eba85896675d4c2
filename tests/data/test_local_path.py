"""Addresses of object stores where a path must stand: refused by every function that takes one, before it writes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from distkg.cluster.watch.run_folder import RunFolderError, absolute_run
from distkg.data.storage.local_path import NotLocalError, local_path
from distkg.data.storage.location import Location
from distkg.data.store.relation_text import read_descriptions
from distkg.data.tokens.codebooks import read_codebook
from distkg.data.tokens.entity_values import find_images
from distkg.demo import run_demo
from distkg.embedding.load_run import load_run
from distkg.foundation.model_files import import_checkpoint, is_model, load_model, save_model
from distkg.inference.export import export
from distkg.inference.predict import predict_file
from distkg.inference.queries import read_queries
from distkg.reporting.comparison import write_comparison
from distkg.reporting.page import write_page
from distkg.reporting.report import write_report
from distkg.reporting.search import read_search
from distkg.search.search_folder import SearchFolder
from distkg.training.run_dir import RunFolder

ADDRESSES = ["s3://b/x", "gs://b/x", "hdfs://host:9000/x", "S3://b", "abfs://a@b/x", "https://host/x", "s3:/b/x"]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_refused_as_text_and_as_the_path_that_pathlib_makes_of_it(
    address: str, kind: Callable[[str], Any]
) -> None:
    with pytest.raises(NotLocalError, match=r"run folder '.*' must be a folder, not an object store"):
        local_path(kind(address), "run folder")


def test_the_message_names_the_address_without_its_secrets() -> None:
    with pytest.raises(NotLocalError) as caught:
        local_path(Path("s3://key:secret@bucket/runs/x?region=eu"), "run folder")
    assert str(caught.value) == (
        "run folder 's3://bucket/runs/x' must be a folder, not an object store: give a path on this machine, or on a "
        "file system that all nodes share"
    )


def test_a_file_url_is_refused_with_the_path_to_write() -> None:
    with pytest.raises(NotLocalError, match=r"'file:///tmp/q\.tsv' must be a file, .* without file://"):
        local_path("file:///tmp/q.tsv", kind="file")


@pytest.mark.parametrize("path", ["runs/x", "/tmp/x", "a:b/c", "C:/runs", "x.tsv", "", "run:1", "at 10:30/x"])
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert local_path(path, "run folder") == Path(path)


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert local_path("~/runs") == Path("/home/somebody/runs")


S3 = Path("s3://b/x")
NOTHING = cast(Any, SimpleNamespace())
TAKES_A_PATH: dict[str, Callable[[], object]] = {
    "run folder": lambda: RunFolder(S3),
    "trained run": lambda: load_run(S3, NOTHING),
    "search folder": lambda: SearchFolder(S3),
    "search to report": lambda: read_search(S3),
    "run to report": lambda: write_report(S3),
    "runs to compare": lambda: write_comparison([S3, Path("other")]),
    "page": lambda: write_page(S3, "text"),
    "model to write": lambda: save_model(NOTHING, S3),
    "model": lambda: load_model(S3),
    "whether it is a model": lambda: is_model(S3),
    "published checkpoint": lambda: import_checkpoint(S3),
    "queries": lambda: read_queries(S3, NOTHING),
    "predictions": lambda: predict_file(NOTHING, NOTHING, "queries.tsv", S3),
    "export": lambda: export(S3, NOTHING, NOTHING, NOTHING, NOTHING, []),
    "descriptions": lambda: read_descriptions(S3),
    "images": lambda: find_images(NOTHING, S3),
    "codebook": lambda: read_codebook(S3),
    "demonstration": lambda: run_demo(S3, 1),
}


@pytest.mark.parametrize("name", TAKES_A_PATH)
def test_every_function_that_takes_a_path_refuses_an_address_and_makes_no_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotLocalError, match="'s3://b/x' must be a"):
        TAKES_A_PATH[name]()
    assert list(tmp_path.iterdir()) == []


def test_a_launch_refuses_an_address_given_as_a_path() -> None:
    with pytest.raises(RunFolderError, match=r"'s3://b/x' must be a folder, not an object store"):
        absolute_run(S3)


@pytest.mark.parametrize("path", ["x" * 4096, "x/" * 201])
def test_a_path_that_no_system_takes_is_a_message(path: str) -> None:
    for take in (local_path, Location.of):
        with pytest.raises(NotLocalError, match="the path is too long: at most 4,095 characters in 200 folders"):
            take(path)


def test_the_home_of_nobody_is_a_message() -> None:
    with pytest.raises(NotLocalError, match=r"~no-such-user/x: .*write the folder out"):
        local_path("~no-such-user/x")
