"""ULTRA with its published weights, against the numbers of an independent implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_facts import FACTS, graph

from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.foundation.model_files import import_checkpoint
from distkg.foundation.models.ultra import Ultra

CHECKPOINT = Path(__file__).parents[2].parent / "shared" / "checkpoints" / "ultra_3g.pth"


@pytest.fixture(scope="module")
def published() -> Ultra:
    if not CHECKPOINT.exists():
        pytest.skip(f"the published checkpoint is not at {CHECKPOINT}")
    model = import_checkpoint(CHECKPOINT)
    assert isinstance(model, Ultra)
    return model


def test_sizes_are_the_published_ones() -> None:
    model = Ultra.of({})
    assert sum(parameter.numel() for parameter in model.parameters()) == 168_705
    assert len(model.state_dict()) == 82


@torch.no_grad()
def test_relation_states_are_those_of_the_checkpoint(published: Ultra) -> None:
    states = published.relation_states(graph(), torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert states[0, 0, :4].tolist() == pytest.approx([2.133105, 3.106562, 5.540276, 1.67339], abs=1e-4)
    assert states.sum().item() == pytest.approx(670.55625, abs=1e-2)


@torch.no_grad()
def test_scores_are_those_of_the_checkpoint(published: Ultra) -> None:
    # (0, 0, ?), (1, 1, ?), and with inverses (?, 0, 1), (?, 1, 3).
    scores = published(graph(), torch.tensor([0, 1, 1, 3]), torch.tensor([0, 1, 2, 3]))
    assert scores.tolist() == [
        pytest.approx([-1.68849, 1.14536, 0.74885, -5.60118, -5.58893], abs=1e-4),
        pytest.approx([0.06958, -2.50241, 0.10889, 1.26494, 2.03315], abs=1e-4),
        pytest.approx([0.85767, -3.08626, 0.92504, -6.29487, -4.9079], abs=1e-4),
        pytest.approx([2.57529, 0.96221, 0.66895, -1.58555, 1.13108], abs=1e-4),
    ]


def test_a_hidden_fact_is_as_if_it_were_not_there() -> None:
    torch.manual_seed(0)
    model = Ultra.of({"width": 8, "layers": 3, "hidden": 16}).eval()
    whole = graph()
    rest = KnowledgeGraph(torch.tensor([fact for fact in FACTS if fact != (2, 1, 3)]), entities=5, relations=2)
    anchor, relation = torch.tensor([2, 0]), torch.tensor([1, 0])
    states = model.relation_states(whole, anchor, relation)
    weight = whole.mask_without(torch.tensor([2]), torch.tensor([1]), torch.tensor([3]))
    assert weight.sum() == 2 * len(FACTS) - 2
    hidden = model.scores(whole, states, anchor, relation, weight)
    torch.testing.assert_close(hidden, model.scores(rest, states, anchor, relation))
    same = whole.mask_without(torch.tensor([3]), torch.tensor([3]), torch.tensor([2]))
    assert torch.equal(weight, same), "asked from the other end"


def test_what_entities_and_relations_are_called_does_not_matter() -> None:
    torch.manual_seed(1)
    model = Ultra.of({"width": 8, "layers": 3, "hidden": 16}).eval()
    entity, relation = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([1, 0])
    facts = torch.tensor(FACTS)
    renamed = torch.stack([entity[facts[:, 0]], relation[facts[:, 1]], entity[facts[:, 2]]], dim=1)
    before = model(graph(), torch.tensor([0]), torch.tensor([1]))
    after = model(KnowledgeGraph(renamed.flip(0), 5, 2), entity[torch.tensor([0])], relation[torch.tensor([1])])
    torch.testing.assert_close(before[0], after[0, entity])


def test_gradients_are_the_same_bits_again() -> None:
    """On two threads, where many queries share a relation whose states get gradients from all of them."""
    generator = torch.Generator().manual_seed(0)
    triples = torch.stack([torch.randint(most, (300,), generator=generator) for most in (30, 20, 30)], dim=1)
    whole, relation = KnowledgeGraph(triples, entities=30, relations=20), torch.arange(64) % 3
    torch.manual_seed(0)
    model = Ultra.of({"width": 128, "layers": 1, "hidden": 8})
    weigh, found = torch.randn(64, 40, 128, generator=generator), []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for _ in range(10):
            states = model.relation_states(whole, relation, relation)
            found.append(torch.autograd.grad((states * weigh).sum(), list(model.relation_model.parameters())))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for again in found[1:] for one, other in zip(found[0], again, strict=True))
