"""Prompts: tokens by hand, the encoder against plain loops, what hidden facts may not tell, and learning alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distkg.foundation.layers.prompts import PromptEncoder, Prompts
from distkg.foundation.models import KnowledgeGraph

Fact = tuple[int, int, int]
# 5 → 0 → 1 → 2 → 3 → 4 by relations 2, 0, 1, 1, 1, and a loop at 6.
CHAIN = [(5, 2, 0), (0, 0, 1), (1, 1, 2), (2, 1, 3), (3, 1, 4), (6, 0, 6)]
ENTITIES, RELATIONS = 7, 3
EVERYTHING = {"examples": 100, "fanout": 100}


def graph(facts: list[Fact], relations: int = RELATIONS) -> KnowledgeGraph:
    return KnowledgeGraph(torch.tensor(facts), ENTITIES, relations)


def encoder(width: int = 4, seed: int = 0, **options: int) -> PromptEncoder:
    torch.manual_seed(seed)
    made = PromptEncoder(width, **options)
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, nn.LayerNorm):  # as after some training
                layer.weight.normal_(1, 0.3)
                layer.bias.normal_(0, 0.3)
    return made.eval()


def some_graph(seed: int = 0, count: int = 14) -> list[Fact]:
    rows = np.random.default_rng(seed).integers(0, [ENTITIES, RELATIONS, ENTITIES], (count, 3))
    return [(int(h), int(r), int(t)) for h, r, t in np.unique(rows, axis=0)]


def hiding(whole: KnowledgeGraph, facts: list[Fact]) -> Tensor:
    return whole.mask_without(*torch.tensor(facts, dtype=torch.int64).reshape(-1, 3).T)


def of(prompts: Prompts | None) -> Prompts:
    assert prompts is not None
    return prompts


def test_the_prompt_of_a_relation_written_by_hand() -> None:
    """Two examples, 0 → 1 and the loop at 6, whose facts are in it in both directions."""
    whole = graph(CHAIN)
    found = of(encoder(hops=2, **EVERYTHING).prompts(whole, torch.tensor([0])))
    position, kind = found.position.tolist(), found.kind.tolist()
    facts = {
        (position[head], kind[relation], position[tail], int(found.example[relation]))
        for head, relation, tail in torch.stack([found.head, found.relation, found.tail], 1).tolist()
    }
    chain, loop = sorted({fact[3] for fact in facts}, key=lambda example: -sum(fact[3] == example for fact in facts))
    # Positions are 3 · steps from the head + steps from the tail: of 0, 1, 5, 2 and 3 they are 1, 3, 5, 7 and 8.
    forward = [(1, 0, 3), (3, 1, 7), (7, 1, 8), (5, 2, 1)]
    expected = {(*fact, chain) for fact in forward} | {(tail, kind + 3, head, chain) for head, kind, tail in forward}
    assert facts == expected | {(0, 0, 0, loop), (0, 3, 0, loop)}
    assert [kind[place] for place in found.asked] == [0, 0]
    assert found.example[found.asked].tolist() == [0, 1]
    assert found.query.tolist() == [0, 0]


def test_an_inverse_is_read_from_the_other_end() -> None:
    whole, made = graph(CHAIN), encoder(hops=2, **EVERYTHING)
    direct, inverse = (of(made.prompts(whole, torch.tensor([relation]))) for relation in (2, 5))
    # 5 → 0 by relation 2; then 1 and 2 follow.
    assert sorted(direct.position.tolist()) == [0 * 3 + 1, 1 * 3 + 0, 2 * 3 + 1, 2 * 3 + 2]
    assert sorted(inverse.position.tolist()) == [0 * 3 + 1, 1 * 3 + 0, 1 * 3 + 2, 2 * 3 + 2]
    assert [int(side.kind[side.asked[0]]) for side in (direct, inverse)] == [2, 5]
    for name in ("head", "relation", "tail", "kind", "example", "query"):
        assert torch.equal(getattr(direct, name), getattr(inverse, name))


def plainly(made: PromptEncoder, facts: list[Fact], query: int) -> Tensor:
    """States of all relations float32 [2R, d], one example after the other, one fact after the other."""
    inverse, direct = query >= RELATIONS, query % RELATIONS
    examples = [fact for fact in facts if fact[1] == direct]
    total = torch.zeros(2 * RELATIONS, made.read_out.out_features)
    for head, _, tail in examples:
        near, steps = around(facts, (tail, head) if inverse else (head, tail), made._hops)
        entity = {e: made.position.weight[a * (made._hops + 1) + b] for e, (a, b) in steps.items()}
        both = near + [(t, r + RELATIONS, h) for h, r, t in near]
        relation = {r: made.asked if r == query else torch.zeros_like(made.asked) for _, r, _ in both}
        layers: dict[int, list[Tensor]] = {r: [] for r in relation}
        for layer in made.layers:
            own, q = layer.entity, relation[query]
            into: dict[int, list[Tensor]] = {e: [] for e in entity}
            for h, r, t in both:
                share = torch.sigmoid(own.attention(torch.cat([relation[r], q])))
                into[t].append(share * F.rrelu(own.message(torch.cat([entity[h], relation[r], q]))))
            entity = {e: own.norm(state + torch.stack(into[e]).amax(0)) for e, state in entity.items()}
            own, of_relation = layer.relation, {r: [] for r in relation}
            for h, r, t in both:
                share = torch.sigmoid(own.attention(torch.cat([relation[r], q])))
                of_relation[r].append(share * F.rrelu(own.message(torch.cat([entity[h], entity[t], q]))))
            relation = {r: own.norm(state + torch.stack(of_relation[r]).amax(0)) for r, state in relation.items()}
            for r, state in relation.items():
                layers[r].append(state)
        for r, states in layers.items():
            total[r] += made.read_out(torch.cat(states)) / len(examples)
    return total


def around(facts: list[Fact], ends: tuple[int, int], hops: int) -> tuple[list[Fact], dict[int, tuple[int, int]]]:
    """Facts that touch what is less than ``hops`` steps from either end, and steps from the ends along these."""

    def reached(start: int, facts: list[Fact]) -> dict[int, int]:
        steps = {start: 0}
        for step in range(1, hops + 1):
            for h, _, t in facts:
                for here, there in ((h, t), (t, h)):
                    if steps.get(here, hops) == step - 1:
                        steps.setdefault(there, step)
        return steps

    first, second = (reached(end, facts) for end in ends)
    inner = {e for steps in (first, second) for e, step in steps.items() if step < hops}
    near = [fact for fact in facts if fact[0] in inner or fact[2] in inner]
    first, second = (reached(end, near) for end in ends)
    return near, {e: (first.get(e, hops), second.get(e, hops)) for fact in near for e in (fact[0], fact[2])}


@pytest.mark.parametrize("query", [1, 2, 4])
@pytest.mark.parametrize("hops", [1, 3])
def test_states_are_those_of_plain_loops(query: int, hops: int) -> None:
    facts, made = some_graph(seed=3, count=9), encoder(hops=hops, **EVERYTHING)
    found = made(graph(facts), torch.tensor([query]))[0]
    torch.testing.assert_close(found, plainly(made, facts, query), rtol=1e-4, atol=1e-5)


def test_a_batch_is_its_queries_one_by_one() -> None:
    whole, made = graph(some_graph()), encoder(examples=2, fanout=2)
    relation = torch.tensor([4, 0, 2, 0, 5])
    together = made(whole, relation)
    assert together.shape == (5, 6, 4)
    alone = torch.cat([made(whole, one[None]) for one in relation])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_relations_that_are_near_no_example_have_zeros() -> None:
    whole = graph([*CHAIN, (0, 3, 1)], relations=5)
    found = encoder(hops=1)(whole, torch.tensor([1, 4]))
    near = {int(kind) for kind in of(encoder(hops=1).prompts(whole, torch.tensor([1]))).kind}
    assert near == {0, 1, 3, 5, 6, 8}
    for relation in range(10):
        assert bool(found[0, relation].any()) == (relation in near)
    assert not found[1].any(), "relation 4 has no facts"


facts_of_a_graph = st.sets(
    st.tuples(st.integers(0, ENTITIES - 1), st.integers(0, RELATIONS - 1), st.integers(0, ENTITIES - 1)),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60)
@given(facts_of_a_graph, st.integers(1, 3), st.integers(1, 3), st.sampled_from([0, 5]), st.data())
def test_hidden_facts_tell_nothing(facts: set[Fact], examples: int, fanout: int, draw: int, data) -> None:  # type: ignore[no-untyped-def]
    """The query's own facts, above all: no distance to its answer, and no example that is it."""
    asked = data.draw(st.lists(st.sampled_from(sorted(facts)), min_size=1, max_size=4))
    left = sorted(facts - set(asked))
    whole = graph(sorted(facts))
    rest = KnowledgeGraph(torch.tensor(left).reshape(-1, 3), ENTITIES, RELATIONS)
    made, weight = encoder(examples=examples, fanout=fanout), hiding(whole, asked)
    relation = torch.tensor([fact[1] for fact in asked] + [fact[1] + RELATIONS for fact in asked])
    made(whole, relation)  # keeps prompts in which they are seen
    found, expected = made.prompts(whole, relation, weight, draw), made.prompts(rest, relation, None, draw)
    if expected is None:
        assert found is None
        return
    for name, value in vars(expected).items():
        assert torch.equal(getattr(of(found), name), value), name
    assert torch.equal(made(whole, relation, weight), made(rest, relation))
    sampler = whole.examples(3, fanout)
    mask = sampler.hidden(*np.array(asked).T)
    for own in sampler.surroundings([fact[1] for fact in asked], examples, mask, draw):
        for around_one in own:
            seen = (side[around_one.facts].tolist() for side in (sampler.head, sampler.relation, sampler.tail))
            assert not set(zip(*seen, strict=True)) & set(asked)


def test_a_fact_is_hidden_in_both_directions_by_either_and_in_all_layers_by_any() -> None:
    whole, made, relation = graph(CHAIN), encoder(), torch.tensor([1])
    weight = hiding(whole, [(2, 1, 3)])
    expected = made(whole, relation, weight)
    assert not torch.allclose(expected, made(whole, relation), atol=1e-3)
    for place in (weight == 0).nonzero()[:, 0]:
        one = torch.ones(len(whole.facts))
        one[place] = 0
        assert torch.equal(made(whole, relation, one), expected)
        layers = torch.ones(4, len(whole.facts))
        layers[2, place] = 0
        assert torch.equal(made(whole, relation, layers), expected)


def test_new_numbers_for_entities_and_relations_change_nothing_else() -> None:
    facts, made = some_graph(seed=1), encoder(**EVERYTHING)
    rng = np.random.default_rng(2)
    entity, relation = rng.permutation(ENTITIES), rng.permutation(RELATIONS)
    renamed = [(int(entity[h]), int(relation[r]), int(entity[t])) for h, r, t in facts]
    queries = torch.arange(2 * RELATIONS)
    moved = torch.cat([torch.from_numpy(relation), torch.from_numpy(relation) + RELATIONS])
    found, expected = made(graph(renamed), moved[queries]), made(graph(facts), queries)
    assert expected.abs().sum() > 1
    torch.testing.assert_close(found[:, moved], expected, rtol=1e-5, atol=1e-5)


def test_examples_are_drawn_anew_while_it_learns_and_never_else() -> None:
    whole, made, relation = graph(some_graph(count=40)), encoder(examples=1, fanout=2), torch.tensor([0, 4])
    assert torch.equal(made(whole, relation), made(whole, relation))
    made.train()
    torch.manual_seed(1)
    first, second = made(whole, relation), made(whole, relation)
    torch.manual_seed(1)
    assert torch.equal(made(whole, relation), first)
    assert not torch.equal(first, second)


def test_all_parameters_learn() -> None:
    made = encoder().train()
    made(graph(some_graph()), torch.tensor([0, 3])).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in made.parameters())


def two_ways(seed: int, entities: int = 30, relations: int = 4, pairs: int = 20) -> tuple[KnowledgeGraph, Tensor]:
    """Relations of which each holds both ways for all its pairs, or never; and which do, float32 [R]."""
    rng = np.random.default_rng(seed)
    both = rng.permutation(np.arange(relations) % 2)
    facts = []
    for relation in range(relations):
        for _ in range(pairs):
            head, tail = rng.choice(entities, 2, replace=False)
            facts += [(head, relation, tail)] + [(tail, relation, head)] * int(both[relation])
    return KnowledgeGraph(torch.tensor(np.array(facts)), entities, relations), torch.from_numpy(both).float()


def test_alone_it_learns_to_tell_symmetric_relations_of_graphs_that_it_has_never_seen() -> None:
    torch.manual_seed(0)
    made, last = PromptEncoder(16, 2, examples=3, hops=1, fanout=30), nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*made.parameters(), *last.parameters()], lr=0.01)

    def logits(whole: KnowledgeGraph) -> Tensor:
        relation = torch.arange(whole.relations)
        logit: Tensor = last(made(whole, relation)[relation, relation])[:, 0]
        return logit

    def share_right() -> float:
        made.eval()
        others = [two_ways(seed, entities=40, relations=6) for seed in range(1000, 1020)]
        return float(torch.cat([(logits(whole) > 0) == (both > 0) for whole, both in others]).float().mean())

    assert share_right() < 0.8, "knowing nothing, it is right about half the time"
    made.train()
    for step in range(60):
        whole, both = two_ways(step)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits(whole), both).backward()
        optimizer.step()
    assert share_right() > 0.95
