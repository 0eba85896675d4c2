"""Sums over paths against numbers written by hand, loops, the plain form, and gradients in float64 differences."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distkg.kernels.message_passing.path_products import Paths, gather_products, reference_gather_products


def some_paths(nodes: int, count: int, seed: int) -> tuple[Paths, list[tuple[int, int, int]]]:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(nodes, (count, 3), generator=generator).unique(dim=0).tolist()
    runs: dict[tuple[int, int], list[int]] = {}
    for a, b, c in found:
        runs.setdefault((a, b), []).append(c)
    offsets = torch.tensor([0, *[len(last) for last in runs.values()]]).cumsum(0)
    first, middle = (torch.tensor([run[side] for run in runs], dtype=torch.int32) for side in (0, 1))
    last = torch.tensor([c for run in runs.values() for c in run], dtype=torch.int32)
    return Paths(first, middle, offsets, last), [(a, b, c) for a, b, c in found]


def test_numbers_written_by_hand() -> None:
    # Paths (0, 1, 2), (0, 1, 0) and (2, 0, 1).
    first, middle, last = torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([2, 0, 1])
    paths = Paths(first.int(), middle.int(), torch.tensor([0, 2, 3]), last.int())
    x, y, z = (torch.tensor([[[1.0], [10.0], [100.0]]]) * factor for factor in (1, 2, 3))
    to_first, to_middle, to_last = gather_products(x, y, z, paths)
    assert to_first.flatten().tolist() == [20 * 300 + 20 * 3, 0, 2 * 30]
    assert to_middle.flatten().tolist() == [100 * 30, 1 * 300 + 1 * 3, 0]
    assert to_last.flatten().tolist() == [1 * 20, 100 * 2, 1 * 20]


def by_loops(given: list[Tensor], paths: list[tuple[int, int, int]]) -> list[Tensor]:
    x, y, z = given
    out = [torch.zeros_like(x) for _ in range(3)]
    for a, b, c in paths:
        out[0][:, a] += y[:, b] * z[:, c]
        out[1][:, b] += x[:, a] * z[:, c]
        out[2][:, c] += x[:, a] * y[:, b]
    return out


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 7), st.integers(0, 40), st.integers(1, 3), st.integers(1, 19)),
    seed=st.integers(0, 1000),
)
def test_it_is_the_plain_form_forward_and_backward(sizes: tuple[int, int, int, int], seed: int) -> None:
    nodes, count, batch, width = sizes
    paths, listed = some_paths(nodes, count, seed)
    generator = torch.Generator().manual_seed(seed)
    given = [torch.randn(batch, nodes, width, generator=generator).requires_grad_() for _ in range(3)]
    weigh = [torch.randn(batch, nodes, width, generator=generator) for _ in range(3)]
    found, expected = gather_products(*given, paths), reference_gather_products(*given, paths)
    with torch.no_grad():
        for ours, plain, looped in zip(found, expected, by_loops(given, listed), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(plain, looped, rtol=1e-4, atol=1e-4)
    ours, plain = (
        torch.autograd.grad(sum((w * o).sum() for w, o in zip(weigh, outs, strict=True)), given)
        for outs in (found, expected)
    )
    for left, right in zip(ours, plain, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_the_plain_form_has_right_gradients() -> None:
    paths, _ = some_paths(4, 9, 3)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    torch.autograd.gradcheck(lambda *leaves: reference_gather_products(*leaves, paths), given)


def test_threads_change_nothing() -> None:
    paths, _ = some_paths(12, 300, 2)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(5, 12, 16, generator=generator).requires_grad_() for _ in range(3)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = gather_products(*given, paths)
            found.append([*out, *torch.autograd.grad(sum(part.square().sum() for part in out), given)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
