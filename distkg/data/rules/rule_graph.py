"""Graph with planted rules as a function of its seed: training facts, and facts that follow from them.

A seed draws the traits of a graph (sizes, density, exponents of degrees, kinds of entities, how often each kind of rule
occurs, noise, exceptions), then relations of many shapes, then relations that follow from these by rules. No two seeds
give the same graph, and a graph of 500 entities takes milliseconds, so that a training can make thousands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distkg.data.rules.growing import RULE_KINDS, Character, GraphSizes, Growing, Rule
from distkg.data.rules.kinds import ADD
from distkg.data.rules.shapes import Ints

BASE_SHARE = 0.35
"""Share of the relations that follow from no rule, about."""

SIZES = GraphSizes()
"""Sizes of graphs where none are named."""


@dataclass(frozen=True)
class RuleGraph:
    """Graph with known rules.

    Attributes:
        train: facts int32 [n, 3], head, relation, tail, in random order; no head is its tail.
        held_out: facts int32 [m, 3] that are not in ``train``; each follows from ``train`` by one rule.
        entities, relations: numbers of entities, each of which has a training fact, and of relations.
        rules: the rules, in the order of their heads.
        names: of the relations.
        kind: kind of each entity, int32 [entities], sorted.
        classes: the kind of classes, which is the highest; there may be no entity of it.
        ends: kinds of the heads and tails of each relation, int32 [relations, 2]; -1 for several kinds.
    """

    train: NDArray[np.int32]
    held_out: NDArray[np.int32]
    entities: int
    relations: int
    rules: tuple[Rule, ...]
    names: tuple[str, ...]
    kind: NDArray[np.int32]
    classes: int
    ends: NDArray[np.int32]


def rule_graph(seed: int, sizes: GraphSizes = SIZES) -> RuleGraph:
    """Return the graph of a seed: the same at every call with the same sizes.

    Args:
        seed: not negative.
        sizes: ranges from which the seed draws the graph's sizes.
    """
    rng = np.random.default_rng(seed)
    graph = Growing(rng, Character.drawn(rng, sizes))
    _grow(graph)
    train, held_out = _triples(graph.train), _triples(graph.held_out)
    train = np.concatenate([train, _noise(graph, train, held_out)])
    return _with_entities_in_use(graph, rng.permutation(train), held_out)


def _grow(graph: Growing) -> None:
    """Add relations: first those that follow from no rule, then as many as are left by rules."""
    character = graph.character
    for _ in range(max(1, round(BASE_SHARE * character.relations))):
        graph.add_base()
    while graph.left:
        drawn = RULE_KINDS[int(graph.rng.choice(len(RULE_KINDS), p=character.rules))]
        kind = drawn if graph.rules or graph.left > 1 else "inverse"  # which every relation has
        if not ADD[kind](graph) and graph.left:
            graph.add_base()


def _triples(pairs: list[Ints]) -> Ints:
    relation = np.repeat(np.arange(len(pairs)), [len(each) for each in pairs])
    head, tail = np.concatenate(pairs).T
    return np.stack([head, relation, tail], 1)


def _noise(graph: Growing, train: Ints, held_out: Ints) -> Ints:
    """Draw new facts at random: the head of a fact of some relation with the tail of another one."""
    character, rng = graph.character, graph.rng
    head, relation, _ = train[rng.integers(len(train), size=int(character.noise * len(train)))].T
    counts = np.bincount(train[:, 1], minlength=character.relations)
    places = (np.cumsum(counts) - counts)[relation] + (rng.random(len(relation)) * counts[relation]).astype(np.int64)
    drawn = np.stack([head, relation, train[places, 2]], 1)
    return _new_facts(drawn, np.concatenate([train, held_out]), character)


def _new_facts(drawn: Ints, known: Ints, character: Character) -> Ints:
    """Return the distinct facts [k, 3] of those drawn that are not known and have two entities."""
    entities, relations = character.entities, character.relations
    keys, others = ((part[:, 0] * relations + part[:, 1]) * entities + part[:, 2] for part in (drawn, known))
    _, first = np.unique(keys, return_index=True)
    drawn, keys = drawn[first], keys[first]
    return drawn[~np.isin(keys, others) & (drawn[:, 0] != drawn[:, 2])]


def _with_entities_in_use(graph: Growing, train: Ints, held_out: Ints) -> RuleGraph:
    """Number the entities anew that have a training fact."""
    character = graph.character
    used = np.unique(train[:, ::2])
    place = np.full(character.entities, -1)
    place[used] = np.arange(len(used))
    for part in (train, held_out):
        part[:, ::2] = place[part[:, ::2]]
    kind = np.searchsorted(character.first, used, side="right") - 1
    rules = tuple(
        rule if rule.constant < 0 else Rule(rule.kind, rule.head, rule.body, int(place[rule.constant]))
        for rule in graph.rules
    )
    return RuleGraph(
        train=train.astype(np.int32),
        held_out=held_out.astype(np.int32),
        entities=len(used),
        relations=character.relations,
        rules=rules,
        names=tuple(graph.names),
        kind=kind.astype(np.int32),
        classes=character.kinds,
        ends=np.array(graph.ends, dtype=np.int32),
    )
