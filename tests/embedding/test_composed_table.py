"""Composed entity rows: their formula, gradients, training beside one dense computation, and whole runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor
from typer.testing import CliRunner

from distkg.cli import app
from distkg.config import ConfigError, NodePieceConfig, RunConfig, parse_config
from distkg.data.store.graph_store import Store
from distkg.embedding.batches import SampledBatches
from distkg.embedding.build import build_objective
from distkg.embedding.composed import table as table_module
from distkg.embedding.composed.encoder import TokenEncoder
from distkg.embedding.composed.table import ComposedTable, composed_table
from distkg.embedding.composed.tokens import Vocabulary
from distkg.embedding.growth.checkpoint import open_to_extend
from distkg.embedding.load_run import load_run
from distkg.embedding.loop import Loop
from distkg.embedding.model import BY_RELATION, TrainingModel
from distkg.embedding.scorers import make_scorer
from distkg.evaluation.metrics import evaluate_triples
from distkg.inference.export import export_model
from distkg.negatives import TrainingGraph, make_source
from distkg.sharding.ranks import Ranks
from distkg.sharding.replicated_parameters import ReplicatedParameters
from distkg.sharding.shards import Shards
from distkg.training.run import train_on_rank
from tests.distributed import run_ranks
from tests.embedding.test_loop import _plain_loss

NODEPIECE = {"anchors": 20, "nearest": 4, "relations": 3, "encoder": "mlp"}


def config(store: str, **sections: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"store": store},
        "model": {"name": "distmult", "dim": 8, "entities": "nodepiece", "nodepiece": NODEPIECE},
        "objective": {"name": "logistic"},
        "negatives": {"count": 4, "chunk_size": 16},
        "optimizer": {"name": "adagrad", "learning_rate": 0.05},
        "train": {"batch_size": 256, "seed": 7, "epochs": 4},
        "evaluate": {"every": 2},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return parse_config(tree, "test", dead_keys_are="dropped")


def model_of(run: RunConfig, ranks: Ranks) -> TrainingModel:
    store = Store.open(run.data.store)
    table = composed_table(run.model, store, ranks)
    return TrainingModel(run, store.num_entities, store.num_relations, ranks, composed=table)


def disturb(encoder: TokenEncoder) -> None:
    """A last layer that is not zero, so that every part of a network counts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


@pytest.mark.parametrize("encoder", ["sum", "mlp"])
def test_rows_are_sums_of_token_vectors_and_their_network(encoder: str) -> None:
    settings = NodePieceConfig(anchors=3, encoder=encoder)
    composer = TokenEncoder(settings, Vocabulary(3, 2), 4)
    disturb(composer)
    tokens = torch.tensor([[0, 5, -1, -1], [2, -1, 3, 7], [21, -1, -1, -1]], dtype=torch.int32)
    with torch.no_grad():
        rows = composer(tokens)
        vectors = composer.vectors
        for row, ids in zip(rows, ([0, 5], [2, 3, 7], [21]), strict=True):
            expected = sum((vectors[token] for token in ids), torch.zeros(4)) / math.sqrt(len(ids))
            if composer.network is not None:
                first, last = (layer for layer in composer.network if isinstance(layer, torch.nn.Linear))
                centred = expected - expected.mean()
                scaled = centred / torch.sqrt(centred.square().mean() + 1e-5)
                hidden = (first.weight @ scaled + first.bias).clamp_min(0)
                expected = expected + last.weight @ hidden + last.bias
            torch.testing.assert_close(row, expected)


def test_first_rows_have_the_scale_of_stored_ones(small_store: str) -> None:
    run = config(small_store, model={"name": "rotate", "dim": 64, "options": {"gamma": 6.0}})
    rows = model_of(run, Ranks.single()).entities.local
    assert rows.std().item() == pytest.approx(8 / 32 / math.sqrt(3), rel=0.3)  # a distance may count more than once
    other = config(small_store, model={"name": "rotate", "dim": 64}, train={"seed": 8})
    assert not torch.equal(model_of(other, Ranks.single()).entities.local, rows)


def small_table(rows: int) -> ComposedTable:
    composer = TokenEncoder(NodePieceConfig(anchors=3), Vocabulary(3, 2), 6)
    disturb(composer)
    tokens = torch.randint(-1, 22, (rows, 5), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    tokens[:, 0].clamp_min_(0)
    return ComposedTable(tokens, composer, Shards(rows, 1), Ranks.single())


@pytest.mark.parametrize("whole", [False, True])
def test_updates_add_the_gradients_of_all_rows_in_parts(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "COMPOSED_ROWS", 4)
    table = small_table(11)
    ids = torch.arange(11) if whole else torch.tensor([1, 2, 5, 7, 8, 10])
    grad = torch.randn(len(ids), 6, generator=torch.Generator().manual_seed(3))
    parameters = list(table.parameters())
    expected = torch.autograd.grad((table.encoder(table.tokens[ids]) * grad).sum(), parameters)
    for _ in range(2):
        if whole:
            table.update_all(grad.clone(), 0.1)
        else:
            table.update(ids, grad.clone(), 0.1)
    for parameter, once in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * once)
    torch.testing.assert_close(table.rows(3, 10), table.encoder(table.tokens[3:10]).detach())


def train(ranks: Ranks, run: RunConfig, epochs: int) -> tuple[np.ndarray, dict[str, np.ndarray], list[float]]:
    """Entity rows, parameters by name, and losses after some epochs."""
    store, model = Store.open(run.data.store), model_of(run, ranks)
    batches, step = build_objective(run, store, model)
    dense = ReplicatedParameters(model, run.optimizer, ranks, by_row=BY_RELATION)
    loop = Loop(model, batches, step, dense, run.optimizer.learning_rate, lambda *_: 1.0, run.train.seed, overlap=False)
    losses = []
    for epoch in range(epochs):
        assert loop.run(epoch, 0, batches.steps, lambda step: True) == batches.steps
        losses.append(loop.pop_mean_loss())
    rows = model.entities.gather(torch.arange(store.num_entities)).numpy()
    return rows, {name: value.detach().numpy() for name, value in model.named_parameters()}, losses


def dense_reference(run: RunConfig, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The batches of an epoch as ``size`` ranks draw them, by autograd through all rows, and Adagrad by hand."""
    store, model = Store.open(run.data.store), model_of(run, Ranks.single())
    table, parameters = model.entities, dict(model.named_parameters())
    assert isinstance(table, ComposedTable)
    source = make_source(run.negatives.source, run.negatives.options, TrainingGraph.of_store(store))
    makers = [
        SampledBatches(store, source, run.negatives, run.train.batch_size, 1, run.train.seed, Ranks(rank, size))
        for rank in range(size)
    ]
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for step in range(makers[0].steps):
        entities = table.encoder(table.tokens)
        batches = [maker.window(0, step, step + 1)[0] for maker in makers]
        loss = sum(_plain_loss(batch, entities, model.relations) for batch in batches)
        gradients = torch.autograd.grad(loss, list(parameters.values()))  # type: ignore[arg-type]
        with torch.no_grad():
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
                sums[name] += gradient.square()
                value -= run.optimizer.learning_rate * gradient / (sums[name].sqrt() + 1e-10)
    return table.local, parameters


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_together_equal_one_dense_computation(small_store: str, size: int, shared: bool) -> None:
    run = config(small_store, negatives={"shared": shared, "filter": True})
    expected, parameters = dense_reference(run, size)
    results = [train(Ranks.single(), run, 1)] if size == 1 else run_ranks(size, train, run, 1)
    for rows, values, _ in results:
        np.testing.assert_allclose(rows, expected.numpy(), atol=5e-5)
        for name, value in values.items():
            np.testing.assert_allclose(value, parameters[name].detach().numpy(), atol=5e-5)


def test_objectives_over_all_entities_do_not_depend_on_the_number_of_ranks(small_store: str) -> None:
    run = config(
        small_store,
        objective={"name": "one_vs_all"},
        regularizer={"name": "n3", "weight": 0.01},
        train={"batch_size": 100_000},
    )
    rows, _, losses = train(Ranks.single(), run, 3)
    assert losses[-1] < losses[0]
    for other_rows, _, other_losses in run_ranks(2, train, run, 3):
        np.testing.assert_allclose(other_rows, rows, atol=2e-5)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)


def all_rows(ranks: Ranks, folder: str) -> tuple[np.ndarray, float]:
    """Rows of a trained run, and its MRR of test."""
    model, store, _ = load_run(Path(folder), ranks)
    rows = model.entities.gather(torch.arange(store.num_entities)).numpy()
    found = evaluate_triples(model, store, "test", None, batch_size=64, memory_mb=64)
    return rows, float(found["metrics"]["mrr"])


def run_on_rank(ranks: Ranks, run: RunConfig, folder: str, resume: bool) -> dict[str, Any]:
    return train_on_rank(run, Path(folder), ranks, resume=resume)


def test_runs_resume_bit_for_bit_and_open_on_any_number_of_ranks(small_store: str, tmp_path: Path) -> None:
    def run(epochs: int) -> RunConfig:
        adam = {"name": "adam", "learning_rate": 0.01}
        return config(small_store, optimizer=adam, train={"epochs": epochs})

    result = run_on_rank(Ranks.single(), run(4), str(tmp_path / "whole"), False)
    run_on_rank(Ranks.single(), run(2), str(tmp_path / "parts"), False)
    run_on_rank(Ranks.single(), run(4), str(tmp_path / "parts"), True)
    rows, mrr = all_rows(Ranks.single(), str(tmp_path / "whole"))
    np.testing.assert_array_equal(all_rows(Ranks.single(), str(tmp_path / "parts"))[0], rows)
    assert mrr == pytest.approx(result["metrics"]["test"]["mrr"])
    for other_rows, other_mrr in run_ranks(2, all_rows, str(tmp_path / "whole")):
        np.testing.assert_allclose(other_rows, rows, atol=1e-6)
        assert other_mrr == pytest.approx(mrr, abs=1e-3)
    run_ranks(2, run_on_rank, run(5), str(tmp_path / "whole"), True)  # goes on, on two ranks
    manifest = json.loads(next((tmp_path / "whole" / "checkpoints").rglob("manifest.json")).read_text())
    assert not any(tensor["sharded"] for tensor in manifest["tensors"].values())


def test_an_export_has_the_composed_rows(small_store: str, tmp_path: Path) -> None:
    run_on_rank(Ranks.single(), config(small_store, train={"epochs": 1}), str(tmp_path / "run"), False)
    model, store, run = load_run(tmp_path / "run", Ranks.single())
    export_model(model, store, run.model, tmp_path / "export")
    written = load_file(tmp_path / "export" / "entities.safetensors")["vectors"]
    np.testing.assert_allclose(written, all_rows(Ranks.single(), str(tmp_path / "run"))[0], atol=1e-6)
    with pytest.raises(ConfigError, match=r"model\.entities: nodepiece.*train anew on the grown graph"):
        open_to_extend(tmp_path / "run", "")


def test_a_run_on_the_command_line(small_store: str, tmp_path: Path) -> None:
    values = {"data.store": small_store, "model.entities": "nodepiece", "model.dim": 16, "train.epochs": 1}
    changes = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    trained = CliRunner().invoke(app, ["train", "preset:negatives_rotate", "--run", str(tmp_path / "run"), *changes])
    assert trained.exit_code == 0, trained.output
    store = Store.open(small_store)
    query = ["--anchor", store.entity_labels_of(np.array([3]))[0], "--relation", store.relation_labels()[0].as_py()]
    answers = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), *query, "--top", "3"])
    assert answers.exit_code == 0, answers.output


@pytest.mark.parametrize("key", ["model.dtype", "train.overlap", "train.table_storage", "train.old_rows"])
def test_settings_of_stored_rows_are_refused(small_store: str, key: str) -> None:
    values = {"model.dtype": "bfloat16", "train.overlap": True, "train.table_storage": "disk", "train.old_rows": "free"}
    tree = config(small_store).model_dump()
    section, name = key.split(".")
    tree[section][name] = values[key]
    with pytest.raises(ConfigError, match=rf"{key}.*model\.entities: table"):
        parse_config(tree, "test")


def test_scorers_with_wider_rows_compose_too(small_store: str) -> None:
    for name in ("conve", "trans"):
        run = config(small_store, model={"name": name, "dim": 16})
        assert model_of(run, Ranks.single()).entities.width == make_scorer(run.model).entity_width
        assert np.isfinite(train(Ranks.single(), run, 1)[2]).all()
