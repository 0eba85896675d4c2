"""Work in parts for threads: all of it is done, once, and no bit depends on the number of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from distkg.config import ObjectiveConfig
from distkg.kernels.compositions import COMPLEX_PRODUCT, PRODUCT, SUM, Composition
from distkg.kernels.counting import Tally, count_block
from distkg.kernels.gather_scatter import add_rows, gather_rows, sum_rows
from distkg.kernels.scores.activations import Hanon
from distkg.kernels.scores.distance_sums.distance_log_sum_exp import log_sum_exp_of_distances
from distkg.kernels.scores.row_order import RowOrder
from distkg.kernels.scores.similarity import DOT, L1, L2, MODULUS, Similarity
from distkg.kernels.threads import computing_threads, for_each, for_each_part
from distkg.objectives import SAMPLED
from distkg.sharding.optimizers import OPTIMIZERS

ROWS, WIDTH, TAKEN = 1000, 44, 3000  # not a multiple of a vector's lanes, nor of the number of threads


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def places(*shape: int, below: int = ROWS, seed: int = 1) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def results(compute: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Results with one thread and with three."""
    with computing_threads(1):
        alone = compute()
    with computing_threads(3):
        return alone, compute()


def same_bits(compute: Callable[[], list[Tensor]]) -> None:
    alone, together = results(compute)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_every_task_is_done_once(threads: int, count: int) -> None:
    done = [0] * count

    def work(task: int) -> None:
        done[task] += 1

    with computing_threads(threads):
        for_each([(task,) for task in range(count)], work)
    assert done == [1] * count


@pytest.mark.parametrize(
    ("count", "fewest", "expected"),
    [(0, 1, [(0, 0)]), (2, 1, [(0, 1), (1, 2)]), (7, 1, [(0, 2), (2, 4), (4, 7)]), (7, 3, [(0, 3), (3, 7)])],
)
def test_parts_cover_the_range(count: int, fewest: int, expected: list[tuple[int, int]]) -> None:
    parts = []
    with computing_threads(3):
        for_each_part(count, lambda low, high: parts.append((low, high)), fewest)
    assert sorted(parts) == expected


def test_what_a_thread_raises_is_raised() -> None:
    def work(task: int) -> None:
        if task == 2:
            raise IndexError("the third")

    with computing_threads(2), pytest.raises(IndexError, match="the third"):
        for_each([(task,) for task in range(4)], work)


def test_work_within_work_stays_on_its_thread() -> None:
    seen = []

    def outer(task: int) -> None:
        own = threading.get_ident()
        for_each([(0,), (1,)], lambda _: seen.append((task, threading.get_ident() == own, torch.get_num_threads())))

    with computing_threads(2):
        for_each([(0,), (1,)], outer)
        assert torch.get_num_threads() == 2
    assert sorted(seen) == [(0, True, 1), (0, True, 1), (1, True, 1), (1, True, 1)]


def test_rows_are_gathered_and_added() -> None:
    rows, index, source = draw(ROWS, WIDTH), places(TAKEN), draw(TAKEN, WIDTH, seed=2)

    def compute() -> list[Tensor]:
        target = rows.clone()
        add_rows(target, index, source)
        halves = [(index[:2000], source[:2000]), (index[2000:], source[2000:])]
        return [target, gather_rows(rows, index), sum_rows(halves, ROWS + 5)]

    same_bits(compute)


def test_a_row_that_does_not_exist_is_named_by_every_thread() -> None:
    index = places(TAKEN)
    index[2900] = ROWS
    with computing_threads(3), pytest.raises(IndexError, match=f"row {ROWS} is asked of a matrix with {ROWS} rows"):
        gather_rows(draw(ROWS, WIDTH), index)


@pytest.mark.parametrize("composition", [SUM, PRODUCT, COMPLEX_PRODUCT])
@pytest.mark.parametrize("width", [WIDTH, 6])
def test_queries_are_composed(composition: Composition, width: int) -> None:
    inputs = draw(ROWS, width), places(TAKEN), draw(7, width, seed=3), places(TAKEN, below=7)
    arrays = [tensor.numpy() for tensor in inputs]
    grad = draw(TAKEN, width, seed=4)

    def compute() -> list[Tensor]:
        query, to_rows, to_operands = grad.new_empty(TAKEN, width), torch.zeros(ROWS, width), torch.zeros(7, width)
        composition.compose(*arrays, query.numpy())
        composition.add_gradients(grad.numpy(), *arrays, to_rows.numpy(), to_operands.numpy())
        return [query, to_rows, to_operands]

    same_bits(compute)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_rows_are_updated(name: str) -> None:
    ids = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))[:900]

    def compute() -> list[Tensor]:
        optimizer = OPTIMIZERS[name](ROWS, WIDTH, torch.device("cpu"))
        changes = [draw(900, WIDTH, seed=seed) for seed in (6, 7)]
        for change in changes:
            optimizer.step(ids, change, 0.1)
        return [*changes, *optimizer.state.values()]

    same_bits(compute)


def test_candidates_are_counted() -> None:
    scores, ones = draw(100, 300), np.arange(100, dtype=np.int64)
    answers = places(100, below=300).int().numpy()

    def compute() -> list[Tensor]:
        tally = Tally.start(answers, ones, ones + 1, np.arange(101, dtype=np.int64), answers)
        count_block(scores.clone(), 0, 0, tally)
        return [torch.from_numpy(counts) for counts in (tally.greater, tally.equal, tally.answer_scores)]

    same_bits(compute)


@pytest.mark.parametrize("name", list(SAMPLED))
def test_losses_are_computed(name: str) -> None:
    objective = SAMPLED[name](ObjectiveConfig(name=name, margin=2.0))
    same_bits(lambda: list(objective.with_gradients(draw(300), draw(300, 256, seed=8), weight=0.5)))


@pytest.mark.parametrize("width", [WIDTH, 80])
def test_sums_over_all_candidates(width: int) -> None:
    def compute() -> list[Tensor]:
        summed = log_sum_exp_of_distances(
            Hanon(2.0, 1.0), draw(60, width), torch.ones(60), draw(ROWS, width), keep=True
        )
        assert summed is not None
        to_query, to_rows = torch.zeros(60, width), torch.zeros(ROWS, width)
        log_sum = summed.first_pass()
        summed.second_pass(log_sum, torch.ones(60), to_query, to_rows)
        return [log_sum, to_query, to_rows]

    same_bits(compute)


@pytest.mark.parametrize("similarity", [DOT, L2, L1, MODULUS], ids=lambda similarity: similarity.name)
def test_pairs_are_scored(similarity: Similarity) -> None:
    query, rows, index = draw(400, WIDTH), draw(ROWS, WIDTH, seed=9), places(400, 20)
    order = RowOrder(index.numpy(), ROWS)

    def compute() -> list[Tensor]:
        indexed = [similarity.indexed_scores(query, rows, index, known) for known in (None, order)]
        single = index[:, :1].contiguous()
        positive = similarity.indexed_scores(query, rows, single)
        to_query, to_rows = torch.zeros_like(query), torch.zeros_like(rows)
        similarity.add_indexed_gradients(draw(400, 1), positive, query, rows, single, to_query, to_rows)
        return [similarity.scores(query, rows), *indexed, to_query, to_rows]

    same_bits(compute)


@pytest.mark.parametrize("similarity", [DOT, L2, L1, MODULUS], ids=lambda similarity: similarity.name)
def test_gradients_of_queries_with_many_rows_are_sums_of_those_of_threads(similarity: Similarity) -> None:
    query, rows, index = draw(400, WIDTH), draw(ROWS, WIDTH, seed=9), places(400, 20)
    order = RowOrder(index.numpy(), ROWS)
    assert len(order.parts()) == 1

    def compute() -> list[Tensor]:
        scores = similarity.indexed_scores(query, rows, index, order)
        to_query, to_rows = torch.ones_like(query), torch.ones_like(rows)
        similarity.add_indexed_gradients(draw(400, 20), scores, query, rows, index, to_query, to_rows, order)
        return [to_rows, to_query]

    (rows_alone, alone), (rows_together, together) = results(compute)
    assert torch.equal(rows_alone, rows_together)
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-4)
