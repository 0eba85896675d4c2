"""TRIX for relations: sizes, a round written out as sums, what hidden facts take with them, and whom it cannot rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_facts import FACTS, graph
from torch import Tensor

from distkg.foundation.graph_scorer import GraphScorer
from distkg.foundation.layers.leakage_mask import weights_of_meetings
from distkg.foundation.layers.path_decoder import FactConvolution
from distkg.foundation.model_files import make_model
from distkg.foundation.models import KnowledgeGraph, UnsupportedQuestionError
from distkg.foundation.models.trix_relations import TrixRelations
from distkg.kernels.message_passing.incidence import Incidence

Fact = tuple[int, int, int]
BOTH = FACTS + [(t, r + 2, h) for h, r, t in FACTS]
SMALL = {"width": 4, "rounds": 2, "layers": 1}


def small() -> TrixRelations:
    torch.manual_seed(0)
    model = make_model("trix_relations", SMALL).eval()
    assert isinstance(model, TrixRelations)
    return model


def test_sizes_and_names() -> None:
    model = make_model("trix_relations", {})
    # Of 3 rounds: 10 convolutions of (64 32 + 32) + 2 32 + 2 (32 32 + 32), and (64 64 + 64) + (64 32 + 32); at the end
    # (32 32 + 32) + (32 + 1).
    assert sum(parameter.numel() for parameter in model.parameters()) == 3 * (10 * 4_256 + 6_240) + 1_089 == 147_489
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["relation_model.2.layers_th.1.relation_projection.2.weight"] == (32, 32)
    assert shapes["entity_model.2.layers.1.linear.weight"] == (32, 64)
    assert shapes["entity_model.2.mlp.2.weight"] == (32, 64)
    assert shapes["mlp.2.weight"] == (1, 32)


def updated(
    layer: FactConvolution, states: Tensor, boundary: Tensor, edges: list[tuple[int, int, int]], said: Tensor
) -> Tensor:
    gathered = boundary.clone()
    for u, kind, v in edges:
        gathered[u] += layer.relation_projection(said[kind]) * states[v]
    return torch.relu(layer.layer_norm(layer.linear(torch.cat([states, gathered], dim=1))))


@torch.no_grad()
def test_rounds_are_their_sums_written_out() -> None:
    model, head, tail = small(), 1, 4
    heads = {v: {r for u, r, _ in BOTH if u == v} for v in range(5)}
    tails = {v: {r for _, r, t in BOTH if t == v} for v in range(5)}
    ends = torch.zeros(5, 4)
    ends[head], ends[tail] = 1, -1
    nodes, relations = ends, torch.ones(4, 4)
    for by_facts, by_meetings in zip(model.entity_model, model.relation_model, strict=True):
        (layer,) = by_facts.layers
        nodes = nodes + updated(layer, nodes, ends, BOTH, relations)
        nodes = by_facts.mlp(torch.cat([nodes, torch.ones(5, 4)], dim=1))
        update = torch.zeros(4, 4)
        ways = {"hh": (heads, heads), "ht": (heads, tails), "th": (tails, heads), "tt": (tails, tails)}
        for short, (left, right) in ways.items():
            loops = short in ("ht", "th")
            meetings = [(i, v, j) for v in range(5) for i in left[v] for j in right[v] if i != j or loops]
            (convolution,) = getattr(by_meetings, f"layers_{short}")
            update += updated(convolution, relations, torch.ones(4, 4), meetings, nodes)
        relations = relations + update
    expected = model.mlp(relations[:2])[:, 0]
    found = GraphScorer(model, graph()).relation_scores(np.array([[head, tail], [0, 3]]))
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)


def pairs_of(meetings: Incidence, weight: Tensor) -> set[tuple[int, int]]:
    pairs = zip(meetings.entity.tolist(), meetings.relation.tolist(), strict=True)
    return {pair for pair, shown in zip(pairs, weight.tolist(), strict=True) if shown}


@settings(max_examples=30, deadline=None)
@given(
    facts=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 5)), min_size=2, max_size=15, unique=True
    ),
    count=st.integers(1, 5),
)
def test_meetings_are_those_of_the_facts_that_are_left(facts: list[Fact], count: int) -> None:
    count = min(count, len(facts) - 1)
    whole, rest = (KnowledgeGraph(torch.tensor(some), entities=6, relations=3) for some in (facts, facts[count:]))
    weight = whole.mask_without(*torch.tensor(facts[:count]).unbind(1))
    meetings = whole.meetings_in_entities()
    expected = rest.meetings_in_entities()
    assert pairs_of(meetings, weights_of_meetings(whole, meetings, weight)) == pairs_of(
        expected, torch.ones(len(expected))
    )


@torch.no_grad()
def test_a_hub_may_have_any_number_of_relations() -> None:
    """As edges, the meetings of its 8,000 relations would be 256 million."""
    relations = torch.arange(8000)
    facts = torch.stack([torch.zeros_like(relations), relations, 1 + relations], dim=1)
    hub = KnowledgeGraph(facts, entities=8001, relations=8000)
    scores = small().relation_scores(hub, torch.tensor([0]), torch.tensor([5]))[0]
    others = scores[torch.arange(8000) != 4]
    torch.testing.assert_close(others, others[:1].expand(7999))
    assert abs(float(scores[4] - others[0])) > 1e-3, "relation 4 leads from the one to the other"


@torch.no_grad()
def test_a_hidden_fact_is_as_if_it_were_not_there() -> None:
    model, whole = small(), graph()
    for hidden in FACTS:
        rest = KnowledgeGraph(torch.tensor([fact for fact in FACTS if fact != hidden]), entities=5, relations=2)
        weight = whole.mask_without(*(torch.tensor([part]) for part in hidden))
        pairs = torch.tensor([hidden[0], 4]), torch.tensor([hidden[2], 1])
        assert not torch.allclose(model.relation_scores(whole, *pairs), model.relation_scores(rest, *pairs))
        torch.testing.assert_close(
            model.relation_scores(whole, *pairs, weight), model.relation_scores(rest, *pairs), rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
def test_weights_may_differ_from_layer_to_layer() -> None:
    model, whole, pairs = small(), graph(), (torch.tensor([0]), torch.tensor([3]))
    plain = model.relation_scores(whole, *pairs)
    assert torch.equal(model.relation_scores(whole, *pairs, torch.ones(2, 12)), plain)
    weight = torch.ones(2, 12)
    weight[1] = 0
    assert not torch.allclose(model.relation_scores(whole, *pairs, weight), plain)


@torch.no_grad()
def test_what_entities_and_relations_are_called_does_not_matter_and_the_direction_does() -> None:
    model, facts = small(), torch.tensor(FACTS)
    entity, relation = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([1, 0])
    renamed = torch.stack([entity[facts[:, 0]], relation[facts[:, 1]], entity[facts[:, 2]]], dim=1)
    head, tail = torch.tensor([0]), torch.tensor([3])
    before = model.relation_scores(graph(), head, tail)
    after = model.relation_scores(KnowledgeGraph(renamed.flip(0), 5, 2), entity[head], entity[tail])
    torch.testing.assert_close(after[0, relation], before[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.relation_scores(graph(), tail, head), before)


def test_each_model_says_whom_it_cannot_rank() -> None:
    one = torch.tensor([0])
    said = r"trix_relations ranks relations, not entities\. .*: .*trix, ultra"
    with pytest.raises(UnsupportedQuestionError, match=said):
        small()(graph(), one, one)
    said = "ultra ranks entities, not relations. Use a model that ranks relations: trix_relations"
    with pytest.raises(UnsupportedQuestionError, match=said):
        make_model("ultra", {}).relation_scores(graph(), one, one)
