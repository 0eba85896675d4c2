"""Averages of weights: by hand, from the checkpoints of every epoch, resumed bit for bit, and as the model of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from distkg.config import RunConfig, TrainConfig, parse_config
from distkg.data.extend import extend_store
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store
from distkg.embedding import learner
from distkg.embedding.growth.checkpoint import open_to_extend
from distkg.embedding.load_run import load_run
from distkg.foundation.model_files import MODEL_FOLDER, load_model
from distkg.sharding.checkpoint.checkpoint import Checkpoints, State
from distkg.sharding.ranks import Ranks
from distkg.sharding.row_storage import DeviceMemory, RowStorage
from distkg.training.learner import Division
from distkg.training.progress import Progress, ProgressError
from distkg.training.run import Training, train_on_rank
from distkg.training.services import Services
from distkg.training.weight_average import WeightAverage, is_other
from tests.distributed import run_ranks

RAW, AVERAGE = "raw", "average"
FROM_FIRST = {"average": "ema", "average_from": 1}


def config(store: str, **sections: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"store": store},
        "model": {"name": "complex", "dim": 16},
        "objective": {"name": "one_vs_all"},
        "train": {"batch_size": 128, "seed": 5, "epochs": 4, "average": "mean", "average_from": 2},
        "evaluate": {"every": 1},
        "checkpoint": {"keep": 50},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return parse_config(tree, "test", dead_keys_are="dropped")


def train(ranks: Ranks, run: RunConfig, folder: str, resume: bool = False, accept: bool = False) -> dict[str, Any]:
    return train_on_rank(run, Path(folder), ranks, resume=resume, accept_changes=accept)


def lines(folder: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if "valid" in line]


def checkpoints_of(run: Path) -> Checkpoints:
    return Checkpoints(run / "checkpoints", Ranks.single(), 1)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def tensors(run: Path, checkpoint: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Raw and averaged weights of a checkpoint, by the name of the model's tensor."""
    found = checkpoints_of(run)
    manifest = found.describe(checkpoint)
    better = str(manifest.progress["weights"])
    both: dict[str, dict[str, torch.Tensor]] = {RAW: {}, AVERAGE: {}}
    for name, entry in manifest.tensors.items():
        if "optimizer" in name:
            continue
        value = (
            found.read_rows(checkpoint, name, 0, manifest.rows)
            if entry.sharded
            else found.read_replicated(checkpoint, name)
        )
        weights, _, rest = name.partition(".") if is_other(name) else (better, "", name)
        both[weights][rest] = value
    return both[RAW], both[AVERAGE]


def of_numbers(kind: str, start: int = 1, dtype: torch.dtype = torch.float32) -> tuple[WeightAverage, State]:
    run = config("s", train={"average": kind, "average_decay": 0.75, "average_from": start})
    model = State({"rows": torch.zeros(3, 2, dtype=dtype)}, {"weight": torch.zeros(2), "count": torch.tensor(0)}, 3)
    return WeightAverage(run, model, lambda: DeviceMemory(torch.device("cpu")), Ranks.single()), model


@pytest.mark.parametrize(
    ("kind", "start", "expected"),
    [
        ("mean", 1, [8.0, 10.0, 12.0]),
        ("mean", 2, [0.0, 12.0, 14.0]),
        ("ema", 1, [8.0, 9.0, 10.75]),
        ("none", 1, [0.0] * 3),
    ],
)
def test_by_hand(kind: str, start: int, expected: list[float]) -> None:
    """Weights of 8, 12 and 16 at the ends of three epochs; with a decay of .75."""
    average, model = of_numbers(kind, start)
    found = []
    for epochs, value in ((1, 8.0), (2, 12.0), (3, 16.0)):
        for tensor in (model.sharded["rows"], *model.replicated.values()):
            tensor.fill_(value)
        average.update(epochs)
        average.update(epochs)  # of a run that goes on at the end of an epoch
        held = average.with_both(model, "raw")
        parts = [*held.sharded.items(), *held.replicated.items()]
        averaged = {name.removeprefix("average."): each for name, each in parts if is_other(name)}
        found.append(averaged["rows"][2, 1].item() if averaged else 0.0)
        if averaged:
            assert averaged["weight"].tolist() == [found[-1]] * 2
            assert averaged["count"].item() == value  # whole numbers are those of the latest epoch
    assert found == expected


def test_both_weights_are_exchanged_and_come_back() -> None:
    average, model = of_numbers("mean")
    for epochs, value in ((1, 2.0), (2, 4.0)):
        model.sharded["rows"].fill_(value)
        average.update(epochs)
    with average.in_model():
        assert model.sharded["rows"].unique().tolist() == [3.0]
    assert model.sharded["rows"].unique().tolist() == [4.0]
    assert average.with_both(model, "average").sharded["rows"].unique().tolist() == [3.0]
    assert average.with_both(model, "average").sharded["raw.rows"].unique().tolist() == [4.0]


def test_a_table_in_bfloat16_is_rounded_without_bias() -> None:
    run = config("s", train={"average_decay": 0.9, **FROM_FIRST})
    model = State({"rows": torch.ones(4000, 8, dtype=torch.bfloat16)}, {}, 4000)
    average = WeightAverage(run, model, lambda: DeviceMemory(torch.device("cpu")), Ranks.single())
    average.update(1)
    model.sharded["rows"].fill_(1.0 + 1 / 128)  # a tenth of the smallest difference is added
    average.update(2)
    rows = average.with_both(model, "raw").sharded["average.rows"].float()
    assert rows.mean().item() == pytest.approx(1 + 0.1 / 128, abs=1e-4)
    assert rows.dtype == torch.float32
    assert set(rows.unique().tolist()) == {1.0, 1 + 1 / 128}


@pytest.mark.parametrize(
    "model", [{"name": "complex"}, {"name": "tucker"}, {"name": "distmult", "dtype": "bfloat16"}], ids=str
)
def test_the_average_is_that_of_the_checkpoints_of_every_epoch(
    small_store: str, tmp_path: Path, model: dict[str, Any]
) -> None:
    train(Ranks.single(), config(small_store, model=model), str(tmp_path))
    every = [tensors(tmp_path, name) for name in names(tmp_path)]
    assert len(every) == 4
    assert not every[0][1]
    raw = [each for each, _ in every]
    for last in (2, 3, 4):
        for name, average in every[last - 1][1].items():
            if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                continue  # a validation replaces them by their mean over ranks
            expected = torch.stack([each[name].double() for each in raw[1:last]]).mean(0)
            tolerance = 2e-2 if average.dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(average.double(), expected, rtol=tolerance, atol=tolerance)


def test_both_are_validated_and_the_better_one_is_the_model(small_store: str, tmp_path: Path) -> None:
    fast = config(
        small_store, optimizer={"learning_rate": 0.5}, train={"epochs": 6, "average_decay": 0.5, **FROM_FIRST}
    )
    result = train(Ranks.single(), fast, str(tmp_path))
    validations = lines(tmp_path)
    assert "valid_by_weights" not in validations[0]
    for line in validations[1:]:
        by_weights = line["valid_by_weights"]
        assert line["valid"] == max(by_weights.values(), key=lambda metrics: metrics["mrr"])
        assert by_weights[RAW]["mrr"] != by_weights[AVERAGE]["mrr"]
    best = max(line["valid"]["mrr"] for line in validations)
    weights = result["weights"]
    assert result["metrics"] == result["metrics_by_weights"][weights]
    assert result["metrics"]["valid"]["mrr"] == best
    others = result["metrics_by_weights"][RAW if weights == AVERAGE else AVERAGE]
    chosen = next(line for line in validations if line["valid"]["mrr"] == best)
    assert others["valid"]["mrr"] == min(each["mrr"] for each in chosen["valid_by_weights"].values())
    raw, average = tensors(tmp_path, result["best_checkpoint"])
    model, store, _ = load_run(tmp_path, Ranks.single())
    rows = model.entities.gather(torch.arange(store.num_entities))
    assert torch.equal(rows, (average if weights == AVERAGE else raw)["entities"])


SAMPLED = {
    "objective": {"name": "logistic"},
    "negatives": {"count": 8},
    "optimizer": {"name": "adam", "learning_rate": 0.01},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["ema", "mean"])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(
    small_store: str, tmp_path: Path, kind: str, dtype: str
) -> None:
    def run(epochs: int) -> RunConfig:
        return config(small_store, **SAMPLED, model={"dtype": dtype}, train={"epochs": epochs, "average": kind})

    whole = train(Ranks.single(), run(5), str(tmp_path / "whole"))
    train(Ranks.single(), run(3), str(tmp_path / "parts"))
    parts = train(Ranks.single(), run(5), str(tmp_path / "parts"), True)
    assert parts["metrics_by_weights"] == whole["metrics_by_weights"]
    assert names(tmp_path / "parts") == names(tmp_path / "whole")
    for first, second in zip(
        *(tensors(tmp_path / name, names(tmp_path / name)[-1]) for name in ("whole", "parts")), strict=True
    ):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_was_stopped_before_a_validation_averages_its_epoch_once(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(small_store)
    expected = train(Ranks.single(), run, str(tmp_path / "whole"))
    validate = Training._metrics_by_weights

    def stopped(training: Training) -> Any:
        training.stop.requested = training.progress.epoch == 3
        return validate(training)

    monkeypatch.setattr(Training, "_metrics_by_weights", stopped)
    assert train_on_rank(run, tmp_path / "parts", Ranks.single(), services=Services()).keys() == {"stopped"}
    monkeypatch.setattr(Training, "_metrics_by_weights", validate)
    found = train(Ranks.single(), run, str(tmp_path / "parts"), True)
    assert found["metrics_by_weights"] == expected["metrics_by_weights"]


def test_any_number_of_ranks_average_alike(small_store: str, tmp_path: Path) -> None:
    run = config(small_store, train={"batch_size": 100_000})  # one step an epoch: the same on any number of ranks
    single = train(Ranks.single(), run, str(tmp_path / "single"))
    both = run_ranks(2, train, run, str(tmp_path / "both"))[0]
    last = names(tmp_path / "both")[-1]
    for ours, theirs in zip(tensors(tmp_path / "both", last), tensors(tmp_path / "single", last), strict=True):
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], atol=2e-5, rtol=1e-4)
    assert both["metrics"]["valid"]["mrr"] == pytest.approx(single["metrics"]["valid"]["mrr"], abs=0.02)


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="tables on disk need Linux")
def test_a_table_on_disk_has_its_average_there(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    made: list[RowStorage] = []
    storage_of = learner.storage_of
    monkeypatch.setattr(learner, "storage_of", lambda *settings: made.append(storage_of(*settings)) or made[-1])
    run = config(small_store, **SAMPLED)
    expected = train(Ranks.single(), run, str(tmp_path / "memory"))
    (tmp_path / "rows").mkdir()
    run.train.table_storage, run.train.table_folder = "disk", str(tmp_path / "rows")
    found = train(Ranks.single(), run, str(tmp_path / "disk"))
    assert found["metrics_by_weights"] == expected["metrics_by_weights"]
    assert [storage.on_disk for storage in made] == [False, True]


def test_a_run_may_begin_and_end_to_average(small_store: str, tmp_path: Path) -> None:
    def run(epochs: int, kind: str) -> RunConfig:
        return config(small_store, **SAMPLED, train={"epochs": epochs, "average": kind, "average_from": 1})

    plain = train(Ranks.single(), run(4, "none"), str(tmp_path / "plain"))
    train(Ranks.single(), run(2, "mean"), str(tmp_path / "run"))
    ended = train(Ranks.single(), run(4, "none"), str(tmp_path / "run"), True, True)
    assert {change["key"] for change in ended["accepted_changes"]} >= {"train.average"}
    last = names(tmp_path / "run")[-1]
    raw, average = tensors(tmp_path / "run", last)
    expected, _ = tensors(tmp_path / "plain", names(tmp_path / "plain")[-1])
    assert plain["metrics"].keys() == ended["metrics"].keys()
    assert not average
    assert all(torch.equal(raw[name], expected[name]) for name in expected)
    begun = train(Ranks.single(), run(6, "ema"), str(tmp_path / "plain"), True, True)
    assert checkpoints_of(tmp_path / "plain").describe(names(tmp_path / "plain")[-1]).progress["averaged"] == 2
    assert begun["train"]["epochs"] == 6


def test_without_validation_triples_the_average_is_the_model(tmp_path: Path) -> None:
    (tmp_path / "facts").mkdir()
    facts = [f"e{i % 20}\tr{i % 3}\te{(i * 7 + 1) % 20}\n" for i in range(60)]
    (tmp_path / "facts" / "train.tsv").write_text("".join(facts))
    store = prepare(str(tmp_path / "facts"), str(tmp_path / "store")).store
    train(Ranks.single(), config(store, train={"average": "mean"}), str(tmp_path / "run"))
    last = names(tmp_path / "run")[-1]
    assert checkpoints_of(tmp_path / "run").describe(last).progress["weights"] == AVERAGE
    model, opened, _ = load_run(tmp_path / "run", Ranks.single())
    _, average = tensors(tmp_path / "run", last)
    assert torch.equal(model.entities.gather(torch.arange(opened.num_entities)), average["entities"])


@pytest.mark.parametrize("name", ["ultra", "trix_relations"])
def test_foundation_models(small_store: str, tmp_path: Path, name: str) -> None:
    options = {"width": 8, "layers": 2} | ({"hidden": 8} if name == "ultra" else {})
    run = config(
        small_store,
        model={"name": name, "options": options},
        objective={"name": "logistic"},
        negatives={"count": 4},
        optimizer={"name": "adam", "learning_rate": 0.005},
        train={"batch_size": 8, "steps_per_epoch": 2, "epochs": 4, "average_from": 1},
        evaluate={"every": 4, "max_valid_triples": 5, "max_final_triples": 5},
    )
    result = train(Ranks.single(), run, str(tmp_path))
    raw, average = tensors(tmp_path, result["best_checkpoint"])
    chosen = average if result["weights"] == AVERAGE else raw
    exported = load_model(tmp_path / MODEL_FOLDER).state_dict()
    assert all(torch.equal(value, chosen[f"model.{key}"]) for key, value in exported.items())
    assert any(not torch.equal(raw[key], average[key]) for key in raw)
    assert set(result["metrics_by_weights"]) == {RAW, AVERAGE}


def test_a_grown_graph_starts_from_the_model(small_store: str, tmp_path: Path) -> None:
    """The better weights are at hand under the names of the model; the grown run has no average yet."""
    result = train(Ranks.single(), config(small_store), str(tmp_path / "run"))
    raw, average = tensors(tmp_path / "run", result["best_checkpoint"])
    (tmp_path / "new.tsv").write_text("late\tr0\tlater\n")
    source = open_to_extend(tmp_path / "run", "")
    extend_store(source.store, str(tmp_path / "new.tsv"), str(tmp_path / "grown"))
    grown = Store.open(str(tmp_path / "grown"))
    run = config(grown.address)
    source.write(grown, run, "random", tmp_path / "first" / "checkpoints" / "step-000000000", {})
    first = checkpoints_of(tmp_path / "first")
    manifest = first.describe("step-000000000")
    assert not any(map(is_other, manifest.tensors))
    rows = first.read_rows("step-000000000", "entities", 0, source.store.num_entities)
    assert torch.equal(rows, (average if result["weights"] == AVERAGE else raw)["entities"])


def test_progress_without_its_average_is_damaged() -> None:
    division = Division(1, 10, 0, 0)
    saved = Progress(averaged=0, weights="average").saved(0.0, 0, division)
    with pytest.raises(ProgressError, match="no epoch is averaged"):
        Progress.restored(saved, TrainConfig(), division, 1)
