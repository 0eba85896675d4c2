"""NBFNet: a layer of each aggregation written out entity by entity, and what it needs of a graph."""

from __future__ import annotations

import pytest
import torch
from small_facts import FACTS
from torch import Tensor

from distkg.foundation.model_files import make_model
from distkg.foundation.models import GraphMismatchError, KnowledgeGraph
from distkg.foundation.models.nbfnet import NBFNet


def graph() -> KnowledgeGraph:
    return KnowledgeGraph(torch.tensor(FACTS), entities=6, relations=2)  # entity 5 stands alone


def model(**options: object) -> NBFNet:
    torch.manual_seed(0)
    sizes = {"relations": 2, "width": 4, "layers": 1, "hidden": 6, **options}
    made = make_model("nbfnet", sizes).eval()
    assert isinstance(made, NBFNet)
    return made


def messages_to(entity: int, states: Tensor, relations: Tensor) -> list[Tensor]:
    both = FACTS + [(t, r + 2, h) for h, r, t in FACTS]
    return [states[t] * relations[r] for h, r, t in both if h == entity]


def aggregated(messages: list[Tensor], how: str, scale: float) -> Tensor:
    stacked = torch.stack(messages)
    if how == "sum":
        return stacked.sum(0)
    if how == "max":
        return stacked.amax(0)
    if how == "mean":
        return stacked.mean(0)
    deviation = (stacked.square().mean(0) - stacked.mean(0).square()).clamp_min(1e-6).sqrt()
    features = torch.cat([stacked.mean(0), stacked.amax(0), stacked.amin(0), deviation])
    return torch.cat([features, scale * features, features / max(scale, 1e-2)])


@torch.no_grad()
@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("aggregate", ["sum", "mean", "max", "pna"])
def test_a_layer_is_what_every_entity_gathers(aggregate: str, dependent: bool) -> None:
    made = model(aggregate=aggregate, dependent=dependent)
    (layer,) = made.layers
    query = made.query.weight[3]
    start = torch.zeros(6, 4)
    start[1] = query
    relations = layer.relation(query).view(4, 4) if dependent else layer.relation.weight
    gathered = [[*messages_to(entity, start, relations), start[entity]] for entity in range(6)]
    counts = torch.tensor([float(len(messages)) for messages in gathered])
    scales = (counts.log() / counts.log().mean()).tolist()
    rows = torch.stack(
        [aggregated(messages, aggregate, scale) for messages, scale in zip(gathered, scales, strict=True)]
    )
    expected = start + torch.relu(layer.layer_norm(layer.linear(torch.cat([start, rows], dim=1))))
    read = torch.cat([expected, query.expand(6, -1)], dim=1)
    scores = made.mlp[2](torch.relu(made.mlp[0](read)))[:, 0]
    found = made(graph(), torch.tensor([1]), torch.tensor([3]))
    torch.testing.assert_close(found[0], scores, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("aggregate", ["sum", "mean", "max", "pna"])
def test_a_hidden_fact_is_as_if_it_were_not_there(aggregate: str) -> None:
    made, whole = model(aggregate=aggregate, layers=3), graph()
    rest = KnowledgeGraph(torch.tensor([fact for fact in FACTS if fact != (2, 1, 3)]), entities=6, relations=2)
    weight = whole.mask_without(torch.tensor([2]), torch.tensor([1]), torch.tensor([3]))
    asked = torch.tensor([2, 0]), torch.tensor([1, 2])
    torch.testing.assert_close(made(whole, *asked, weight), made(rest, *asked))


def test_candidates_are_scored_as_among_all() -> None:
    made, asked = model(layers=2), (torch.tensor([0, 4]), torch.tensor([1, 2]))
    some = torch.tensor([[3, 1], [0, 5]])
    torch.testing.assert_close(made(graph(), *asked, None, some), made(graph(), *asked).gather(1, some))


def test_a_graph_with_other_relations_is_refused() -> None:
    other = KnowledgeGraph(torch.tensor([(0, 2, 1)]), entities=2, relations=3)
    with pytest.raises(GraphMismatchError, match=r"made for 2 relations, and this graph has 3.*use ultra or trix"):
        model()(other, torch.tensor([0]), torch.tensor([0]))
