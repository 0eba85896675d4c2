"""Which settings a run may go on with, and what a refusal leaves behind."""

from __future__ import annotations

import json
import re
import shutil
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from distkg.config import ConfigError, RunConfig, flatten, parse_config, resume_class
from distkg.data.generate import generate
from distkg.data.store.identity import StoreMismatchError
from distkg.embedding.learner import EmbeddingLearner
from distkg.embedding.load_run import load_run
from distkg.evaluation.metrics import evaluate_triples
from distkg.sharding.checkpoint.files import write_manifest
from distkg.sharding.checkpoint.manifest import CheckpointManifest, read_manifest
from distkg.sharding.ranks import Ranks
from distkg.training import run as run_module
from distkg.training.progress import ProgressError
from distkg.training.provenance import KEY, provenance_of_run
from distkg.training.resume import Change, ResumeError, check_resume, notices
from distkg.training.run import train_on_rank
from distkg.training.run_dir import RunFolder
from distkg.training.services import Services


def config(store: str, **sections: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"store": store},
        "model": {"name": "distmult", "dim": 16},
        "objective": {"name": "one_vs_all"},
        "train": {"batch_size": 64, "epochs": 4},
        "evaluate": {"every": 2},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return parse_config(tree, "test")


def train(run: RunConfig, folder: Path, *, resume: bool = False, accept_changes: bool = False) -> dict[str, Any]:
    return train_on_rank(run, folder, Ranks.single(), resume=resume, accept_changes=accept_changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_mrr(folder: Path) -> float:
    model, store, _ = load_run(folder, Ranks.single())
    return float(evaluate_triples(model, store, "test", None, batch_size=256, memory_mb=256)["metrics"]["mrr"])


test_mrr.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def trained(small_store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "run"
    train(config(small_store), folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be changed."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


KEYS = [key for key in flatten(RunConfig()) if key not in ("data.store", "data.graphs")]
OTHER: dict[str, Any] = {
    "model.name": "complex",
    "objective.name": "k_vs_all",
    "negatives.source": "degree",
    "negatives.pool.fallback": "degree",
    "data.fanouts": [3],
    "data.generated.entities": [20, 40],
    "data.generated.relations": [5, 6],
    "cluster.metrics_port": 9090,
}


def other_value(key: str) -> Any:
    """A value that the key takes, and that is not its default."""
    if key in OTHER:
        return OTHER[key]
    *path, last = key.split(".")
    section: Any = RunConfig()
    for name in path:
        section = getattr(section, name)
    value, kind = getattr(section, last), type(section).model_fields[last].annotation
    if typing.get_origin(kind) is Literal:
        return next(choice for choice in typing.get_args(kind) if choice != value)
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if isinstance(value, bool):
        return not value
    if kind is str:
        return "elsewhere"
    return (value or 0) + (0.25 if kind is float else 1)


def with_value(base: RunConfig, key: str, value: Any) -> RunConfig:
    tree = base.model_dump()
    node = tree
    *path, last = key.split(".")
    for name in path:
        node = node[name]
    node[last] = value
    return parse_config(tree, key, dead_keys_are="dropped")


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_refused_listed_or_free_as_its_class_says(
    small_store: str, trained: Path, key: str, accept: bool
) -> None:
    base = config(small_store)
    value = other_value(key) if key != "model.dim" else 32
    if flatten(base)[key] == value:
        value = flatten(RunConfig())[key]
    before = flatten(base)[key]
    changed = with_value(base, key, value)
    kind = resume_class(key)
    if kind == "free" or (kind == "course" and accept):
        (found,) = check_resume(changed, RunFolder(trained), accept_changes=accept)
        assert (found.key, found.before, found.after, found.kind) == (key, before, value, kind)
        return
    with pytest.raises(ResumeError) as caught:
        check_resume(changed, RunFolder(trained), accept_changes=accept)
    shown = [text if isinstance(text, str) and text else json.dumps(text) for text in (before, value)]
    assert f"  {key}: {shown[0]} in the run, {shown[1]} now\n" in str(caught.value)
    assert ("--accept-changes" in str(caught.value)) == (kind == "course")


def test_an_option_of_the_scorer_is_refused_by_its_own_name(small_store: str, trained: Path) -> None:
    other = config(small_store, model={"options": {"distance": "squared_l2"}})
    with pytest.raises(ResumeError, match=r"model\.options\.distance: none in the run, squared_l2 now"):
        check_resume(other, RunFolder(trained), accept_changes=True)


def test_an_option_spelt_out_equals_its_default(small_store: str, trained: Path) -> None:
    same = config(small_store, model={"options": {"distance": "none"}})
    assert check_resume(same, RunFolder(trained), accept_changes=False) == []


def test_all_changes_are_listed_at_once(small_store: str, trained: Path) -> None:
    other = config(small_store, train={"seed": 7, "batch_size": 32}, regularizer={"name": "n3"})
    with pytest.raises(ResumeError) as caught:
        check_resume(other, RunFolder(trained), accept_changes=False)
    text = str(caught.value)
    for line in (
        "train.seed: 0 in the run, 7 now",
        "train.batch_size: 64 in the run, 32 now",
        "regularizer.name: none",
    ):
        assert line in text


def test_an_empty_folder_is_a_fresh_start(small_store: str, tmp_path: Path) -> None:
    assert check_resume(config(small_store), RunFolder(tmp_path / "none"), accept_changes=False) == []


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize("epochs", [4, 10])
def test_another_scorer_is_refused_and_the_run_stays_as_it_was(
    small_store: str, run: Path, epochs: int, accept: bool
) -> None:
    before, mrr = contents(run), test_mrr(run)
    complex_instead = config(small_store, model={"name": "complex"}, train={"epochs": epochs})
    with pytest.raises(ResumeError, match=r"model\.name: distmult in the run, complex now"):
        train(complex_instead, run, resume=True, accept_changes=accept)
    assert contents(run) == before
    assert test_mrr(run) == mrr


@pytest.mark.parametrize("key", ["train.seed", "train.batch_size", "optimizer.learning_rate"])
def test_what_steers_the_course_is_refused_and_the_run_stays_as_it_was(small_store: str, run: Path, key: str) -> None:
    before, mrr = contents(run), test_mrr(run)
    with pytest.raises(ResumeError, match=rf"(?s){re.escape(key)}: .*--accept-changes"):
        train(with_value(config(small_store, train={"epochs": 6}), key, 3), run, resume=True)
    assert contents(run) == before
    assert test_mrr(run) == mrr


def test_accepted_changes_are_recorded_with_their_step(small_store: str, run: Path) -> None:
    steps = lines(run)[-1]["step"]
    other = config(small_store, train={"epochs": 6, "seed": 9}, optimizer={"learning_rate": 0.05})
    result = train(other, run, resume=True, accept_changes=True)
    change = {"step": steps, "epoch": 4.0}
    assert result["accepted_changes"] == [
        {**change, "key": "optimizer.learning_rate", "before": 0.1, "after": 0.05},
        {**change, "key": "train.seed", "before": 0, "after": 9},
    ]
    assert json.loads((run / "result.json").read_text())["accepted_changes"] == result["accepted_changes"]
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["seed"] == 9
    # The new settings are now those of the run, and the changes stay on record.
    again = train(with_value(other, "train.epochs", 7), run, resume=True)
    assert again["accepted_changes"] == result["accepted_changes"]
    with pytest.raises(ResumeError, match=r"train\.seed: 9 in the run, 0 now"):
        train(with_value(other, "train.seed", 0), run, resume=True)


def test_an_undisturbed_run_has_no_accepted_changes(trained: Path) -> None:
    assert json.loads((trained / "result.json").read_text())["accepted_changes"] == []


def test_the_store_is_recorded_before_the_first_checkpoint(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module.Training, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config(small_store), tmp_path / "run")
    record = provenance_of_run(tmp_path / "run")
    assert record is not None
    assert record.graphs[0].entities == 150
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_checkpoint_carries_what_it_was_made_from(trained: Path) -> None:
    (trained_record,) = {path.read_text() for path in [trained / "provenance.json"]}
    for folder in (trained / "checkpoints").iterdir():
        assert read_manifest(folder).progress[KEY] == json.loads(trained_record)


def prepared_again(store: str, to: Path) -> str:
    """The facts of a store under another order of entities."""
    generate(str(to), entities=150, relations=6, triples=1500, seed=4)
    return str(to)


@pytest.mark.parametrize("accept", [False, True])
def test_another_store_is_refused_on_resume(small_store: str, run: Path, tmp_path: Path, accept: bool) -> None:
    before = contents(run)
    other = config(prepared_again(small_store, tmp_path / "again"), train={"epochs": 6})
    with pytest.raises(StoreMismatchError, match=r"\.parquet of store .*again differs from the one that run"):
        train(other, run, resume=True, accept_changes=accept)
    assert contents(run) == before


def test_a_store_that_has_moved_goes_on_as_if_it_had_not(small_store: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_store, tmp_path / "moved")
    result = train(config(str(tmp_path / "moved"), train={"epochs": 6}), run, resume=True)
    whole = train(config(small_store, train={"epochs": 6}), tmp_path / "whole")
    assert result["metrics"] == whole["metrics"]
    assert result["accepted_changes"] == []
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["store"] == str(tmp_path / "moved")


def edit_checkpoints(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the progress of every checkpoint, checksums included."""
    for folder in (run / "checkpoints").iterdir():
        manifest = read_manifest(folder)
        progress = dict(manifest.progress)
        change(progress)
        write_manifest(folder, CheckpointManifest(**manifest.model_dump() | {"progress": progress}))


def of_an_earlier_version(run: Path) -> None:
    (run / "provenance.json").unlink()

    def forget(progress: dict[str, Any]) -> None:
        for key in (KEY, "steps_per_epoch", "stopped_by", "stopped_at", "accepted_changes", "segments"):
            del progress[key]

    edit_checkpoints(run, forget)


def test_a_run_of_an_earlier_version_goes_on_with_a_warning(
    small_store: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_an_earlier_version(run)
    with pytest.raises(ResumeError, match=r"model\.name: distmult in the run, complex now"):
        train(config(small_store, model={"name": "complex"}), run, resume=True)
    caplog.clear()
    load_run(run, Ranks.single())
    assert [record.getMessage().count("cannot be checked") for record in caplog.records] == [1]
    result = train(config(small_store, train={"epochs": 5}), run, resume=True)
    assert result["train"]["epochs"] == 5
    assert provenance_of_run(run) is not None


def test_keys_that_this_version_does_not_have_are_named(
    small_store: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_an_earlier_version(run)
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["train"]["momentum"] = 0.9
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ResumeError, match=r"train\.momentum: 0\.9 in the run, null now"):
        check_resume(config(small_store), RunFolder(run), accept_changes=False)
    assert any("keys that this one does not: train.momentum" in record.getMessage() for record in caplog.records)
    with pytest.raises(ConfigError, match=r"train\.momentum: is not a key of train"):
        load_run(run, Ranks.single())


def half_an_epoch(store: str, folder: Path) -> RunConfig:
    """Leave a run whose newest checkpoint is that of step 6 of the 12 of an epoch."""
    often = config(store, checkpoint={"every_steps": 3, "keep": 50}, train={"epochs": 1, "batch_size": 64})
    train(often, folder)
    for path in (folder / "checkpoints").iterdir():
        if path.name not in ("step-000000003", "step-000000006"):
            shutil.rmtree(path)
    return often


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("batch_size", "steps"), [(1024, 6 + 1), (256, 6 + 2), (16, 6 + 23)])
def test_another_batch_size_in_mid_epoch_ends(small_store: str, tmp_path: Path, batch_size: int, steps: int) -> None:
    """The run goes on where half of the epoch is done: at step 0 of 1, 1 of 3 and 23 of 46."""
    often = half_an_epoch(small_store, tmp_path / "run")
    changed = with_value(often, "train.batch_size", batch_size)
    with pytest.raises(ResumeError, match=r"train\.batch_size: 64 in the run"):
        train(changed, tmp_path / "run", resume=True)
    result = train(changed, tmp_path / "run", resume=True, accept_changes=True)
    assert result["train"]["epochs"] == 1
    assert result["train"]["steps"] == steps


@pytest.mark.timeout(240)
def test_a_step_beyond_the_epoch_is_an_error_and_no_endless_loop(small_store: str, tmp_path: Path) -> None:
    often = half_an_epoch(small_store, tmp_path / "run")

    def beyond(progress: dict[str, Any]) -> None:
        progress["step"] = 1000

    edit_checkpoints(tmp_path / "run", beyond)
    before = contents(tmp_path / "run" / "checkpoints")
    with pytest.raises(ProgressError, match=r"step 1000 of epoch 0 is not one of its \d+ steps"):
        train(with_value(often, "train.time_limit_seconds", 1), tmp_path / "run", resume=True)
    assert contents(tmp_path / "run" / "checkpoints") == before


def patient(store: str, **settings: Any) -> RunConfig:
    values = {"epochs": 500, "patience": 1} | settings
    return config(store, train=values, evaluate={"every": 1}, optimizer={"learning_rate": 1e-12})


def die_in_evaluation(self: Any) -> Any:
    raise OSError("the node was lost")


def test_a_run_stopped_by_patience_that_died_in_its_evaluation_does_not_train_on(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as lost:
        lost.setattr(EmbeddingLearner, "evaluate", die_in_evaluation)
        with pytest.raises(OSError, match="the node was lost"):
            train(patient(small_store), tmp_path)
    before = lines(tmp_path)
    result = train(patient(small_store), tmp_path, resume=True)
    assert result["train"]["epochs"] == 2
    assert lines(tmp_path) == before
    assert train(patient(small_store, epochs=600), tmp_path, resume=True)["train"]["epochs"] == 2


def test_more_patience_lets_a_run_go_on(small_store: str, tmp_path: Path) -> None:
    train(patient(small_store), tmp_path)
    assert train(patient(small_store, patience=3), tmp_path, resume=True)["train"]["epochs"] == 4
    assert train(patient(small_store, patience=None, epochs=6), tmp_path, resume=True)["train"]["epochs"] == 6


def test_a_run_stopped_by_its_time_limit_goes_on_with_a_larger_one_alone(small_store: str, tmp_path: Path) -> None:
    limited = config(small_store, train={"epochs": 100_000, "time_limit_seconds": 0.5})
    steps = train(limited, tmp_path)["train"]["steps"]
    before = lines(tmp_path)
    assert train(limited, tmp_path, resume=True)["train"]["steps"] == steps
    assert lines(tmp_path) == before
    longer = with_value(limited, "train.time_limit_seconds", 60)
    bounded = with_value(longer, "train.epochs", int(before[-1]["epoch"]) + 2)
    result = train(bounded, tmp_path, resume=True)
    assert result["train"]["steps"] > steps
    assert result["train"]["epochs"] == int(before[-1]["epoch"]) + 2


def test_the_best_checkpoint_is_measured_anew_on_other_validation_triples(small_store: str, run: Path) -> None:
    """An MRR of 2, which no later validation could reach, is forgotten where other triples are validated on."""

    def too_good(progress: dict[str, Any]) -> None:
        progress["best_mrr"] = 2.0

    edit_checkpoints(run, too_good)
    fewer = config(small_store, train={"epochs": 6}, evaluate={"every": 2, "max_valid_triples": 20})
    train(fewer, run, resume=True)
    newest = max((read_manifest(path) for path in (run / "checkpoints").iterdir()), key=lambda each: each.serial)
    assert 0 < float(str(newest.progress["best_mrr"])) <= 1


def test_a_rank_whose_folder_was_taken_over_writes_nothing(small_store: str, run: Path) -> None:
    """Neither before the first step nor later."""
    before = contents(run)

    class TakenOver(ValueError):
        pass

    def refuse(writes_allowed: int) -> Services:
        left = [writes_allowed]

        def check() -> None:
            if left[0] == 0:
                raise TakenOver
            left[0] -= 1

        return Services(check_writer=check)

    longer = config(small_store, train={"epochs": 6})
    for allowed in (0, 1):
        with pytest.raises(TakenOver):
            train_on_rank(longer, run, Ranks.single(), resume=True, services=refuse(allowed))
        if allowed == 0:
            assert contents(run) == before
        else:
            after = {name: content for name, content in contents(run).items() if name.startswith("checkpoints")}
            assert after == {name: content for name, content in before.items() if name.startswith("checkpoints")}
            assert max(line["step"] for line in lines(run)) == 48


def test_what_has_changed_is_said_in_a_line_each(small_store: str) -> None:
    changes = [
        Change("train.seed", 0, 1, "course"),
        Change("train.epochs", 4, 8, "free"),
        Change("train.workers", 1, 2, "free"),
    ]
    shaped = config(small_store, optimizer={"schedule": "cosine"}, train={"epochs": 8})
    assert notices(changes, shaped) == [
        "continuing with changed settings: train.seed: 0 in the run, 1 now",
        "continuing with train.epochs: 4 in the run, 8 now; train.workers: 1 in the run, 2 now",
        "the cosine schedule is that of 8 epochs from here on",
    ]
    assert notices([], shaped) == []
