"""Kinds of rules: each adds a relation that follows from earlier ones, with what else it needs, to a growing graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from distkg.data.rules.derivations import closure, distinct, is_among, joined, some_of_heads
from distkg.data.rules.growing import FEWEST, MIXED, Growing, Rule, RuleKind
from distkg.data.rules.shapes import BETWEEN_KINDS, ORDERED, Ints, skewed, tree

LONG_PATH = 0.3
"""Probability of a third relation in a composition."""

TYPED = 3
"""Most relations whose heads have a class by one relation."""

NO_PAIRS: Ints = np.empty((0, 2), dtype=np.int64)


def add_symmetry(graph: Growing) -> bool:
    """Add a relation of pairs of one kind, and their reversals, which follow."""
    kind = graph.kind()
    shape = BETWEEN_KINDS[int(graph.rng.integers(len(BETWEEN_KINDS)))]
    pairs = graph.pairs(shape, (kind, kind), graph.budget() // 2 + 1)
    pairs = pairs[(pairs[:, 0] < pairs[:, 1]) | ~is_among(pairs, pairs[:, ::-1], graph.character.entities)]
    if len(pairs) < FEWEST:
        return False
    relation = graph.add("symmetric", (kind, kind), pairs, distinct(pairs[:, ::-1], graph.character.entities))
    graph.rules.append(Rule("symmetry", relation, (relation + graph.character.relations,)))
    return True


def add_inverse(graph: Growing) -> bool:
    """Add the inverse of an earlier relation."""
    body = graph.body()
    return body is not None and _add_copy(graph, "inverse", body % graph.character.relations, inverse=True)


def add_sub_relation(graph: Growing) -> bool:
    """Add a relation that is wider than an earlier one."""
    body = graph.body()
    return body is not None and _add_copy(graph, "sub_relation", body % graph.character.relations, inverse=False)


def _add_copy(graph: Growing, kind: RuleKind, body: int, *, inverse: bool) -> bool:
    directed = body + graph.character.relations * inverse
    pairs = graph.directed(directed)
    most = graph.budget() if graph.rules else len(pairs)  # the first rule never implies too few
    implied = some_of_heads(pairs, graph.character.entities, most, graph.rng)
    name = "inverse" if inverse else "wider"
    return _add_head(graph, kind, name, graph.ends_of(directed), implied, (directed,))


def _add_head(
    graph: Growing, kind: RuleKind, name: str, ends: tuple[int, int], implied: Ints, body: tuple[int, ...]
) -> bool:
    """Add the relation that a rule implies, with some facts of its own; return False if the rule implies too few."""
    if len(implied) < FEWEST:
        return False
    relation = graph.add(name, ends, graph.extra(ends, implied), implied)
    graph.rules.append(Rule(kind, relation, body))
    return True


def add_composition(graph: Growing) -> bool:
    """Add a relation that holds along paths of two or three relations, each in any direction."""
    first = graph.body()
    if first is None:
        return False
    path, pairs, budget = [first], graph.directed(first), graph.budget()
    for _ in range(2 if graph.rng.random() < LONG_PATH else 1):
        following = graph.body(starts=graph.ends_of(path[-1])[1])
        if following is None:
            return False
        pairs = joined(pairs, graph.directed(following), graph.character.entities, budget, graph.rng)
        path.append(following)
    ends = graph.ends_of(path[0])[0], graph.ends_of(path[-1])[1]
    return _add_head(graph, "composition", "path", ends, pairs, tuple(path))


def add_transitivity(graph: Growing) -> bool:
    """Add a tree or chains of one kind, and their transitive closure, which follows."""
    kind, budget = graph.kind(), graph.budget()
    shape = ORDERED[int(graph.rng.integers(len(ORDERED)))]
    pairs = graph.pairs(shape, (kind, kind), budget // 2 + 1)
    implied = closure(pairs, graph.character.entities, budget, graph.rng)
    if len(implied) < FEWEST:
        return False
    relation = graph.add("transitive", (kind, kind), pairs, implied)
    graph.rules.append(Rule("transitivity", relation, (relation,)))
    return True


def add_intersection(graph: Growing) -> bool:
    """Add two relations: one that shares half of its facts with an earlier one, and what holds where both hold."""
    body = graph.body()
    if body is None or graph.left < 2:
        return False
    first = body % graph.character.relations
    pairs, ends, entities = graph.directed(first), graph.ends[first], graph.character.entities
    shared = pairs[graph.rng.random(len(pairs)) < 0.5]
    if len(shared) < FEWEST:
        return False
    own = graph.pairs(skewed, ends, max(FEWEST, graph.budget() - len(shared)))
    second = graph.add("base", ends, distinct(np.concatenate([shared, own]), entities))
    both = pairs[is_among(pairs, graph.train[second], entities)]
    return _add_head(graph, "intersection", "both", ends, both, (first, second))


def add_typing(graph: Growing) -> bool:
    """Add a relation from entities to their classes, known by the relations that they have; also, where there is
    room, the tree of the classes, and the classes above an entity's own."""
    typed = _typed_bodies(graph)
    parts = [_with_class(graph, np.unique(graph.directed(body)[:, 0]), kind) for body, kind in typed.items()]
    entities = graph.character.entities
    implied = distinct(np.concatenate([NO_PAIRS, *parts]), entities)
    implied = some_of_heads(implied, entities, 2 * graph.budget(), graph.rng)
    if len(implied) < FEWEST:
        return False
    own = [_with_class(graph, _some_of_kind(graph, kind), kind) for kind in sorted(set(typed.values()))]
    relation = graph.add(
        "instance_of", (MIXED, graph.character.kinds), distinct(np.concatenate(own), entities), implied
    )
    graph.rules += [Rule("typing", relation, (body,), _class_of(graph, kind)) for body, kind in typed.items()]
    if graph.left >= 2:
        _add_superclasses(graph, relation)
    return True


def _typed_bodies(graph: Growing) -> dict[int, int]:
    """Draw relations in [0, 2R) whose heads are of one kind, and return them with that kind."""
    bodies = sorted({body for body in (graph.body() for _ in range(TYPED)) if body is not None})
    kinds = {body: graph.ends_of(body)[0] for body in bodies}
    return {body: kind for body, kind in kinds.items() if 0 <= kind < min(graph.character.kinds, _classes(graph))}


def _classes(graph: Growing) -> int:
    return graph.character.size(graph.character.kinds)


def _class_of(graph: Growing, kind: int) -> int:
    """Return the class of a kind: the last ones, so that their superclasses come first."""
    return graph.character.entities - 1 - kind


def _with_class(graph: Growing, entities: Ints, kind: int) -> Ints:
    return np.stack([entities, np.full_like(entities, _class_of(graph, kind))], 1)


def _some_of_kind(graph: Growing, kind: int) -> Ints:
    first, last = graph.character.first[kind], graph.character.first[kind + 1]
    return np.arange(first, last)[graph.rng.random(last - first) < 0.2]


def _add_superclasses(graph: Growing, instance_of: int) -> None:
    """Add the tree of classes, and what is an instance of a class above its own."""
    classes = graph.character.kinds
    above = graph.add("subclass_of", (classes, classes), graph.pairs(tree, (classes, classes), _classes(graph)))
    pairs = joined(
        graph.train[instance_of], graph.train[above], graph.character.entities, 2 * graph.budget(), graph.rng
    )
    if not _add_head(graph, "composition", "path", (MIXED, classes), pairs, (instance_of, above)):
        graph.add_base()


ADD: dict[RuleKind, Callable[[Growing], bool]] = {
    "symmetry": add_symmetry,
    "inverse": add_inverse,
    "sub_relation": add_sub_relation,
    "composition": add_composition,
    "transitivity": add_transitivity,
    "intersection": add_intersection,
    "typing": add_typing,
}
"""Kind of a rule → function that adds one to a growing graph; it returns False if it finds too few pairs, and has
then added nothing that a rule implies."""
