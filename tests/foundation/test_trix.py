"""TRIX: sizes of the published model, its layers written out as sums, and what a foundation model must not see."""

from __future__ import annotations

import torch
from small_facts import FACTS, graph
from torch import Tensor

from distkg.foundation.model_files import make_model
from distkg.foundation.models import KnowledgeGraph
from distkg.foundation.models.trix import Trix

SMALL = {"width": 4, "relation_layers": 2, "small_layers": 1, "layers": 2, "hidden": 6}


def small() -> Trix:
    torch.manual_seed(0)
    model = make_model("trix", SMALL).eval()
    assert isinstance(model, Trix)
    return model


def test_sizes_are_the_published_ones() -> None:
    model = make_model("trix", {})
    assert sum(parameter.numel() for parameter in model.parameters()) == 87_138
    assert len(model.state_dict()) == 154


@torch.no_grad()
def test_the_first_layer_is_its_sum_written_out() -> None:
    model, whole, query = small(), graph(), 1
    encoder = model.relation_model
    heads: dict[int, set[int]] = {}
    for h, r, t in FACTS:
        heads.setdefault(h, set()).add(r)
        heads.setdefault(t, set()).add(r + 2)
    tails = {v: {(r + 2) % 4 for r in found} for v, found in heads.items()}
    states = torch.zeros(4, 4)
    states[query] = 1
    expected = states.clone()
    for short, left, right in (("hh", heads, heads), ("ht", heads, tails), ("th", tails, heads), ("tt", tails, tails)):
        layer = getattr(encoder, f"layers_{short}")[0]
        said = layer.relation_projection(torch.ones(4))  # all entities begin with ones
        gathered = torch.zeros(4, 4)
        gathered[query] += 1
        for v in heads:
            for i in left[v]:
                for j in right[v]:
                    if i != j or short in ("ht", "th"):
                        gathered[i] += said * states[j]
        expected += torch.relu(layer.layer_norm(layer.linear(torch.cat([states, gathered], dim=1))))
    one = Trix.of({**SMALL, "relation_layers": 1})
    one.load_state_dict({name: model.state_dict()[name] for name in one.state_dict()})
    found = one.relation_states(whole, torch.tensor([3]), torch.tensor([query]))
    torch.testing.assert_close(found[0], expected)


@torch.no_grad()
def test_relations_are_seen_from_the_anchor_and_through_what_is_not_hidden() -> None:
    model, whole, relation = small(), graph(), torch.tensor([1])

    def states(anchor: int, weight: Tensor | None = None) -> Tensor:
        return model.relation_states(whole, torch.tensor([anchor]), relation, weight)

    assert not torch.allclose(states(0), states(2))
    hidden = whole.mask_without(torch.tensor([0]), torch.tensor([0]), torch.tensor([1]))
    assert not torch.allclose(states(0), states(0, hidden))


@torch.no_grad()
def test_what_entities_and_relations_are_called_does_not_matter() -> None:
    model, facts = small(), torch.tensor(FACTS)
    entity, relation = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([1, 0])
    renamed = torch.stack([entity[facts[:, 0]], relation[facts[:, 1]], entity[facts[:, 2]]], dim=1)
    before = model(graph(), torch.tensor([0]), torch.tensor([1]))
    after = model(KnowledgeGraph(renamed.flip(0), 5, 2), entity[torch.tensor([0])], relation[torch.tensor([1])])
    torch.testing.assert_close(before[0], after[0, entity])
