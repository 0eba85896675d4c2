"""Scores from a part of a graph: those of the whole where the part is all that matters, and near it as it grows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distkg.foundation.graphs.sampling import Sampler, SubgraphSampler, sampled_scores
from distkg.foundation.model_files import make_model
from distkg.foundation.models import KnowledgeGraph
from tests.with_dgl import SAMPLERS

ENTITIES, RELATIONS = 60, 4


def graph() -> KnowledgeGraph:
    rows = np.random.default_rng(3).integers(0, [ENTITIES, RELATIONS, ENTITIES], (150, 3))
    return KnowledgeGraph(torch.from_numpy(np.unique(rows, axis=0)), ENTITIES, RELATIONS)


def test_a_neighbourhood_is_a_part_of_the_graph_in_both_directions() -> None:
    whole = graph()
    part = SubgraphSampler(whole, [2, 2]).of(torch.tensor([5, 9]), seed=1)
    facts = set(map(tuple, whole.triples.tolist()))
    found = set()
    edges = part.facts
    for u, k, v in zip(edges.dst.tolist(), edges.relation.tolist(), edges.src.tolist(), strict=True):
        head, tail = int(part.nodes[u]), int(part.nodes[v])
        found.add((head, k, tail) if k < RELATIONS else (tail, k - RELATIONS, head))
    assert found <= facts
    assert len(edges) == 2 * len(found)
    assert part.place(torch.tensor([5])).item() < len(part.nodes)
    outside = next(e for e in range(ENTITIES) if e not in part.nodes)
    assert part.place(torch.tensor([outside])).item() == len(part.nodes)


@pytest.mark.parametrize("name", ["ultra", "nbfnet"])
def test_with_room_for_all_facts_scores_are_those_of_the_whole(name: str) -> None:
    torch.manual_seed(0)
    options: dict[str, object] = {"width": 8, "layers": 3, "hidden": 8}
    # PNA compares degrees with their mean over the graph, which an entity without facts changes.
    options |= {"relations": RELATIONS, "aggregate": "mean"} if name == "nbfnet" else {}
    model, whole = make_model(name, options).eval(), graph()
    anchor, relation = torch.tensor([1, 7]), torch.tensor([0, 6])
    expected = model(whole, anchor, relation)
    found = sampled_scores(model, whole, SubgraphSampler(whole, [100] * 12), anchor, relation, torch.arange(ENTITIES))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scores_come_nearer_as_fanouts_grow(sampler: Sampler) -> None:
    torch.manual_seed(0)
    model, whole = make_model("ultra", {"width": 8, "layers": 3, "hidden": 8}).eval(), graph()
    anchor, relation = torch.arange(8), torch.arange(8)
    expected = model(whole, anchor, relation)
    errors = []
    for fanout in (1, 3, 100):
        part = SubgraphSampler(whole, [fanout] * 4, sampler)
        found = sampled_scores(model, whole, part, anchor, relation, seed=2)
        errors.append(float((found - expected).detach().abs().mean()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


def test_an_entity_outside_scores_as_one_without_facts() -> None:
    torch.manual_seed(0)
    model, whole = make_model("ultra", {"width": 8, "layers": 2, "hidden": 8}).eval(), graph()
    alone = KnowledgeGraph(whole.triples, ENTITIES + 1, RELATIONS)
    anchor, relation = torch.tensor([4]), torch.tensor([2])
    part = SubgraphSampler(whole, [1]).of(anchor, seed=0)
    outside = next(e for e in range(ENTITIES) if e not in part.nodes)
    found = sampled_scores(model, whole, SubgraphSampler(whole, [1]), anchor, relation)
    with torch.no_grad():
        expected = model(alone, anchor, relation)[0, ENTITIES]
    assert float(found[0, outside]) == pytest.approx(float(expected), abs=1e-5)
