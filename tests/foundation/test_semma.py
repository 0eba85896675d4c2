"""SEMMA: sizes of the published model, its text branch written out as sums, and graphs without text."""

from __future__ import annotations

import pytest
import torch
from small_facts import FACTS

from distkg.foundation.model_files import make_model
from distkg.foundation.models import GraphMismatchError, KnowledgeGraph
from distkg.foundation.models.semma import Semma
from distkg.foundation.models.ultra import Ultra

SMALL = {"width": 4, "layers": 2, "hidden": 6}
# Relation 0 and the inverse of 1 have a cosine of 0.96; relation 1 and the inverse of 0, one of 0.6.
TEXT = [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0], [0.0, 0.0, 3.0, 4.0], [0.96, 0.28, 0.0, 0.0]]


def graph(text: list[list[float]] | None = None) -> KnowledgeGraph:
    vectors = None if text is None else torch.tensor(text)
    return KnowledgeGraph(torch.tensor(FACTS), entities=5, relations=2, relation_text=vectors)


def small() -> Semma:
    torch.manual_seed(0)
    model = make_model("semma", SMALL).eval()
    assert isinstance(model, Semma)
    return model


def test_sizes_and_names_are_the_published_ones() -> None:
    model = make_model("semma", {})
    assert sum(parameter.numel() for parameter in model.parameters()) == 227_649
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["semantic_model.layers.5.relation.weight"] == (1, 64)
    assert shapes["semantic_model.layers.5.linear.weight"] == (64, 128)
    assert shapes["combiner.fc.weight"] == (64, 128)
    assert make_model("ultra", {}).state_dict().keys() < shapes.keys()


def test_relations_are_alike_above_the_cosine_and_never_with_themselves() -> None:
    edges, cosines = graph(TEXT).alike_in_text(0.8)
    assert list(zip(edges.dst.tolist(), edges.src.tolist(), strict=True)) == [(0, 3), (3, 0)]
    assert cosines.tolist() == pytest.approx([0.96, 0.96])
    edges, cosines = graph(TEXT).alike_in_text(0.5)
    assert list(zip(edges.dst.tolist(), edges.src.tolist(), strict=True)) == [(0, 3), (1, 2), (2, 1), (3, 0)]
    assert cosines.tolist() == pytest.approx([0.96, 0.6, 0.6, 0.96])


@torch.no_grad()
def test_the_text_branch_is_its_sums_written_out() -> None:
    model, asked = small(), (torch.tensor([0, 3]), torch.tensor([1, 2]))
    text = torch.tensor(TEXT)
    states = text
    for layer in model.semantic_model.layers:
        gathered = text.clone()
        gathered[0] += 0.96 * layer.relation.weight[0] * states[3]
        gathered[3] += 0.96 * layer.relation.weight[0] * states[0]
        states = states + torch.relu(layer.layer_norm(layer.linear(torch.cat([states, gathered], dim=1))))
    by_graph = Ultra.relation_states(model, graph(), *asked)
    expected = model.combiner.fc(torch.cat([by_graph, states.expand(2, -1, -1)], dim=-1))
    torch.testing.assert_close(model.relation_states(graph(TEXT), *asked), expected)


@torch.no_grad()
def test_without_text_it_is_ultra() -> None:
    model, asked = small(), (torch.tensor([0, 3]), torch.tensor([1, 2]))
    plain = make_model("ultra", SMALL).eval()
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    assert torch.equal(model(graph(), *asked), plain(graph(), *asked))
    assert not torch.allclose(model(graph(TEXT), *asked), plain(graph(), *asked))


@torch.no_grad()
def test_what_relations_are_called_matters_and_their_numbers_do_not() -> None:
    model, facts, order = small(), torch.tensor(FACTS), torch.tensor([1, 0])
    renamed = torch.stack([facts[:, 0], order[facts[:, 1]], facts[:, 2]], dim=1)
    other = KnowledgeGraph(renamed, 5, 2, torch.tensor(TEXT)[[1, 0, 3, 2]])
    before = model(graph(TEXT), torch.tensor([0]), torch.tensor([1]))
    torch.testing.assert_close(model(other, torch.tensor([0]), torch.tensor([0])), before)
    exchanged = KnowledgeGraph(facts, 5, 2, torch.tensor(TEXT)[[1, 0, 3, 2]])
    assert not torch.allclose(model(exchanged, torch.tensor([0]), torch.tensor([1])), before)


def test_text_of_another_width_is_refused() -> None:
    narrow = graph([row[:3] for row in TEXT])
    with pytest.raises(
        GraphMismatchError, match=r"text vectors of width 3, and this model takes width 4: make vectors of that width"
    ):
        small()(narrow, torch.tensor([0]), torch.tensor([1]))
