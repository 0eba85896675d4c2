"""Training, ranking and checkpoints on a simulated device: as on the CPU, and the host waits only where it must."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from distkg.cluster.process_group import backend_name
from distkg.config import RunConfig
from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import KnownAnswers
from distkg.embedding.learner import model_state
from distkg.embedding.loop import WINDOW, Loop
from distkg.embedding.model import TrainingModel
from distkg.evaluation.ranking import rank_answers
from distkg.sharding import ranks as ranks_module
from distkg.sharding import replicated_parameters
from distkg.sharding.checkpoint.checkpoint import Checkpoints, State
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from distkg.training.run_dir import RunFolder
from tests.as_on_a_device import with_numbers_of_a_device
from tests.distributed import run_ranks
from tests.embedding.test_loop import config, loop_of
from tests.simulated_device import DEVICE, DeviceTensor, SimulatedDevice

KINDS: dict[str, dict[str, Any]] = {
    "shared": {"negatives": {"filter": True}},
    "shared, a distance": {"model": {"name": "transe"}, "negatives": {"filter": True}},
    "shared, pair by pair": {"model": {"name": "rotate"}, "objective": {"name": "self_adversarial"}},
    "independent": {"negatives": {"shared": False, "filter": True}},
    "mixture, adam": {
        "negatives": {"source": "mixture", "options": {"parts": [{"source": "degree"}, {"source": "relational"}]}},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
    },
    "one_vs_all": {"objective": {"name": "one_vs_all"}, "regularizer": {"name": "n3"}},
    "k_vs_all": {"objective": {"name": "k_vs_all"}},
    "query_sampling": {"model": {"name": "rote"}, "objective": {"name": "query_sampling"}},
    "non_negative": {"model": {"name": "rote"}, "objective": {"name": "non_negative"}},
    "overlap": {"train": {"overlap": True}},
    "relation prediction": {"objective": {"relation_prediction": 0.5}},
    "relation prediction, a query for each": {"model": {"name": "rotate"}, "objective": {"relation_prediction": 0.5}},
    "relation prediction, one_vs_all": {"objective": {"name": "one_vs_all", "relation_prediction": 0.5}},
}

Outcome = tuple[np.ndarray, np.ndarray, float]


def run_steps(loop: Loop) -> None:
    """Run an epoch, which is one window."""
    steps = loop._batches.steps
    assert 2 < steps <= WINDOW
    assert loop.run(0, 0, steps, lambda step: True) == steps


def outcome(loop: Loop) -> Outcome:
    """Entity rows, relation rows and mean loss."""
    rows = loop._model.entities.gather(torch.arange(loop._model.num_entities).to(loop._ranks.device))
    return rows.cpu().numpy(), loop._model.relations.detach().cpu().numpy(), loop.pop_mean_loss()


def on_the_host(ranks: Ranks, run: RunConfig) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        with_numbers_of_a_device(patch)
        loop = loop_of(run, ranks)
        run_steps(loop)
        return outcome(loop)


def assert_near(found: Outcome, expected: Outcome) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_step_on_a_device_is_that_of_compiled_kernels_and_waits_for_no_value(small_store: str, kind: str) -> None:
    run = config(small_store, **KINDS[kind])
    expected = on_the_host(Ranks.single(), run)
    with SimulatedDevice() as device:
        loop = loop_of(run, Ranks(device=DEVICE))
        device.waits.clear()
        run_steps(loop)
        assert device.waits == Counter()
        found = outcome(loop)
    if kind == "query_sampling":  # Adagrad's first steps are as long where a gradient is nothing but rounding
        assert found[2] == pytest.approx(expected[2], rel=1e-4)
        return
    assert_near(found, expected)


@pytest.mark.parametrize("source", ["k_hop", "kmas", "cached", "near_miss", "nearest_neighbour", "dans"])
def test_negatives_of_the_host_are_copied_to_the_device(small_store: str, source: str) -> None:
    """Also those of sources that read the model's vectors, for which the host waits."""
    run = config(small_store, negatives={"source": source, "filter": True})
    loop = loop_of(run, Ranks.single())
    run_steps(loop)
    expected = outcome(loop)
    with SimulatedDevice() as device:
        loop = loop_of(run, Ranks(device=DEVICE))
        device.waits.clear()
        run_steps(loop)
        assert bool(device.waits) == (source not in ("k_hop", "kmas"))
        assert_near(outcome(loop), expected)


HALVES: dict[str, dict[str, Any]] = {
    "table": {"model": {"dtype": "bfloat16"}, "optimizer": {"name": "adam", "learning_rate": 0.01}},
    "products with negatives": {"train": {"precision": "bfloat16"}},
    "products with all entities": {"objective": {"name": "one_vs_all", "products": "bfloat16"}},
}


@pytest.mark.parametrize("kind", list(HALVES))
def test_a_device_stores_and_multiplies_in_bfloat16(
    small_store: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    halves = HALVES[kind]
    exact = {section: values for section, values in halves.items() if section in ("objective", "optimizer")}
    exact = {section: {key: values[key] for key in values if key != "products"} for section, values in exact.items()}
    outcomes = []
    for sections in (halves, exact):
        with SimulatedDevice() as device:
            loop = loop_of(config(small_store, **sections), Ranks(device=DEVICE))
            device.waits.clear()
            run_steps(loop)
            assert device.waits == Counter()
            outcomes.append(outcome(loop))
            dtype = loop._model.entities.local.dtype
            assert dtype == (torch.bfloat16 if sections is halves and kind == "table" else torch.float32)
    (rows, _, loss), (exact_rows, _, exact_loss) = outcomes
    assert loss != exact_loss
    assert loss == pytest.approx(exact_loss, rel=5e-3)
    share = np.abs(rows - exact_rows).mean() / np.abs(exact_rows).mean()
    assert 1e-4 < share < 3e-2


@contextmanager
def collectives() -> Iterator[Counter[tuple[str, str]]]:
    """Count collectives by name and the backend that torch chooses for their tensors, and check what NCCL requires."""
    counted: Counter[tuple[str, str]] = Counter()

    class Recorded:
        def __getattr__(self, name: str) -> Any:
            real = getattr(dist, name)
            return real if not callable(real) or name == "ReduceOp" else lambda *args, **how: call(name, args, how)

    def call(name: str, args: tuple[Any, ...], how: dict[str, Any]) -> Any:
        tensors = [each for each in args if isinstance(each, Tensor)]
        on_device = {isinstance(each, DeviceTensor) for each in tensors}
        assert len(on_device) == 1, f"{name} of tensors on two devices"
        counted[name, "nccl" if on_device == {True} else "gloo"] += 1
        values = [each.values if isinstance(each, DeviceTensor) else each for each in args]
        for each in tensors:
            assert each.is_contiguous()
        if name == "all_to_all_single":
            out, inp, received, sent = values
            assert (len(out), len(inp)) == (sum(received), sum(sent))
            assert len(received) == len(sent) == dist.get_world_size()
        if name == "all_gather_single":
            assert values[0].shape == (dist.get_world_size() * len(values[1]), *values[1].shape[1:])
        if name == "reduce_scatter_single":
            assert values[1].shape == (dist.get_world_size() * len(values[0]), *values[0].shape[1:])
        return getattr(dist, name)(*values, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks_module, "dist", Recorded())
        yield counted


def on_devices(ranks: Ranks, run: RunConfig, summed_whole: int) -> tuple[Outcome, dict[str, int], set[Any]]:
    replicated_parameters.SUMMED_WHOLE, before = summed_whole, replicated_parameters.SUMMED_WHOLE
    try:
        with SimulatedDevice() as device, collectives() as calls:
            loop = loop_of(run, Ranks(ranks.rank, ranks.size, DEVICE))
            for counted in (device.waits, calls):
                counted.clear()
            run_steps(loop)
            waits, backends = dict(device.waits), set(calls)
            return outcome(loop), waits, backends
    finally:
        replicated_parameters.SUMMED_WHOLE = before


ROWS_AND_GRADIENTS = {("all_to_all_single", "nccl"), ("all_reduce", "nccl")}
ON_RANKS: dict[str, tuple[dict[str, Any], int, int, set[tuple[str, str]]]] = {
    "shared": (KINDS["shared"], 1 << 16, 1, ROWS_AND_GRADIENTS),
    "many relations": (KINDS["shared"], 0, 2, ROWS_AND_GRADIENTS),
    "one_vs_all": (
        KINDS["one_vs_all"],
        1 << 16,
        1,
        ROWS_AND_GRADIENTS
        | {("all_gather_single", "nccl"), ("reduce_scatter_single", "nccl")}
        | {("all_reduce", "gloo"), ("all_gather_single", "gloo")},
    ),
}
"""Settings, bytes of relations that are summed whole, waits for a device in a window, and collectives of an epoch."""


@pytest.mark.parametrize("kind", list(ON_RANKS))
def test_collectives_of_devices_have_tensors_of_devices(small_store: str, kind: str) -> None:
    """As NCCL requires; what the host counts goes to gloo. A device is waited for once in a window, for the counts."""
    assert backend_name(1) == "cpu:gloo,cuda:nccl"
    sections, summed_whole, waits, backends = ON_RANKS[kind]
    run = config(small_store, **sections)
    expected = run_ranks(2, on_the_host, run)
    for rank, (found, waited, used) in enumerate(run_ranks(2, on_devices, run, summed_whole)):
        assert_near(found, expected[rank])
        assert waited == {"_to_copy": waits}
        assert used == backends


def test_ranks_of_a_device_are_those_of_the_host(small_store: str) -> None:
    run, store = config(small_store), Store.open(small_store)
    triples, known = store.triples("train")[:30], KnownAnswers.from_triples(store.triples("train"), store.num_relations)
    model = TrainingModel(run, store.num_entities, store.num_relations, Ranks.single())
    expected = rank_answers(model, triples, known, batch_size=7)
    with SimulatedDevice():
        there = TrainingModel(run, store.num_entities, store.num_relations, Ranks(device=DEVICE))
        found = rank_answers(there, triples, known, batch_size=7)
    assert found.greater.tolist() == expected.greater.tolist()
    assert found.equal.tolist() == expected.equal.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_of_a_device_comes_back_there_and_on_the_host(
    small_store: str, tmp_path: Path, dtype: str
) -> None:
    run, store = config(small_store, model={"dtype": dtype}), Store.open(small_store)

    def state_on(ranks: Ranks, fill: float | None) -> State:
        model = TrainingModel(run, store.num_entities, store.num_relations, ranks)
        state = model_state(model)
        for tensor in (*state.sharded.values(), *state.replicated.values()):
            if fill is not None:
                tensor.fill_(fill)
        return state

    expected = state_on(Ranks.single(), None)
    with SimulatedDevice():
        there = Ranks(device=DEVICE)
        checkpoints = Checkpoints(tmp_path, there, 1)
        checkpoints.save("one", state_on(there, None), {"step": 3})
        checkpoints.wait()
        back = state_on(there, -7.0)
        assert checkpoints.load("one", back)["step"] == 3
        found = {name: tensor.cpu() for name, tensor in (back.sharded | back.replicated).items()}
    here = state_on(Ranks.single(), -7.0)
    Checkpoints(tmp_path, Ranks.single(), 1).load("one", here)
    for name, tensor in (expected.sharded | expected.replicated).items():
        for loaded in (found[name], (here.sharded | here.replicated)[name]):
            assert loaded.dtype == tensor.dtype
            assert torch.equal(loaded, tensor)


def test_a_run_on_a_device_is_that_on_the_host(small_store: str, tmp_path: Path) -> None:
    """With validation, checkpoints and reports: losses of all epochs, the final metrics, and excluded known facts."""
    settings: dict[str, dict[str, Any]] = {
        "negatives": {"source": "relational", "filter": True},
        "train": {"epochs": 3},
        "evaluate": {"every": 2},
    }
    run = config(small_store, **settings)
    with pytest.MonkeyPatch.context() as patch:
        with_numbers_of_a_device(patch)
        expected = train_on_rank(run, tmp_path / "host", Ranks.single())
    with SimulatedDevice():
        found = train_on_rank(run, tmp_path / "device", Ranks(device=DEVICE))
    for split in ("valid", "test"):
        assert found["metrics"][split]["mrr"] == pytest.approx(expected["metrics"][split]["mrr"], rel=1e-3)
    lines = [
        [json.loads(line) for line in RunFolder(tmp_path / name).metrics.read_text().splitlines()]
        for name in ("device", "host")
    ]
    for ours, theirs in zip(*lines, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["negatives"]["score"] == pytest.approx(theirs["negatives"]["score"], abs=1e-4)
        assert ours["negatives"]["false_negatives_removed"] == theirs["negatives"]["false_negatives_removed"] > 0
