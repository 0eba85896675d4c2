"""Layers and output networks without gradients: against the plain forms in float64, and the form with gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distkg.foundation.layers.path_decoder import ReadOut
from distkg.foundation.layers.relational import Boundary, Convolution, FullBoundary, Mlp
from distkg.kernels.message_passing import layer_inference
from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.layer_inference import infer_scores
from distkg.kernels.message_passing.layer_update import reference_layer_update
from distkg.kernels.message_passing.sums import reference_propagate

NODES, KINDS, WIDTH, BATCH = 9000, 5, 20, 3  # several blocks of nodes


@pytest.fixture(scope="module")
def edges() -> Edges:
    """Node 7 gathers from a fifth of the edges, the last nodes from none."""
    generator = torch.Generator().manual_seed(0)
    dst, kind, src = (torch.randint(most, (20_000,), generator=generator) for most in (NODES - 50, KINDS, NODES))
    dst[:4000] = 7
    return Edges.of(dst, kind, src, NODES, KINDS)


@torch.no_grad()
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_layer_is_its_definition(full: bool, threads: int, edges: Edges, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = Convolution(WIDTH)
    states, relations = (
        torch.randn(shape, generator=generator) for shape in ((BATCH, NODES, WIDTH), (2, KINDS, WIDTH))
    )
    place, weight = torch.tensor([1, 0, 1]), (torch.rand(len(edges), generator=generator) > 0.2).float()
    node, vector = torch.tensor([7, 8999, 0]), torch.randn(BATCH, WIDTH, generator=generator)
    own = torch.zeros(BATCH, NODES, WIDTH)
    own[[0, 1, 2], node] = vector
    boundary = FullBoundary(own[:1]) if full else Boundary(node, vector)
    own = own[:1] if full else own
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = layer(states, relations, edges, boundary, weight, place)
        monkeypatch.setattr("distkg.foundation.layers.relational.runs_without_gradients", lambda *tensors: False)
        with_gradients = layer(states, relations, edges, boundary, weight, place)
    finally:
        torch.set_num_threads(before)
    sums = reference_propagate(states.double(), relations[place].double(), edges, weight.double(), "distmult") + own
    parameters = (each.double() for each in (layer.linear.weight, layer.linear.bias))
    norm = (each.double() for each in (layer.layer_norm.weight, layer.layer_norm.bias))
    expected = reference_layer_update(states.double(), sums, *parameters, *norm)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, with_gradients, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("hiding", [False, True])
def test_the_first_layer_is_the_layer_of_the_condition(hiding: bool, edges: Edges) -> None:
    torch.manual_seed(2)
    layer, relations = Convolution(WIDTH), torch.randn(2, KINDS, WIDTH)
    hub, silent = int(edges.src.bincount().argmax()), 8999
    boundary = Boundary(torch.tensor([hub, silent, 7]), torch.randn(BATCH, WIDTH))
    assert (edges.src == hub).sum() > 5
    weight = (torch.rand(len(edges)) > 0.5).float() if hiding else None
    for rows, place in ((relations, torch.tensor([1, 0, 1])), (relations[:1], None)):
        found = layer.start(boundary, rows, edges, weight, place)
        expected = layer(boundary.states(NODES), rows, edges, boundary, weight, place)
        assert len(expected[0].unique(dim=0)) > 3
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_scores_are_those_of_the_network() -> None:
    torch.manual_seed(0)
    network = ReadOut(WIDTH, 24)
    states, query = torch.randn(BATCH, NODES, WIDTH), torch.randn(BATCH, WIDTH)
    both = torch.cat([states, query[:, None].expand_as(states)], dim=-1).double()
    first, _, last = network.double()
    expected = last(torch.relu(first(both)))[..., 0]
    found = network.float()(states, query)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_numbers_written_by_hand() -> None:
    # ReLU(2·3 - 1) · 10 + ReLU(-1·3 + 1) · 100 + 5, then with x = -1: ReLU(-3) · 10 + ReLU(2) · 100 + 5
    states, of_state = torch.tensor([[[3.0], [-1.0]]]), torch.tensor([[2.0], [-1.0]])
    of_query, last, bias = torch.tensor([[-1.0, 1.0]]), torch.tensor([10.0, 100.0]), torch.tensor([5.0])
    assert infer_scores(states, of_state, of_query, last, bias).tolist() == [[55.0, 205.0]]


@torch.no_grad()
def test_a_broken_state_shows_in_its_score() -> None:
    states = torch.ones(1, NODES, WIDTH)
    states[0, 4500, 3] = torch.nan
    scores: Tensor = ReadOut(WIDTH, 24)(states, torch.ones(1, WIDTH))
    assert scores[0].isnan().nonzero().flatten().tolist() == [4500]


def test_gradients_small_graphs_and_other_dtypes_take_the_other_form() -> None:
    states, parameter = torch.ones(1, NODES, 4), torch.ones(4, requires_grad=True)
    runs = layer_inference.runs_without_gradients
    assert not runs(NODES, states, parameter)
    with torch.no_grad():
        assert runs(NODES, states, parameter)
        assert not runs(NODES, states.double(), parameter)
        assert not runs(1000, states, parameter)
        assert not runs(NODES, states.to("meta"), parameter)


@torch.no_grad()
@pytest.mark.parametrize("fixed", [None, torch.tensor([2.0, -1.0, 0.5])])
def test_a_network_is_its_definition(fixed: Tensor | None) -> None:
    torch.manual_seed(0)
    network, inputs = Mlp(WIDTH, 24, 7), torch.randn(BATCH, NODES, WIDTH - (0 if fixed is None else 3))
    found = network(inputs, fixed)
    rows = [inputs] if fixed is None else [inputs, fixed.expand(BATCH, NODES, 3)]
    first, _, last = network.double()
    expected = last(torch.relu(first(torch.cat(rows, dim=-1).double())))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    with torch.enable_grad():
        again = network.float()(inputs, fixed)
        assert again.requires_grad
    torch.testing.assert_close(found, again, rtol=1e-5, atol=1e-5)
