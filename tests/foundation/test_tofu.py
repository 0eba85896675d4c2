"""TOFU: ULTRA where there are no tokens, messages against loops over edges, and what tokens may not know."""

from __future__ import annotations

import math

import pytest
import torch
from small_facts import FACTS

from distkg.foundation.graphs.entity_tokens import EntityTokens, TokenPool, TokensOnDemand
from distkg.foundation.layers.mixed_messages import MixedConvolution
from distkg.foundation.layers.relational import Boundary
from distkg.foundation.model_files import make_model
from distkg.foundation.models import FoundationModel, GraphMismatchError, KnowledgeGraph
from distkg.foundation.models.tofu import Tofu, TofuOptions, TokenDecoder, TokenReadOut

SMALL = {"width": 8, "layers": 2, "hidden": 8, "token_width": 6, "message_width": 4}
WIDTHS = {"text": 5, "image": 3}
ASKED = torch.tensor([0, 4]), torch.tensor([1, 2])


def tokens(seed: int = 0) -> dict[str, EntityTokens]:
    generator = torch.Generator().manual_seed(seed)
    text = torch.tensor([[0, 2], [1, -1], [3, 4], [-1, -1], [2, 3]])
    image = torch.tensor([[6], [-1], [0], [1], [2]])
    return {
        "text": EntityTokens.of(text, torch.randn(5, 5, generator=generator)),
        "image": EntityTokens.of(image, torch.randn(7, 3, generator=generator)),
    }


def graph(**own: EntityTokens) -> KnowledgeGraph:
    return KnowledgeGraph(torch.tensor(FACTS), entities=5, relations=2, tokens=own)


def made(seed: int = 0, **options: object) -> FoundationModel:
    torch.manual_seed(seed)
    return make_model("tofu", {**SMALL, "modalities": WIDTHS, **options}).eval()


def shaken(model: FoundationModel) -> FoundationModel:
    """As after some training: nothing is zero any more."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def test_the_published_size() -> None:
    modalities = {"text": 384, "image": 32}  # the paper's two, and about 0.25 million parameters
    for prompts in (0, 5):
        model = make_model("tofu", {"modalities": modalities, "prompts": prompts})
        count = sum(parameter.numel() for parameter in model.parameters())
        assert 220_000 < count < 280_000


def test_without_tokens_it_is_ultra_bit_for_bit() -> None:
    model = shaken(made())
    assert torch.equal(model(graph(), *ASKED), ultra_of(model)(graph(), *ASKED))


def ultra_of(model: FoundationModel) -> FoundationModel:
    """ULTRA with the parameters that both have."""
    ultra = make_model("ultra", {name: SMALL[name] for name in ("width", "layers", "hidden")}).eval()
    own = model.state_dict()
    ultra.load_state_dict({name: own[name] for name in ultra.state_dict()})
    return ultra


def test_at_the_start_prompts_change_nothing_bit_for_bit() -> None:
    model, without = made(prompts=5), made()
    assert isinstance(model, Tofu)
    shared = model.state_dict()
    assert all(torch.equal(shared[name], own) for name, own in without.state_dict().items())
    assert model.prompt_model.encoder(graph(), ASKED[1]).any()
    for whole in (graph(), graph(**tokens())):
        assert torch.equal(model(whole, *ASKED), without(whole, *ASKED))
    assert torch.equal(model(graph(), *ASKED), ultra_of(model)(graph(), *ASKED))


def test_prompts_are_added_to_the_states_of_relations_and_see_no_hidden_facts() -> None:
    model = shaken(made(prompts=5))
    assert isinstance(model, Tofu)
    whole, ultra = graph(), ultra_of(model)
    weight = whole.mask_without(torch.tensor([1]), torch.tensor([1]), torch.tensor([3]))
    rest = KnowledgeGraph(torch.tensor([fact for fact in FACTS if fact != (1, 1, 3)]), entities=5, relations=2)
    for seen, left in ((None, whole), (weight, rest)):
        by_example = model.prompt_model.encoder(left, ASKED[1]) @ model.prompt_model.linear.weight.T
        expected = ultra.relation_states(whole, *ASKED) + by_example
        torch.testing.assert_close(model.relation_states(whole, *ASKED, seen), expected)
    told = model.relation_states(whole, *ASKED, weight)
    assert not torch.allclose(told, model.relation_states(whole, *ASKED), atol=1e-3)


def test_states_of_relations_depend_on_facts_where_there_are_prompts() -> None:
    assert made(prompts=1).relations_by_facts
    assert not made().relations_by_facts


def test_at_the_start_tokens_change_nothing() -> None:
    model = made()
    torch.testing.assert_close(model(graph(), *ASKED), model(graph(**tokens()), *ASKED))


def test_pooled_tokens_are_a_softmax_over_those_that_are_there() -> None:
    torch.manual_seed(0)
    pool, own = TokenPool(5, 6, 8), tokens()["text"]
    torch.nn.init.normal_(pool.asked)
    torch.nn.init.normal_(pool.missing)
    query = torch.randn(3, 8)
    found = pool(own, query)
    for b in range(3):
        asked = pool.asked + pool.query(query[b])
        for e, ids in enumerate(own.ids.tolist()):
            there = [pool.norm(pool.projection(own.vectors[i])) for i in ids if i >= 0]
            if not there:
                torch.testing.assert_close(found[b, e], pool.missing)
                continue
            shares = torch.stack([(value * asked).sum() / 6**0.5 for value in there]).softmax(0)
            expected = sum(share * value for share, value in zip(shares, there, strict=True))
            torch.testing.assert_close(found[b, e], expected)


def test_a_layer_gathers_the_mixture_edge_by_edge() -> None:
    model = shaken(made())
    assert isinstance(model, Tofu)
    whole, (anchor, relation) = graph(**tokens()), ASKED
    relations = model.relation_states(whole, anchor, relation)
    query = relations[torch.arange(2), relation]
    layer: MixedConvolution = model.entity_model.layers[0]  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(1)
    states, edges = torch.randn(2, 5, 8, generator=generator), whole.facts
    pooled = {name: torch.randn(2, 5, 6, generator=generator) for name in WIDTHS}
    decoder = model.entity_model
    assert isinstance(decoder, TokenDecoder)
    weight = torch.ones(len(edges))
    weight[3] = 0
    boundary = Boundary(anchor, torch.nn.functional.pad(query, (0, 3 * 4 + 12)))
    found = layer.mixed(states, relations, query, edges, boundary, weight, decoder.told(pooled))
    for b in range(2):
        gathered = torch.zeros(5, 8)
        gathered[anchor[b]] += query[b]

        def told(entity: int, half: int, b: int = b) -> list[torch.Tensor]:
            return [torch.tanh(decoder.of_tokens[name](pooled[name][b, entity])).chunk(2)[half] for name in WIDTHS]

        for e in range(len(edges)):
            if e == 3:
                continue
            u, k, v = int(edges.dst[e]), int(edges.relation[e]), int(edges.src[e])
            gate = 4 * layer.gate(torch.cat([query[b], relations[b, k]])).softmax(0)
            vector = layer.relation_projection(relations[b, k])
            small = layer.narrowed(states[b, v])
            parts = [gate[place] * small * each for place, each in enumerate(told(v, 0), start=1)]
            agreement = sum(told(u, 1)) * sum(told(v, 1))
            parts.append(gate[-1] * agreement * small * layer.of_relation(vector))
            gathered[u] = gathered[u] + gate[0] * states[b, v] * vector + layer.widened @ torch.cat(parts)
        linear = layer.linear(torch.cat([states[b], gathered], dim=-1))
        expected = states[b] + torch.relu(layer.layer_norm(linear))
        torch.testing.assert_close(found[b], expected, rtol=1e-4, atol=1e-5)


def test_the_read_out_sees_tokens_and_how_they_are_like_the_anchors() -> None:
    options = {"modalities": WIDTHS, "token_width": 6, "hidden": 8, "width": 4}
    read_out = TokenReadOut(TofuOptions.model_validate(options))
    generator = torch.Generator().manual_seed(0)
    for parameter in read_out.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    pooled = {name: torch.randn(2, 5, 6, generator=generator) for name in WIDTHS}
    alike = {name: torch.randn(2, 5, generator=generator) for name in WIDTHS}
    query = torch.randn(2, 4, generator=generator)
    found = read_out(pooled, alike, query)
    for b in range(2):
        for e in range(5):
            expected = torch.zeros(8)
            for name in WIDTHS:
                own, likeness = read_out.norms[name](pooled[name][b, e]), read_out.like_anchor[name]
                expected += read_out.own[name].weight @ own
                expected += alike[name][b, e] * (likeness.weight @ query[b] + likeness.bias)
            torch.testing.assert_close(found[b, e], expected, rtol=1e-4, atol=1e-5)


def test_likeness_is_a_cosine_without_what_all_entities_share() -> None:
    # The fourth entity has no tokens; directions of the sums of the others are below.
    book = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    own = EntityTokens.of(torch.tensor([[0, -1], [1, 1], [1, 0], [-1, -1], [0, 2]]), book)
    directions = [[0.0, 1.0], [1.0, 0.0], [2 / 5**0.5, 1 / 5**0.5], [1 / 5**0.5, 2 / 5**0.5]]
    shared = [sum(each[place] for each in directions) / 4 for place in range(2)]
    rest = [[each[place] - shared[place] for place in range(2)] for each in directions]
    unit = [[part / (x**2 + y**2) ** 0.5 for part in (x, y)] for x, y in rest]
    cosines = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in unit] for u in unit]
    pairs = [cosines[i][j] ** 2 for i in range(4) for j in range(4) if i != j]
    spread = (sum(pairs) / len(pairs)) ** 0.5
    found = own.likeness(torch.arange(5))
    there = [0, 1, 2, 4]
    expected = (torch.tensor(cosines) / spread).fill_diagonal_(0.0)
    torch.testing.assert_close(found[there][:, there], expected)
    assert not found[3].any()
    assert not found[:, 3].any()


def test_likeness_in_a_part_is_that_in_the_whole() -> None:
    own, entities = tokens()["text"], torch.tensor([4, 0, 3])
    part = own.part(entities, strangers=2).likeness(torch.arange(3))
    torch.testing.assert_close(part[:, :3], own.likeness(entities)[:, entities])
    assert not part[:, 3:].any()


@pytest.mark.parametrize("ids", [[[-1], [-1]], [[0], [0]], [[0], [-1]]])
def test_where_there_is_nothing_to_tell_apart_likeness_is_finite(ids: list[list[int]]) -> None:
    found = EntityTokens.of(torch.tensor(ids), torch.tensor([[1.0, 2.0]])).likeness(torch.tensor([0, 1]))
    assert not found.any()


def test_a_modality_that_the_graph_lacks_has_no_share() -> None:
    model = shaken(made())
    assert isinstance(model, Tofu)
    whole = graph(text=tokens()["text"])
    relations = model.relation_states(whole, *ASKED)
    query = relations[torch.arange(2), ASKED[1]]
    layer: MixedConvolution = model.entity_model.layers[0]  # type: ignore[assignment]
    gates = layer.gates(relations, query, ["text"])
    assert gates[..., 2].abs().max() == 0
    torch.testing.assert_close(gates.sum(-1), torch.full((2, 4), 3.0))


def test_what_is_added_to_the_loss_is_how_unequal_the_gates_are() -> None:
    whole = graph(text=tokens()["text"])
    model = made(balance=0.5)
    assert isinstance(model, Tofu)
    decoder, states = model.entity_model, model.relation_states(whole, *ASKED)
    assert isinstance(decoder, TokenDecoder)
    for layer in decoder.layers:  # of the three kinds that are heard, shares of 1/2, 1/4 and 1/4
        layer.gate.bias.data = torch.tensor([0.5, 0.25, 0.125, 0.25]).log()
    found = model.penalty(whole, states, ASKED[1])
    assert found is not None
    assert found.item() == pytest.approx(0.5 * (math.log(3) - 1.5 * math.log(2)))
    assert model.penalty(graph(), states, ASKED[1]) is None
    assert made().penalty(whole, states, ASKED[1]) is None


def test_tokens_count_once_it_has_learned() -> None:
    model = shaken(made())
    told = model(graph(**tokens()), *ASKED)
    assert not torch.allclose(told, model(graph(**tokens(seed=1)), *ASKED), atol=1e-3)
    assert not torch.allclose(told, model(graph(), *ASKED), atol=1e-3)


def test_training_drops_modalities_and_asking_does_not() -> None:
    model = shaken(made(dropout=0.5))
    assert isinstance(model, Tofu)
    whole = graph(**tokens())
    assert set(model._tokens(whole)) == {"text", "image"}
    model.train()
    torch.manual_seed(0)
    kept = [len(model._tokens(whole)) for _ in range(400)]
    assert sum(kept) / 400 == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize("prompts", [0, 2])
def test_all_parameters_learn(prompts: int) -> None:
    model = shaken(made(dropout=0.0, prompts=prompts)).train()
    model(graph(**tokens()), *ASKED).square().mean().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == set()


def test_a_codebook_of_another_width_is_refused() -> None:
    wrong = EntityTokens.of(tokens()["text"].ids, torch.zeros(5, 9))
    with pytest.raises(GraphMismatchError, match=r"text tokens have vectors of width 9, and this model takes width 5"):
        made()(graph(text=wrong), *ASKED)


def test_what_tokens_there_are_is_asked_once_and_only_those_wanted_are_made() -> None:
    asked, made_of = [], []

    def names() -> list[str]:
        asked.append(1)
        return list(tokens())

    def make(name: str) -> EntityTokens:
        made_of.append(name)
        return tokens()[name]

    own = TokensOnDemand(names, make)
    assert ("text" in own, "numeric" in own, len(own), list(own)) == (True, False, 2, ["text", "image"])
    assert made_of == []
    assert own["image"] is own["image"]
    assert own.get("numeric") is None
    assert (len(asked), made_of) == (1, ["image"])


def test_options_are_checked() -> None:
    assert TofuOptions().modalities == {"text": 384}
