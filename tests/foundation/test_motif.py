"""MOTIF: sizes of the published model, a layer written out hyperedge by hyperedge, and what it must not see."""

from __future__ import annotations

import pytest
import torch
from plain_hypergraph import by_definition
from small_facts import FACTS, graph
from torch import Tensor

from distkg.foundation.model_files import make_model
from distkg.foundation.models import KnowledgeGraph
from distkg.foundation.models.motif import HypergraphConvolution, Motif
from distkg.graph import relation_hypergraph as hypergraph_module
from distkg.graph.relation_graph import TooManyRelationsError
from distkg.graph.relation_hypergraph import KINDS

SMALL = {"width": 4, "layers": 2, "hidden": 6}


def small() -> Motif:
    torch.manual_seed(0)
    model = make_model("motif", SMALL).eval()
    assert isinstance(model, Motif)
    return model


def test_sizes_and_names_are_the_published_ones() -> None:
    model = make_model("motif", {})
    assert sum(parameter.numel() for parameter in model.parameters()) == 181_185
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["relation_model.position.weight"] == (5, 64)
    assert shapes["relation_model.layers.5.rel_embedding.weight"] == (7, 64)
    assert shapes["relation_model.layers.5.pos_embedding.weight"] == (7, 64)
    assert shapes["relation_model.layers.0.linear.weight"] == (64, 128)
    assert shapes["relation_model.layers.0.norm.bias"] == (64,)
    assert shapes["relation_model.mlp.2.weight"] == (64, 64)
    assert shapes["entity_model.layers.5.relation_projection.2.weight"] == (64, 64)
    assert shapes["entity_model.mlp.2.weight"] == (1, 128)


def gathered_by_loops(layer: HypergraphConvolution, states: Tensor) -> Tensor:
    gathered = torch.zeros_like(states)
    for kind, *members in by_definition(FACTS, relations=2):
        said = layer.rel_embedding.weight[KINDS.index(kind)]
        for place, member in enumerate(members):
            others = [(q, other) for q, other in enumerate(members) if q != place]
            message = said.clone()
            for q, other in others:
                message = message * (states[other] + layer.pos_embedding.weight[q + 1])
            gathered[member] += message
    return gathered


@torch.no_grad()
def test_a_layer_is_its_hyperedges_one_by_one() -> None:
    layer = small().relation_model.layers[0]
    assert isinstance(layer, HypergraphConvolution)
    states = torch.randn(4, 4)
    gathered = gathered_by_loops(layer, states)
    torch.testing.assert_close(layer.gathered(states[None], graph().hypergraph())[0], gathered, rtol=1e-4, atol=1e-4)
    expected = states + torch.relu(layer.norm(layer.linear(torch.cat([gathered, states], dim=1))))
    torch.testing.assert_close(layer(states[None], graph().hypergraph())[0], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_begins_with_ones_at_the_relation_as_it_is_asked() -> None:
    model, whole = small(), graph()
    states = model.relation_states(whole, torch.tensor([0, 0, 3]), torch.tensor([1, 3, 1]))
    for row, relation in enumerate((1, 3, 1)):
        expected = torch.zeros(1, 4, 4)
        expected[0, relation] = 1
        for layer in model.relation_model.layers:
            expected = layer(expected, whole.hypergraph())
        torch.testing.assert_close(states[row], model.relation_model.mlp(expected)[0])
    assert not torch.allclose(states[0], states[1]), "an inverse is another question"


@torch.no_grad()
def test_a_hidden_fact_is_as_if_it_were_not_there() -> None:
    model, whole = small(), graph()
    rest = KnowledgeGraph(torch.tensor([fact for fact in FACTS if fact != (2, 1, 3)]), entities=5, relations=2)
    weight = whole.mask_without(torch.tensor([2]), torch.tensor([1]), torch.tensor([3]))
    asked = torch.tensor([2, 0]), torch.tensor([1, 2])
    assert not torch.allclose(model.relation_states(whole, *asked), model.relation_states(rest, *asked))
    torch.testing.assert_close(model(whole, *asked, weight), model(rest, *asked))


@torch.no_grad()
def test_weights_by_layer_hide_nothing_among_relations() -> None:
    model, whole, asked = small(), graph(), (torch.tensor([2]), torch.tensor([1]))
    states = model.relation_states(whole, *asked, torch.zeros(2, 12))
    assert torch.equal(states, model.relation_states(whole, *asked))


@torch.no_grad()
def test_what_entities_and_relations_are_called_does_not_matter() -> None:
    model, facts = small(), torch.tensor(FACTS)
    entity, relation = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([1, 0])
    renamed = torch.stack([entity[facts[:, 0]], relation[facts[:, 1]], entity[facts[:, 2]]], dim=1)
    before = model(graph(), torch.tensor([0]), torch.tensor([1]))
    after = model(KnowledgeGraph(renamed.flip(0), 5, 2), entity[torch.tensor([0])], relation[torch.tensor([1])])
    torch.testing.assert_close(before[0], after[0, entity], rtol=1e-4, atol=1e-5)


def test_a_graph_with_too_many_hyperedges_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypergraph_module, "MOST_HYPEREDGES", 10)
    with pytest.raises(TooManyRelationsError, match=r"hyperedges.*such as ultra or trix"):
        small()(graph(), torch.tensor([0]), torch.tensor([1]))
