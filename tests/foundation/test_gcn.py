"""R-GCN and CompGCN: layers written out fact by fact, decoders, hidden facts, and what they need of a graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_facts import FACTS
from torch import Tensor

from distkg.config import ConfigError, RunConfig
from distkg.data.generate import generate
from distkg.data.prepare import prepare
from distkg.foundation.graphs.sampling import SubgraphSampler, sampled_scores
from distkg.foundation.initial_model import check_foundation
from distkg.foundation.model_files import load_model, make_model
from distkg.foundation.models import FoundationModel, GraphMismatchError, KnowledgeGraph
from distkg.foundation.models.compgcn import Compgcn, compose
from distkg.foundation.models.rgcn import Rgcn
from distkg.foundation.paths import edge_gradients
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

BOTH = FACTS + [(t, r + 2, h) for h, r, t in FACTS]
MODELS = pytest.mark.parametrize("name", ["rgcn", "compgcn"])


def graph() -> KnowledgeGraph:
    return KnowledgeGraph(torch.tensor(FACTS), entities=6, relations=2)  # entity 5 stands alone


def model(name: str, **options: object) -> FoundationModel:
    torch.manual_seed(0)
    return make_model(name, {"entities": 6, "relations": 2, "width": 5, "layers": 2, **options}).eval()


def by_loops(states: Tensor, messages: dict[tuple[int, int, int], Tensor]) -> Tensor:
    """The mean of what each entity gathers, of messages along the facts in both directions."""
    gathered = torch.zeros_like(states)
    for (u, _, _), message in messages.items():
        gathered[u] += message / sum(other == u for other, _, _ in messages)
    return gathered


@torch.no_grad()
def test_rgcn_is_a_matrix_for_every_relation() -> None:
    made = model("rgcn", bases=3)
    assert isinstance(made, Rgcn)
    states: Tensor = made.entity
    for number, layer in enumerate(made.layers):
        if number:
            states = states.relu()
        matrices = [sum(c * v for c, v in zip(layer.coefficients[r], layer.bases, strict=True)) for r in range(4)]
        messages = {(u, r, v): states[v] @ matrices[r] for u, r, v in BOTH}
        states = layer.loop(states) + by_loops(states, messages)
    torch.testing.assert_close(made.encoded(graph().facts, None), states, rtol=1e-4, atol=1e-5)
    assert torch.equal(made.relations(), made.relation)


def correlation(x: Tensor, z: Tensor) -> Tensor:
    width = len(x)
    return torch.stack([sum(x[i] * z[(i + k) % width] for i in range(width)) for k in range(width)])


COMPOSITIONS = {"sub": torch.sub, "mult": torch.mul, "corr": correlation}


@torch.no_grad()
@pytest.mark.parametrize("how", list(COMPOSITIONS))
@pytest.mark.parametrize("width", [5, 6])
def test_compgcn_gathers_compositions(how: str, width: int) -> None:
    made = model("compgcn", composition=how, width=width)
    assert isinstance(made, Compgcn)
    phi, states, relations = COMPOSITIONS[how], made.entity, made.relation
    for layer in made.layers:
        messages = {
            (u, r, v): (layer.fact if r < 2 else layer.inverse)(phi(states[v], relations[r])) for u, r, v in BOTH
        }
        own = torch.stack([layer.loop(phi(row, layer.loop_relation[0])) for row in states])
        states = torch.tanh(by_loops(states, messages) + own + layer.bias)
        relations = relations @ layer.relation.weight.T
    torch.testing.assert_close(made.encoded(graph().facts, None), states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.relations(), relations)


def test_a_correlation_written_by_hand() -> None:
    found = compose(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([10.0, 1.0, 0.0]), "corr")
    assert found[0].tolist() == pytest.approx([10 + 2, 1 + 3 * 10, 2 * 10 + 3 * 1])


@torch.no_grad()
@MODELS
@pytest.mark.parametrize("decoder", ["distmult", "transe"])
def test_decoders_score_what_is_encoded(name: str, decoder: str) -> None:
    made, whole = model(name, decoder=decoder), graph()
    entities = made.encoded(whole.facts, None)  # type: ignore[operator]
    relations = made.relations()  # type: ignore[operator]
    anchor, relation = torch.tensor([0, 4]), torch.tensor([1, 2])
    expected = torch.zeros(2, 6)
    for row, (a, r) in enumerate([(0, 1), (4, 2)]):
        for e in range(6):
            if decoder == "distmult":
                expected[row, e] = (entities[a] * relations[r] * entities[e]).sum()
            else:
                expected[row, e] = -(entities[a] + relations[r] - entities[e]).abs().sum()
    torch.testing.assert_close(made(whole, anchor, relation), expected, rtol=1e-4, atol=1e-5)
    some = torch.tensor([[3, 1], [0, 5]])
    torch.testing.assert_close(
        made(whole, anchor, relation, None, some), expected.gather(1, some), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
@MODELS
def test_a_hidden_fact_is_as_if_it_were_not_there(name: str) -> None:
    made, whole = model(name), graph()
    rest = KnowledgeGraph(torch.tensor([fact for fact in FACTS if fact != (2, 1, 3)]), entities=6, relations=2)
    weight = whole.mask_without(torch.tensor([2]), torch.tensor([1]), torch.tensor([3]))
    asked = torch.tensor([2, 0]), torch.tensor([1, 2])
    assert not torch.allclose(made(whole, *asked), made(rest, *asked))
    torch.testing.assert_close(made(whole, *asked, weight), made(rest, *asked))
    torch.testing.assert_close(made(whole, *asked, weight.expand(2, -1)), made(rest, *asked))


@MODELS
def test_facts_that_matter_have_gradients_in_each_layer(name: str) -> None:
    gradients, facts = edge_gradients(model(name), graph(), 0, 1, 4), graph().facts
    assert gradients.shape == (2, 12)
    last = {int(facts.dst[e]) for e in torch.nonzero(gradients[1])[:, 0]}
    assert last == {0, 4}, "of the last layer only what the anchor and the answer gather"


@MODELS
def test_other_graphs_and_parts_of_one_are_refused(name: str) -> None:
    made = model(name)
    other = KnowledgeGraph(torch.tensor([(0, 1, 1)]), entities=7, relations=2)
    said = r"made for 6 entities and 2 relations, and this graph has 7 and 2.*use ultra or trix"
    with pytest.raises(GraphMismatchError, match=said):
        made(other, torch.tensor([0]), torch.tensor([0]))
    whole = graph()
    with pytest.raises(GraphMismatchError, match="a sampled part has not"):
        sampled_scores(made, whole, SubgraphSampler(whole, [2]), torch.tensor([0]), torch.tensor([0]))


def config(stores: list[str], name: str) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"graphs": stores},
        "model": {"name": name, "options": {"width": 32}},
        "objective": {"name": "self_adversarial", "margin": 0.0},
        "negatives": {"count": 32},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "train": {"batch_size": 256, "epochs": 2, "steps_per_epoch": 50},
        "evaluate": {"every": 2},
    }
    return RunConfig.model_validate(tree)


@MODELS
def test_they_learn_the_graph_of_their_store(name: str, shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    store = str(tmp_path / "umls")
    prepare(str(shared_data("UMLS")), store)
    result = train_on_rank(config([store], name), tmp_path / "run", Ranks.single(), resume=False)
    assert result["metrics"]["test"]["mrr"] > 0.4  # 0.04 by chance, 0.5 and more after these 100 steps
    assert load_model(tmp_path / "run").options.model_dump()["entities"] == 135


def test_several_graphs_are_refused(tmp_path: Path) -> None:
    stores = [str(tmp_path / name) for name in "ab"]
    for store in stores:
        generate(store, entities=20, relations=2, triples=60, seed=1)
    with pytest.raises(ConfigError, match=r"rgcn has vectors for the relations of one graph; 2 are given"):
        check_foundation(config(stores, "rgcn"))
