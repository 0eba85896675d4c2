"""The sharded table against one plain table, on one, two and three ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distributed import run_ranks
from torch import Tensor

from distkg.sharding.exchange import plan_routes
from distkg.sharding.optimizers import OPTIMIZERS
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards
from distkg.sharding.table import ShardedTable, round_stochastically
from tests.as_on_a_device import without_compiled_kernels

WIDTH, STEPS, RATE = 3, 4, 0.5
PARTS = 3  # of the work at each step: rank r of n takes the parts r, r + n, …


def whole_table(rows: int) -> Tensor:
    return torch.arange(rows * WIDTH, dtype=torch.float32).view(rows, WIDTH) / 8  # exact in bfloat16 too


def filled(rows: int, ranks: Ranks, optimizer: str, dtype: torch.dtype = torch.float32) -> ShardedTable:
    table = ShardedTable(rows, WIDTH, OPTIMIZERS[optimizer], ranks, dtype)
    low, high = table.shards.range(ranks.rank)
    table.local.copy_(whole_table(rows)[low:high])
    return table


def work_of(rows: int, step: int, parts: range) -> tuple[Tensor, Tensor]:
    """Ids and gradients of some parts of a step, rows that several name summed; part 1 has none at step 2."""
    drawn = []
    for part in parts:
        generator = torch.Generator().manual_seed(100 * step + part)
        count = 0 if (part, step) == (1, 2) else 6
        drawn.append((torch.randint(rows, (count,), generator=generator), torch.randn(count, 3, generator=generator)))
    ids, place = torch.unique(torch.cat([ids for ids, _ in drawn]), return_inverse=True)
    return ids, torch.zeros(len(ids), WIDTH).index_add_(0, place, torch.cat([grad for _, grad in drawn]))


def train(ranks: Ranks, rows: int, optimizer: str) -> dict[str, Any]:
    """Fetch, send gradients back and update, with the routes of all steps planned at once."""
    table = filled(rows, ranks, optimizer)
    work = [work_of(rows, step, range(ranks.rank, PARTS, ranks.size)) for step in range(STEPS)]
    fetched = []
    for route, (ids, gradient) in zip(plan_routes([ids for ids, _ in work], table.shards, ranks), work, strict=True):
        fetched.append((ids, table.fetch(route).wait().clone()))
        table.update(*table.collect(table.push(route, gradient)), learning_rate=RATE)
    return {"fetched": fetched, "local": table.local, "state": table.optimizer.state}


def plain_training(rows: int, optimizer: str) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """The same on one dense table: its end, the optimizer's state, and the table before each step."""
    table, rule, before = whole_table(rows), OPTIMIZERS[optimizer](rows, WIDTH, torch.device("cpu")), []
    for step in range(STEPS):
        before.append(table.clone())
        ids, gradient = work_of(rows, step, range(PARTS))
        rule.step(ids, gradient, RATE)
        table[ids] += gradient
    return table, rule.state, before


@pytest.mark.parametrize(
    ("size", "rows", "optimizer"),
    [(1, 11, "adagrad"), (2, 11, "rowwise_adagrad"), (3, 4, "adam")],  # of 4 rows, the third rank of three has none
)
def test_sharded_training_is_plain_training(size: int, rows: int, optimizer: str) -> None:
    outcome = [train(Ranks.single(), rows, optimizer)] if size == 1 else run_ranks(size, train, rows, optimizer)
    expected, state, before = plain_training(rows, optimizer)
    for result in outcome:
        for step, (ids, got) in enumerate(result["fetched"]):
            torch.testing.assert_close(got, before[step][ids])
    torch.testing.assert_close(torch.cat([result["local"] for result in outcome]), expected)
    for name, values in state.items():
        torch.testing.assert_close(torch.cat([result["state"][name] for result in outcome]), values)


def train_as_on_a_device(ranks: Ranks, rows: int, optimizer: str) -> dict[str, Any]:
    """As ``train``, on the way of a device, with ids that end with repetitions."""
    with pytest.MonkeyPatch.context() as patch:
        without_compiled_kernels(patch)
        table = filled(rows, ranks, optimizer)
        work = [work_of(rows, step, range(ranks.rank, PARTS, ranks.size)) for step in range(STEPS)]
        padded = [torch.cat([ids, ids[-1:].repeat(3)]) for ids, _ in work]
        for route, (_, gradient) in zip(plan_routes(padded, table.shards, ranks), work, strict=True):
            rows_fetched = table.fetch(route).wait()
            gradients = torch.zeros_like(rows_fetched)
            gradients[: len(gradient)] = gradient
            table.update(*table.collect(table.push(route, gradients)), learning_rate=RATE)
    assert table.optimizer is not None
    return {"local": table.local, "state": table.optimizer.state}


@pytest.mark.parametrize(
    ("size", "rows", "optimizer"), [(1, 11, "adam"), (1, 11, "rowwise_adagrad"), (3, 4, "adagrad")]
)
def test_a_device_updates_a_repeated_row_once(size: int, rows: int, optimizer: str) -> None:
    there = train_as_on_a_device
    outcome = [there(Ranks.single(), rows, optimizer)] if size == 1 else run_ranks(size, there, rows, optimizer)
    expected, state, _ = plain_training(rows, optimizer)
    torch.testing.assert_close(torch.cat([result["local"] for result in outcome]), expected, atol=5e-5, rtol=0)
    for name, values in state.items():
        torch.testing.assert_close(torch.cat([result["state"][name] for result in outcome]), values, atol=5e-5, rtol=0)


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_does_not_train_frozen_rows(
    optimizer: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_compiled_kernels(monkeypatch)
    table = ShardedTable(5, WIDTH, OPTIMIZERS[optimizer], Ranks.single(), dtype, frozen=3)
    table.local.copy_(whole_table(5))
    assert table.optimizer is not None
    for tensor in table.optimizer.state.values():
        tensor.fill_(2.0)
    table.update(torch.tensor([1, 2, 4, 4]), torch.ones(4, WIDTH), learning_rate=RATE)
    moved = [bool((row != old).all()) for row, old in zip(table.local.float(), whole_table(5), strict=True)]
    assert moved == [False, False, False, False, True]
    for tensor in table.optimizer.state.values():
        assert (tensor[:4] == 2).all()
        assert (tensor[4] != 2).all()


def fetch_in_bfloat16(ranks: Ranks) -> dict[str, Any]:
    """Two fetches and a push under way together, on a table stored in bfloat16; then rows by repeated ids."""
    table = filled(5, ranks, "adagrad", torch.bfloat16)
    first, second = torch.tensor([0, 4]), torch.tensor([1, 2, 3])[: 3 * (ranks.rank == 0)]
    one, two = plan_routes([first, second], table.shards, ranks)
    arriving, later, departing = table.fetch(one), table.fetch(two), table.push(one, torch.ones(2, WIDTH))
    rows, more = arriving.wait(), later.wait()
    ids, gradients = table.collect(departing)
    low, _ = table.shards.range(ranks.rank)
    gathered = table.gather(torch.tensor([[4, 0, 4], [2, 2, 1]][ranks.rank % 2]))
    return {"rows": rows, "more": more, "ids": ids + low, "gradients": gradients, "gathered": gathered}


def test_rows_stored_in_bfloat16_travel_and_arrive_as_float32() -> None:
    whole = whole_table(5)
    first, second = run_ranks(2, fetch_in_bfloat16)
    for result in (first, second):
        assert result["rows"].dtype == result["more"].dtype == torch.float32
        assert torch.equal(result["rows"], whole[[0, 4]])
    assert torch.equal(first["more"], whole[[1, 2, 3]])
    assert second["more"].shape == (0, WIDTH)
    assert torch.equal(first["gathered"], whole[[4, 0, 4]])
    assert torch.equal(second["gathered"], whole[[2, 2, 1]])
    # Both ranks sent ones for rows 0 and 4: each owner finds its row once, with the sum.
    assert (first["ids"].tolist(), second["ids"].tolist()) == ([0], [4])
    assert (first["gradients"].tolist(), second["gradients"].tolist()) == ([[2.0] * WIDTH], [[2.0] * WIDTH])


def test_a_step_for_every_row_moves_every_row() -> None:
    table = filled(4, Ranks.single(), "adagrad")
    table.update_all(torch.full((4, WIDTH), -2.0), learning_rate=0.1)  # Adagrad's first step is the rate, whole
    torch.testing.assert_close(table.local, whole_table(4) + 0.1)


def test_rounding_is_up_or_down_with_the_right_mean() -> None:
    torch.manual_seed(0)
    # Neighbours of 1 + 1/512 in bfloat16 are 1 and 1 + 1/128; a quarter of the draws should go up.
    drawn = round_stochastically(torch.full((40_000,), 1 + 1 / 512)).float()
    assert drawn.unique().tolist() == [1.0, 1.0078125]
    assert float((drawn > 1).float().mean()) == pytest.approx(0.25, abs=0.011)  # five standard deviations
    values = torch.tensor([-3.1415927, 1e-20, 123456.789, -0.0, 7e30])
    mean = round_stochastically(values.repeat(20_000, 1)).double().mean(0)
    torch.testing.assert_close(mean, values.double(), rtol=2e-4, atol=0)


def test_rounding_keeps_what_bfloat16_holds() -> None:
    exact = torch.tensor([0.0, -1.0, 1.0078125, float("inf"), float("-inf")])
    assert torch.equal(round_stochastically(exact.repeat(500, 1)).float(), exact.repeat(500, 1))
    assert round_stochastically(torch.full((500,), float("nan"))).isnan().all()


def test_steps_below_the_resolution_of_bfloat16_are_not_lost() -> None:
    torch.manual_seed(1)
    table = ShardedTable(1, 400, OPTIMIZERS["adagrad"], Ranks.single(), torch.bfloat16)
    table.local.fill_(1.0)
    table.optimizer.state["sum"].fill_(1e12)  # so that every step is 1e-6 · 1000 · 1 = 0.001, an eighth of a place
    ids = torch.tensor([0])
    for _ in range(64):
        table.update(ids, torch.full((1, 400), -1000.0), learning_rate=1.0)
    # 400 floats after 64 steps of 0.001: the standard deviation of their mean is about 0.0011.
    assert float(table.local.float().mean()) == pytest.approx(1.064, abs=0.006)
    assert (torch.ones(1, dtype=torch.bfloat16) + 0.001).item() == 1.0  # rounding to nearest would have stood still


def test_rows_without_gradient_stay_as_they_are_in_bfloat16() -> None:
    table = filled(4, Ranks.single(), "adagrad", torch.bfloat16)
    table.update(torch.tensor([2]), torch.ones(1, WIDTH), learning_rate=0.25)
    assert torch.equal(table.local[[0, 1, 3]].float(), whole_table(4)[[0, 1, 3]])
    torch.testing.assert_close(table.local[2].float(), whole_table(4)[2] - 0.25)


def update_frozen(
    ranks: Ranks, rows: int, frozen: int, optimizer: str, every: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Two updates, of all rows or of some, of a table whose first rows are frozen."""
    table = ShardedTable(rows, WIDTH, OPTIMIZERS[optimizer], ranks, frozen=frozen)
    low, high = table.shards.range(ranks.rank)
    table.local.copy_(whole_table(rows)[low:high])
    for step in range(2):
        gradients = torch.full((high - low, WIDTH), 1.0 + step)
        if every:
            table.update_all(gradients, RATE)
        else:
            table.update(torch.arange(0, high - low, 2), gradients[::2].clone(), RATE)
    assert table.optimizer is not None
    return table.local, table.optimizer.state


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "adam"])
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_frozen_rows_and_their_state_are_not_updated(optimizer: str, every: bool, size: int) -> None:
    rows, frozen = 10, 5  # of three ranks: all rows of the first, one of four of the second
    arguments = rows, frozen, optimizer, every
    parts = run_ranks(size, update_frozen, *arguments) if size > 1 else [update_frozen(Ranks.single(), *arguments)]
    table, before = torch.cat([local for local, _ in parts]), whole_table(rows)
    assert torch.equal(table[:frozen], before[:frozen])
    for name in parts[0][1]:
        state = torch.cat([states[name] for _, states in parts])
        assert not state[:frozen].any(), name
        assert state[frozen:].any(), name
    shards = [range(*Shards(rows, size).range(rank)) for rank in range(size)]
    updated = [row for shard in shards for row in (shard if every else shard[::2]) if row >= frozen]
    moved = (table != before).any(1).nonzero().flatten().tolist()
    assert moved == updated
