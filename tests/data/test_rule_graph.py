"""Graphs with planted rules: what is held out follows from what is given, by the rules that the graph names."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.data.errors import IngestError
from distkg.data.rules.derivations import closure, distinct, joined, some_of_heads
from distkg.data.rules.growing import RULE_KINDS, GraphSizes, Rule
from distkg.data.rules.rule_graph import RuleGraph, rule_graph
from distkg.data.rules.rule_store import generate_rules
from distkg.data.rules.shapes import BETWEEN_KINDS, ORDERED, Ends, Shape, blocks, chains, tree
from distkg.data.store.graph_store import Store
from tests.test_cli import run_cli

Pairs = set[tuple[int, int]]
SMALL = GraphSizes((12, 60), (2, 12), (1.0, 6.0))


def pairs_of(graph: RuleGraph, relation: int) -> Pairs:
    """Training pairs of a relation in [0, 2R), heads first."""
    own = graph.train[graph.train[:, 1] == relation % graph.relations][:, ::2].tolist()
    return {(h, t) if relation < graph.relations else (t, h) for h, t in own}


def composed(left: Pairs, right: Pairs) -> Pairs:
    return {(x, z) for (x, y), (v, z) in itertools.product(left, right) if y == v}


def implied(graph: RuleGraph, rule: Rule) -> Pairs:
    """Pairs of a rule's head by the definition of its kind, with loops over facts."""
    bodies = [pairs_of(graph, relation) for relation in rule.body]
    if rule.kind == "intersection":
        found = bodies[0] & bodies[1]
    elif rule.kind == "typing":
        found = {(x, rule.constant) for x, _ in bodies[0]}
    elif rule.kind == "transitivity":
        found = composed(bodies[0], bodies[0])
        while not (more := composed(found, bodies[0])) <= found:
            found |= more
    else:
        found = bodies[0]
        for body in bodies[1:]:
            found = composed(found, body)
    return {(x, z) for x, z in found if x != z}


@pytest.mark.parametrize("seed", range(25))
def test_what_is_held_out_follows_by_a_rule_and_is_not_given(seed: int) -> None:
    graph = rule_graph(seed, SMALL)
    by_head: dict[int, Pairs] = {}
    for rule in graph.rules:
        by_head[rule.head] = by_head.get(rule.head, set()) | implied(graph, rule)
    for head, relation, tail in graph.held_out.tolist():
        assert (head, tail) in by_head[relation]
        assert (head, tail) not in pairs_of(graph, relation)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(12, 80), st.integers(2, 16), st.floats(0.5, 8))
def test_every_seed_gives_a_whole_graph(seed: int, entities: int, relations: int, density: float) -> None:
    sizes = GraphSizes((entities, entities), (relations, relations), (density, density))
    graph, again = rule_graph(seed, sizes), rule_graph(seed, sizes)
    everything = np.concatenate([graph.train, graph.held_out])
    assert len(np.unique(everything, axis=0)) == len(everything)
    assert (everything[:, 0] != everything[:, 2]).all()
    assert len(graph.held_out) > 0
    assert len(graph.rules) > 0
    assert np.unique(graph.train[:, 1]).tolist() == list(range(relations)) == list(range(graph.relations))
    assert np.unique(graph.train[:, ::2]).tolist() == list(range(graph.entities))
    assert np.isin(graph.held_out[:, ::2], np.arange(graph.entities)).all()
    assert graph.entities <= entities
    assert np.array_equal(graph.train, again.train)
    assert np.array_equal(graph.held_out, again.held_out)
    assert graph.rules == again.rules


def test_heads_and_tails_are_of_the_declared_kinds() -> None:
    for seed in range(20):
        graph = rule_graph(seed, SMALL)
        everything = np.concatenate([graph.train, graph.held_out])
        for side, column in enumerate((0, 2)):
            expected = graph.ends[everything[:, 1], side]
            found = graph.kind[everything[:, column]]
            assert ((found == expected) | (expected < 0)).all()


def test_seeds_give_different_graphs_with_every_kind_of_rule() -> None:
    graphs = [rule_graph(seed) for seed in range(200)]
    assert len({graph.train.tobytes() for graph in graphs}) == 200
    kinds = Counter(rule.kind for graph in graphs for rule in graph.rules)
    assert set(kinds) == set(RULE_KINDS)
    assert min(kinds.values()) > 50
    entities = np.array([graph.entities for graph in graphs])
    density = np.array([len(graph.train) / graph.entities for graph in graphs])
    assert entities.max() > 8 * entities.min()
    assert np.percentile(density, 95) > 3 * np.percentile(density, 5)
    most = np.array([np.bincount(graph.train[:, ::2].ravel()).max() / len(graph.train) for graph in graphs])
    assert most.max() > 5 * most.min()


def calls_of(monkeypatch: pytest.MonkeyPatch, entities: int) -> int:
    """Number of sorts and searches that a graph takes."""
    calls: list[str] = []
    with monkeypatch.context() as patch:
        for name in ("unique", "searchsorted", "argsort", "isin"):
            function = getattr(np, name)
            patch.setattr(np, name, lambda *a, f=function, n=name, **k: calls.append(n) or f(*a, **k))
        rule_graph(3, GraphSizes((entities, entities), (12, 12), (5.0, 5.0)))
    return len(calls)


def test_a_graph_takes_few_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """About as many sorts for ten times the facts: no loop over facts."""
    counts = [calls_of(monkeypatch, entities) for entities in (100, 1000)]
    assert counts[1] < 1.5 * counts[0]
    assert counts[1] < 600


PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30).map(
    lambda pairs: distinct(np.array(pairs, dtype=np.int64).reshape(-1, 2), 10)
)


def as_set(pairs: np.ndarray) -> Pairs:
    return {(int(x), int(z)) for x, z in pairs}


@given(PAIRS, PAIRS, st.integers(0, 99))
def test_a_join_is_that_of_two_loops(left: np.ndarray, right: np.ndarray, seed: int) -> None:
    whole = {(x, z) for x, z in composed(as_set(left), as_set(right)) if x != z}
    rng = np.random.default_rng(seed)
    assert as_set(joined(left, right, 10, 10_000, rng)) == whole
    part = as_set(joined(left, right, 10, 3, rng))
    heads = {x for x, _ in part}
    assert part == {(x, z) for x, z in whole if x in heads}, "some heads, and of these all"
    some = as_set(some_of_heads(left, 10, 3, rng))
    assert some == {(x, z) for x, z in as_set(left) if x in {head for head, _ in some}}
    assert bool(some) == bool(len(left))


def test_a_closure_has_all_further_ways() -> None:
    pairs = np.array([[0, 1], [1, 2], [2, 3], [1, 4]])
    assert as_set(closure(pairs, 5, 100, np.random.default_rng(0))) == {(0, 2), (0, 3), (0, 4), (1, 3)}
    assert len(closure(np.array([[0, 1], [2, 3]]), 4, 100, np.random.default_rng(0))) == 0


@pytest.mark.parametrize("shape", [*BETWEEN_KINDS, *ORDERED])
def test_a_shape_stays_between_its_ends(shape: Shape) -> None:
    for seed in range(20):
        tails = 30 if shape in ORDERED else 7
        pairs = shape(np.random.default_rng(seed), Ends(30, tails, 0.5), 40)
        assert pairs.dtype == np.int64
        assert len(pairs) > 0
        assert pairs.min() >= 0
        assert (pairs < [30, tails]).all()


def test_ordered_shapes_have_no_cycle_and_blocks_do_not_mix() -> None:
    rng = np.random.default_rng(0)
    parents = tree(rng, Ends(50, 50, 0.0), 49)
    assert (parents[:, 1] < parents[:, 0]).all()
    assert sorted(parents[:, 0].tolist()) == list(range(1, 50))
    assert (np.diff(chains(rng, Ends(50, 50, 0.0), 30), axis=1) == 1).all()
    pairs = blocks(rng, Ends(100, 50, 0.0), 500)  # 3 communities
    assert np.mean([h * 3 // 100 == t * 3 // 50 for h, t in pairs.tolist()]) > 0.95


RULES = [
    (Rule("symmetry", 0, (2,)), "a(x, z) ⇐ a(z, x)"),
    (Rule("inverse", 1, (2,)), "b(x, z) ⇐ a(z, x)"),
    (Rule("sub_relation", 1, (0,)), "b(x, z) ⇐ a(x, z)"),
    (Rule("composition", 1, (0, 2, 1)), "b(x, z) ⇐ a(x, y1), a(y2, y1), b(y2, z)"),
    (Rule("transitivity", 0, (0,)), "a(x, z) ⇐ a(x, y1), a(y1, z)"),
    (Rule("intersection", 1, (0, 1)), "b(x, z) ⇐ a(x, z), b(x, z)"),
    (Rule("typing", 1, (2,), 7), "b(x, c) ⇐ a(y, x)"),
]


@pytest.mark.parametrize(("rule", "words"), RULES)
def test_a_rule_is_told_in_words(rule: Rule, words: str) -> None:
    assert rule.in_words(["a", "b"]) == words


def test_a_store_has_the_graph_its_classes_and_half_of_what_is_held_out_each(tmp_path: Path) -> None:
    report, rules = generate_rules(str(tmp_path / "store"), seed=5, entities=200, relations=9, triples=900)
    graph, store = rule_graph(5, GraphSizes((200, 200), (9, 9), (4.5, 4.5))), Store.open(str(tmp_path / "store"))
    assert report.triples == {
        "train": len(graph.train),
        "valid": len(graph.held_out) // 2,
        "test": len(graph.held_out) - len(graph.held_out) // 2,
    }
    assert (store.num_entities, store.num_relations) == (graph.entities, 9)
    assert store.relation_labels().to_pylist() == list(graph.names)
    assert len(rules) == len(graph.rules)
    classes = store.classes()
    assert classes is not None
    assert classes.has_entities
    assert classes.has_relations
    labels = store.entity_labels().to_pylist()
    for entity, of_class in zip(labels, classes.first.tolist(), strict=True):
        assert entity.rsplit("_", 1)[0] == classes.labels[of_class].as_py()
    everything = np.concatenate(list(store.iter_triples(["train", "valid", "test"])))
    assert len(everything) == len(graph.train) + len(graph.held_out)
    store.verify()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"entities": 11}, "--entities 11: a graph with --rules has from 12 to 1,048,576 entities"),
        ({"relations": 1}, "--relations 1: .* from 2 to 4,096 relations"),
        ({"entities": 99, "triples": 10**9}, "--triples 1,000,000,000"),
        ({"triples": 100}, "--triples with --rules needs --entities"),
    ],
)
def test_sizes_out_of_bounds_are_refused(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(IngestError, match=message):
        generate_rules(str(tmp_path / "store"), seed=1, **sizes)
    assert not (tmp_path / "store").exists()


def test_on_the_command_line(tmp_path: Path) -> None:
    made = run_cli("generate", "--store", tmp_path / "a", "--rules", "--seed", "7")
    assert made.exit_code == 0
    graph, store = rule_graph(7), Store.open(str(tmp_path / "a"))
    assert store.manifest.triples["train"] == len(graph.train)
    assert all(rule.in_words(graph.names) in made.stdout for rule in graph.rules)
    missing = run_cli("generate", "--store", tmp_path / "b", "--relations", "3", "--seed", "7")
    assert missing.exit_code == 2
    assert "--entities, --triples" in missing.output
