"""Runs whose checkpoints are damaged, lost, or would hold what is no number: nothing goes on in silence."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from distkg.cli import app
from distkg.config import RunConfig, parse_config
from distkg.data.generate import generate
from distkg.embedding.learner import EmbeddingLearner
from distkg.foundation.learner import FoundationLearner
from distkg.reporting.report import write_report
from distkg.sharding.checkpoint.checkpoint import CheckpointError, Checkpoints
from distkg.sharding.ranks import Ranks
from distkg.training import run as run_module
from distkg.training.run import DivergedError, train_on_rank
from distkg.training.run_dir import RunFolder
from tests.distributed import run_ranks

FILE = "rank-00000-of-00001.safetensors"


def config(store: str, **sections: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"store": store},
        "model": {"name": "distmult", "dim": 8},
        "objective": {"name": "one_vs_all"},
        "train": {"batch_size": 256, "seed": 5, "epochs": 4},
        "evaluate": {"every": 1},
        "checkpoint": {"keep": 9},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return parse_config(tree, "test")


def train(settings: RunConfig, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    return train_on_rank(settings, folder, Ranks.single(), resume=resume)


@pytest.fixture(scope="module")
def undisturbed(small_store: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Result and folder of a run of four epochs that nothing happened to; its best model is that of the last."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    result = train(config(small_store), folder)
    assert result["best_checkpoint"] == names(folder)[-1]
    return result, folder


@pytest.fixture
def run(undisturbed: tuple[dict[str, Any], Path], tmp_path: Path) -> Path:
    return shutil.copytree(undisturbed[1], tmp_path / "run")


def names(run: Path) -> list[str]:
    """Checkpoints in order of their steps."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def damage(run: Path, name: str) -> None:
    file = run / "checkpoints" / name / FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def everything(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def notices(run: Path) -> list[str]:
    return [json.loads(line)["notice"] for line in (run / "notices.jsonl").read_text().splitlines()]


def valid_curve(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["valid"]["mrr"] for line in lines if "valid" in line]


def test_where_every_checkpoint_is_damaged_the_run_does_not_go_on(small_store: str, run: Path) -> None:
    for name in names(run):
        damage(run, name)
    before = everything(run)
    with pytest.raises(CheckpointError) as caught:
        train(config(small_store, train={"epochs": 6}), run, resume=True)
    for name in names(run):
        assert f"{name}: {FILE} has SHA-256" in str(caught.value)
    assert everything(run) == before


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_commands_name_every_damaged_checkpoint(run: Path, command: str, tmp_path: Path) -> None:
    for name in names(run):
        damage(run, name)
    more = {"predict": ["--anchor", "e1", "--relation", "r1"], "export": ["--to", str(tmp_path / "to")]}.get(
        command, []
    )
    done = CliRunner().invoke(app, [command, str(run), *more])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: every checkpoint in ")
    assert all(f"{name}: {FILE} has SHA-256" in done.stderr for name in names(run))
    assert not (tmp_path / "to").exists()


def test_commands_say_that_the_best_model_is_lost(run: Path) -> None:
    damage(run, names(run)[-1])
    done = CliRunner().invoke(app, ["evaluate", str(run), "--json"])
    assert done.exit_code == 0
    assert f"checkpoint {names(run)[-1]} is skipped for the one before it: {FILE} has SHA-256" in done.stderr
    assert json.loads(done.stdout)["metrics"]["queries"] > 0


def test_a_damaged_checkpoint_is_said_and_the_run_ends_as_if_undisturbed(
    small_store: str, undisturbed: tuple[dict[str, Any], Path], run: Path
) -> None:
    """Also in the result, and on the page."""
    last = names(run)[-1]
    damage(run, last)
    result = train(config(small_store), run, resume=True)
    assert result["metrics"] == undisturbed[0]["metrics"]
    assert valid_curve(run) == valid_curve(undisturbed[1])
    assert len(notices(run)) == 1
    assert f"checkpoint {last} is skipped for the one before it: {FILE} has SHA-256" in notices(run)[0]
    assert result["notices"] == notices(run)
    assert f"checkpoint {last} is skipped" in write_report(run).read_text()
    assert names(run) == names(undisturbed[1])


def validating(*mrr: float) -> Callable[[Any], dict[str, float]]:
    """A ``validate`` with these results, one after the other."""
    left = list(mrr)
    return lambda learner: {"mrr": left.pop(0)}


@pytest.mark.parametrize(
    ("damaged", "held", "best"),
    [
        ([], 0.5, "step-000000003"),
        ([0], -1.0, "step-000000015"),
        ([0, 3], -1.0, "step-000000012"),
        ([1, 2, 3], 0.5, "step-000000003"),
    ],
)
def test_a_best_model_that_is_lost_is_no_measure(
    small_store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damaged: list[int],
    held: float,
    best: str,
) -> None:
    """Its MRR is forgotten with it, and the next validated model is the best, however bad."""
    run = tmp_path / "run"
    monkeypatch.setattr(EmbeddingLearner, "validate", validating(0.5, 0.1, 0.1, 0.1))
    assert train(config(small_store), run)["best_checkpoint"] == "step-000000003"
    for number in damaged:
        damage(run, names(run)[number])
    monkeypatch.setattr(EmbeddingLearner, "validate", validating(0.2, 0.15, 0.1, 0.1))
    result = train(config(small_store, train={"epochs": 5}), run, resume=True)
    assert result["best_checkpoint"] == best
    lost = [text for text in result["notices"] if "the checkpoint of the best model so far" in text]
    assert len(lost) == (held < 0)
    assert len(result["notices"]) == len(damaged) + len(lost)


def test_a_run_that_stops_where_it_went_on_keeps_its_best(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves the same step again, and its best model is that of this step: it was overwritten as one that is not."""
    run = tmp_path / "run"
    monkeypatch.setattr(EmbeddingLearner, "validate", validating(0.3, 0.5))
    train(config(small_store, train={"epochs": 2}), run)
    stopped = config(small_store, train={"epochs": 4, "time_limit_seconds": 1e-9})
    result = train(stopped, run, resume=True)  # and it is not validated again, which would spend patience
    assert result["best_checkpoint"] == "step-000000006"
    assert result["notices"] == []
    monkeypatch.setattr(EmbeddingLearner, "validate", validating(0.4, 0.4))
    assert train(config(small_store), run, resume=True)["best_checkpoint"] == "step-000000006"


def test_the_best_model_that_is_left_takes_its_place(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(EmbeddingLearner, "validate", validating(0.3, 0.5, 0.1, 0.1))
    train(config(small_store), run)
    damage(run, "step-000000006")
    monkeypatch.setattr(EmbeddingLearner, "validate", validating(0.2))
    result = train(config(small_store, train={"epochs": 5}), run, resume=True)
    assert result["best_checkpoint"] == "step-000000003"
    assert "(validation MRR 0.5000) is lost; step-000000003 takes its place" in result["notices"][-1]


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(small_store: str, run: Path) -> None:
    last = names(run)[-1]
    shutil.rmtree(run / "checkpoints")
    before = everything(run)
    with pytest.raises(CheckpointError, match=rf"holds no checkpoint.*checkpoints.jsonl names {last}"):
        train(config(small_store, train={"epochs": 6}), run, resume=True)
    (run / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        train(config(small_store, train={"epochs": 6}), run, resume=True)
    assert everything(run) == before


def test_a_run_of_an_earlier_version_is_known_by_its_metrics(small_store: str, run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    for name in ("checkpoints.jsonl", "result.json"):
        (run / name).unlink()
    with pytest.raises(CheckpointError, match=r"this run had some \(metrics.jsonl goes to step"):
        train(config(small_store), run, resume=True)


def test_a_run_that_died_before_its_first_checkpoint_begins_again_and_says_so(
    small_store: str, undisturbed: tuple[dict[str, Any], Path], run: Path
) -> None:
    shutil.rmtree(run / "checkpoints")
    for name in ("checkpoints.jsonl", "result.json"):
        (run / name).unlink()
    metrics = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(metrics[0] + metrics[1][:20])
    result = train(config(small_store), run, resume=True)
    assert result["metrics"] == undisturbed[0]["metrics"]
    assert result["notices"] == [
        f"{run} had stopped before its first checkpoint was saved: it starts from the first step"
    ]


def test_a_fresh_run_has_nothing_to_say(undisturbed: tuple[dict[str, Any], Path]) -> None:
    result, folder = undisturbed
    assert result["notices"] == []
    assert not (folder / "notices.jsonl").exists()
    saved = [json.loads(line)["checkpoint"] for line in (folder / "checkpoints.jsonl").read_text().splitlines()]
    assert saved == names(folder)


# ---- what is no number ----


def spoil_after(epochs: int, spoil: Callable[[Any], None], learner: type = EmbeddingLearner) -> Callable[..., Any]:
    """A ``validate`` that spoils the state once it has measured it, after so many epochs."""
    validate, calls = learner.validate, [0]

    def spoiling(self: Any) -> Any:
        metrics = validate(self)
        calls[0] += 1
        if calls[0] == epochs:
            spoil(self)
        return metrics

    return spoiling


def spoil_row(learner: Any) -> None:
    learner.model.entities.local[-1, 3] = math.nan


def spoil_optimizer(learner: Any) -> None:
    next(iter(learner.model.entities.optimizer.state.values()))[2, 0] = math.inf


def spoil_relations(learner: Any) -> None:
    learner.model.relations.data[0, 0] = -math.inf


def spoil_dense_optimizer(learner: Any) -> None:
    next(iter(learner._dense.state().values()))[0, 1] = math.nan


def loaded_values(run: Path) -> list[bool]:
    """Whether every number of each checkpoint is one, by checkpoint."""
    checkpoints = Checkpoints(run / "checkpoints", Ranks.single(), keep=9)
    found = []
    for name in names(run):
        tensors = checkpoints.describe(name).tensors
        rows = [checkpoints.read_rows(name, key, 0, entry.shape[0]) for key, entry in tensors.items() if entry.shape]
        found.append(all(bool(part.isfinite().all()) for part in rows))
    return found


@pytest.mark.parametrize(
    ("spoil", "tensor"),
    [
        (spoil_row, "entities"),
        (spoil_optimizer, "optimizer.sum"),
        (spoil_relations, "model.relations"),
        (spoil_dense_optimizer, "dense_optimizer.sum"),
    ],
)
def test_a_state_that_is_no_number_is_never_saved(
    small_store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Any], None],
    tensor: str,
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(EmbeddingLearner, "validate", spoil_after(3, spoil))
    # The loss of a step would tell as well; it is kept out, as it does where the bad row is not looked at.
    monkeypatch.setattr(run_module.Training, "_report", lambda self, *args, **more: None)
    with pytest.raises(DivergedError) as caught:
        train(config(small_store), run)
    sound = names(run)[-1]
    assert len(names(run)) == 2
    assert f"holds NaN or infinity in {tensor} (rank 0)" in str(caught.value)
    assert f"Checkpoint {sound} in {run / 'checkpoints'} holds the last sound state" in str(caught.value)
    assert "--resume --accept-changes" in str(caught.value)
    assert loaded_values(run) == [True, True]
    monkeypatch.undo()
    assert CliRunner().invoke(app, ["evaluate", str(run)]).exit_code == 0
    assert train(config(small_store), run, resume=True)["train"]["epochs"] == 4


def test_a_loss_that_is_no_number_names_the_last_sound_checkpoint(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(
        EmbeddingLearner, "validate", spoil_after(2, lambda learner: learner.loop._loss.fill_(math.nan))
    )
    with pytest.raises(DivergedError, match=r"the loss is nan\. Checkpoint step-000000003 in .* the last sound state"):
        train(config(small_store), run)
    assert loaded_values(run) == [True]


def test_scores_that_are_no_numbers_are_divergence_too(small_store: str, tmp_path: Path) -> None:
    wild = config(small_store, optimizer={"learning_rate": 1e30})
    with pytest.raises(DivergedError, match=r"No checkpoint had been saved: lower optimizer\.learning_rate"):
        train(wild, tmp_path / "run")
    assert not list(tmp_path.rglob("manifest.json"))


def spoiled_on_one_of_two(ranks: Ranks, settings: RunConfig, run: str) -> str:
    if ranks.rank == 1:
        EmbeddingLearner.validate = spoil_after(2, spoil_row)  # type: ignore[method-assign]
    run_module.Training._report = lambda self, *args, **more: None  # type: ignore[method-assign]
    with pytest.raises(DivergedError) as caught:
        train_on_rank(settings, Path(run), ranks)
    return str(caught.value)


def test_rows_that_are_no_numbers_on_one_rank_stop_all(small_store: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = run_ranks(2, spoiled_on_one_of_two, config(small_store), str(run), fresh=True)
    assert first == second
    assert "holds NaN or infinity in entities (rank 1)" in first
    assert f"Checkpoint {names(run)[0]} in " in first
    assert len(names(run)) == 1
    assert loaded_values(run) == [True]


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    store = tmp_path_factory.mktemp("foundation") / "small"
    generate(str(store), entities=30, relations=3, triples=150, seed=1)
    tree = {
        "data": {"graphs": [str(store)]},
        "model": {"name": "ultra", "options": {"width": 4, "layers": 2, "hidden": 4}},
        "objective": {"name": "self_adversarial", "margin": 0.0},
        "negatives": {"count": 4},
        "optimizer": {"name": "adam", "learning_rate": 0.005},
        "train": {"epochs": 3, "batch_size": 8, "steps_per_epoch": 3},
        "evaluate": {"every": 1, "max_valid_triples": 10, "max_final_triples": 10},
    }
    return parse_config(tree, "test")


def spoil_weights(learner: Any) -> None:
    next(iter(learner.model.parameters())).data.view(-1)[0] = math.nan


@pytest.mark.parametrize(
    ("spoil", "tensor"), [(spoil_weights, "model."), (spoil_dense_optimizer, "dense_optimizer.mean")]
)
def test_a_foundation_model_that_is_no_number_is_never_saved(
    foundation: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Any], None],
    tensor: str,
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(FoundationLearner, "validate", spoil_after(2, spoil, FoundationLearner))
    monkeypatch.setattr(run_module.Training, "_report", lambda self, *args, **more: None)
    with pytest.raises(DivergedError, match=rf"holds NaN or infinity in {tensor}.*step-000000003 in .* last sound"):
        train(foundation, run)
    assert names(run) == ["step-000000003"]
    assert not (run / "model").exists()
    assert torch.isfinite(torch.tensor(loaded_values(run))).all()


@pytest.mark.parametrize(("validated", "left"), [(True, [1, 2, 3, 3]), (False, [1, 2, 3])])
def test_a_validation_whose_model_was_not_kept_is_no_line_of_the_run(
    tmp_path: Path, validated: bool, left: list[int]
) -> None:
    """A process may die between the two; the line would claim the MRR of a model that nobody has."""
    folder = RunFolder(tmp_path)
    for line in ({"step": 1}, {"step": 2, "valid": {"mrr": 0.1}}, {"step": 3}, {"step": 3, "valid": {"mrr": 0.9}}):
        folder.report(line)
    folder.report({"step": 4})
    folder.metrics.write_text(folder.metrics.read_text() + '{"step": 2, "va')
    folder.forget_after(3, validated=validated)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == left
