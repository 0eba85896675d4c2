"""Messages between relations that meet in an entity: against numbers written by hand, every pair in a loop, and
gradients in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distkg.kernels.message_passing.incidence import Incidence, propagate_meetings

WITH_ITSELF = pytest.mark.parametrize("with_itself", [False, True])


def incidence_of(pairs: list[tuple[int, int]], entities: int, relations: int) -> Incidence:
    ordered = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2)
    offsets = torch.searchsorted(ordered[:, 0].contiguous(), torch.arange(entities + 1))
    return Incidence(relations, offsets, ordered[:, 1].int())


def pair_by_pair(x: Tensor, f: Tensor, incidence: Incidence, weight: Tensor, with_itself: bool) -> Tensor:
    """The definition: a message for every two relations of an entity."""
    out, f = 0 * x + 0 * f.sum(), f.expand(len(x), -1, -1)
    for v in range(incidence.entities):
        own = range(int(incidence.offsets[v]), int(incidence.offsets[v + 1]))
        for p in own:
            for q in own:
                if p != q or with_itself:
                    i, j = int(incidence.relation[p]), int(incidence.relation[q])
                    message = weight[p] * weight[q] * f[:, v] * x[:, j]
                    out = out.index_add(1, torch.tensor([i]), message[:, None])
    return out


def test_numbers_written_by_hand() -> None:
    # Relations 0 and 1 meet in entity 0, relations 1 and 2 in entity 2; entity 1 has none.
    incidence = incidence_of([(0, 0), (0, 1), (2, 1), (2, 2)], 3, 3)
    states, factors = torch.tensor([[[1.0], [10.0], [100.0]]]), torch.tensor([[[2.0], [7.0], [3.0]]])
    apart = propagate_meetings(states, factors, incidence, with_itself=False)
    assert apart.flatten().tolist() == [2 * 10.0, 2 * 1 + 3 * 100.0, 3 * 10.0]
    together = propagate_meetings(states, factors, incidence, with_itself=True)
    assert together.flatten().tolist() == [2 * 11.0, 2 * 11 + 3 * 110.0, 3 * 110.0]
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0])  # entity 0 no longer has relation 0
    hidden = propagate_meetings(states, factors, incidence, weight, with_itself=True)
    assert hidden.flatten().tolist() == [0.0, 2 * 10 + 3 * 110.0, 3 * 110.0]


@WITH_ITSELF
@settings(max_examples=25, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=25, unique=True),
    width=st.sampled_from([1, 6, 8, 16, 20, 40]),
    shared=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_messages_and_gradients_are_those_of_all_pairs(
    with_itself: bool, pairs: list[tuple[int, int]], width: int, shared: bool, seed: int
) -> None:
    incidence, generator = incidence_of(pairs, 6, 7), torch.Generator().manual_seed(seed)
    leaves = [torch.randn(shape, generator=generator) for shape in ((2, 7, width), (1 if shared else 2, 6, width))]
    weight = torch.rand(len(pairs), generator=generator)
    weight[::4] = 0
    weigh = torch.randn(2, 7, width, generator=generator)

    def results(form: object, dtype: torch.dtype) -> list[Tensor]:
        own = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        if form is pair_by_pair:
            out = pair_by_pair(*own, incidence, weight.to(dtype), with_itself)
        else:
            out = propagate_meetings(*own, incidence, weight.to(dtype), with_itself=with_itself)
        total = (out * weigh.to(dtype)).sum()
        return [out, *torch.autograd.grad(total, own)]

    expected = results(pair_by_pair, torch.float64)
    for ours, exact in zip(results(propagate_meetings, torch.float64), expected, strict=True):
        torch.testing.assert_close(ours, exact)
    for ours, exact in zip(results(propagate_meetings, torch.float32), expected, strict=True):
        torch.testing.assert_close(ours, exact.float(), rtol=1e-4, atol=1e-5)


@WITH_ITSELF
def test_gradients_are_those_of_finite_differences(with_itself: bool) -> None:
    incidence = incidence_of([(0, 0), (0, 1), (0, 3), (1, 1), (2, 2), (2, 3)], 3, 4)
    weight = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 4, 3), (1, 3, 3))]
    torch.autograd.gradcheck(
        lambda states, factors: propagate_meetings(states, factors, incidence, weight, with_itself=with_itself),
        [leaf.requires_grad_() for leaf in leaves],
    )


def test_a_hub_of_a_hundred_thousand_relations_costs_no_pairs_of_them() -> None:
    # As edges, its ten thousand million meetings would take 120 GB.
    count = 100_000
    incidence = Incidence(count, torch.tensor([0, count]), torch.arange(count, dtype=torch.int32))
    states = torch.ones(1, count, 2, requires_grad=True)
    gathered = propagate_meetings(states, torch.full((1, 1, 2), 3.0), incidence, with_itself=False)
    assert (gathered == 3.0 * (count - 1)).all()
    gathered[0, 7, 0].backward()
    assert states.grad is not None
    assert states.grad[0, :, 0].sum() == 3.0 * (count - 1)
    assert states.grad[0, 7, 0] == 0


def test_results_are_the_same_bits_with_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(60 * 12, generator=generator)[:300]
    incidence = incidence_of([(int(pair) // 12, int(pair) % 12) for pair in pairs], 60, 12)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((5, 12, 16), (1, 60, 16))]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = propagate_meetings(*leaves, incidence, with_itself=False)
            found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for again in found[1:] for one, other in zip(found[0], again, strict=True))
