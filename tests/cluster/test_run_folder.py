"""Which run folders a launch accepts."""

import json
import time
from pathlib import Path

import pytest

from distkg.cluster.watch.run_folder import RunFolderError, absolute_run, absolute_store, append_failure, claim
from distkg.config import RunConfig


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    claim(tmp_path / "runs" / "first", resume=False)
    assert (tmp_path / "runs" / "first").is_dir()


def test_a_folder_that_holds_a_run_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(RunFolderError, match=r"holds metrics\.jsonl.*--resume, or name another folder"):
        claim(tmp_path, resume=False)
    claim(tmp_path, resume=True)


def test_a_refused_folder_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"thesis\.tex"):
        claim(tmp_path, resume=False)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("thesis.tex", "years of work")]


def test_resume_in_an_empty_folder_is_a_fresh_start(tmp_path: Path) -> None:
    claim(tmp_path / "new", resume=True)
    assert (tmp_path / "new").is_dir()


def test_what_a_launch_that_never_trained_left_behind_is_no_run(tmp_path: Path) -> None:
    (tmp_path / ".launch").mkdir()
    append_failure(tmp_path, 0, "ValueError: no such store", restart=False)
    claim(tmp_path, resume=False)


def test_the_lease_of_a_driver_is_no_run(tmp_path: Path) -> None:
    for name in ("lease.json", ".lease.json.0a1b", "lease.json.takeover"):
        (tmp_path / name).write_text("{}")
    claim(tmp_path, resume=False)


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        claim(tmp_path / "run", resume=True)


def test_a_run_in_an_object_store_is_refused() -> None:
    with pytest.raises(RunFolderError, match="not an object store"):
        absolute_run("s3://bucket/run")


def test_relative_paths_are_taken_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig.model_validate(
        {"data": {"store": "stores/wn18rr"}, "model": {"start": "models/u"}, "negatives": {"vectors": "runs/b"}}
    )
    assert absolute_run("runs/a") == tmp_path / "runs" / "a"
    assert absolute_store(config).model.start == str(tmp_path / "models" / "u")
    assert absolute_store(config).negatives.vectors == str(tmp_path / "runs" / "b")
    assert absolute_store(config).data.store == str(tmp_path / "stores" / "wn18rr")
    assert config.data.store == "stores/wn18rr"


@pytest.mark.parametrize("store", ["s3://bucket/store", "", "/shared/store"])
def test_other_store_addresses_stay(store: str) -> None:
    config = RunConfig.model_validate({"data": {"store": store}})
    assert absolute_store(config).data.store == store


def test_a_job_needs_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    uploaded.mkdir(parents=True)
    monkeypatch.chdir(uploaded)
    with pytest.raises(RunFolderError, match=r"'runs/a' is relative.*--run an absolute path"):
        absolute_run("runs/a")
    with pytest.raises(RunFolderError, match=r"'stores/a' is relative.*data\.store an absolute path"):
        absolute_store(RunConfig.model_validate({"data": {"store": "stores/a"}}))
    assert absolute_run("/shared/runs/a") == Path("/shared/runs/a")


def test_failures_are_lines_in_order(tmp_path: Path) -> None:
    before = time.time()
    append_failure(tmp_path, 1, "its process died", restart=True)
    append_failure(tmp_path, 0, "RuntimeError: connection closed", restart=False)
    first, second = (json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines())
    assert before - 1 < first.pop("time") <= second.pop("time") <= time.time() + 1
    assert first == {"rank": 1, "error": "its process died", "restart": True}
    assert second == {"rank": 0, "error": "RuntimeError: connection closed", "restart": False}
