"""Graph of rules while it is made: relations are added one by one, and each splits what a rule implies at once.

A rule reads the training facts of earlier relations only. So each fact that is held out follows from training facts by
one rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from distkg.data.rules.derivations import distinct, is_among
from distkg.data.rules.shapes import BETWEEN_KINDS, ORDERED, Ends, Ints, Shape, skewed

RuleKind = Literal["symmetry", "inverse", "sub_relation", "composition", "transitivity", "intersection", "typing"]
RULE_KINDS: tuple[RuleKind, ...] = (
    "symmetry",
    "inverse",
    "sub_relation",
    "composition",
    "transitivity",
    "intersection",
    "typing",
)
MIXED = -1
"""Kind of the heads or tails of a relation that are of several kinds."""

FEWEST = 4
"""Entities that a kind has at least, and pairs that a relation needs to be the body of a rule, or its head."""


class GraphSizes(NamedTuple):
    """Ranges from which a graph draws its sizes, both ends included; drawn evenly on a logarithmic scale.

    Attributes:
        entities: number of entities, 12 at least; some may remain without a fact, and are left out.
        relations: number of relations, which is exact; 2 at least.
        density: training and held-out facts for each entity, about.
    """

    entities: tuple[int, int] = (50, 500)
    relations: tuple[int, int] = (4, 30)
    density: tuple[float, float] = (2.0, 8.0)


@dataclass(frozen=True)
class Rule:
    """Logical rule; variables x and z are different entities.

    ============  =======================================================
    kind          meaning
    ============  =======================================================
    symmetry      head(z, x) ⇒ head(x, z)
    inverse       body₀(z, x) ⇒ head(x, z)
    sub_relation  body₀(x, z) ⇒ head(x, z)
    composition   body₀(x, y) ∧ … ∧ bodyₙ(y', z) ⇒ head(x, z)
    transitivity  head(x, y) ∧ head(y, z) ⇒ head(x, z)
    intersection  body₀(x, z) ∧ body₁(x, z) ⇒ head(x, z)
    typing        body₀(x, y) ⇒ head(x, constant)
    ============  =======================================================

    Attributes:
        kind: as above.
        head: relation, in [0, R).
        body: relations in [0, 2R); r + R is r read from its tail.
        constant: entity of a ``typing`` rule; -1 for others.
    """

    kind: RuleKind
    head: int
    body: tuple[int, ...]
    constant: int = -1

    def in_words(self, names: Sequence[str]) -> str:
        """Return the rule as text, such as ``path_3(x, z) ⇐ base_0(x, y1), base_1(y1, z)``.

        Args:
            names: of the relations.
        """
        last = "c" if self.kind == "typing" else "z"
        bodies = self.body * 2 if self.kind == "transitivity" else self.body
        if self.kind in ("intersection", "typing"):
            between = [("x", "z" if self.kind == "intersection" else "y")] * len(bodies)
        else:
            stops = ["x", *(f"y{n}" for n in range(1, len(bodies))), "z"]
            between = list(itertools.pairwise(stops))
        texts = [_atom(names, body, *ends) for body, ends in zip(bodies, between, strict=True)]
        return f"{names[self.head]}(x, {last}) ⇐ {', '.join(texts)}"


def _atom(names: Sequence[str], relation: int, head: str, tail: str) -> str:
    inverse = relation >= len(names)
    return f"{names[relation % len(names)]}({tail}, {head})" if inverse else f"{names[relation]}({head}, {tail})"


@dataclass(frozen=True)
class Character:
    """Traits of one graph, drawn once.

    Attributes:
        relations: number of relations.
        facts: number of facts, about.
        first: entities of kind k are ``first[k]`` … ``first[k + 1] - 1``; the last kind are classes: int64 [K + 2].
        skew: exponent of the power laws of degrees, in [0, 1).
        noise: share of training facts at random.
        exceptions: share of the implied facts that do not hold.
        held_out: share of the implied facts that are held out.
        rules: probability of each of ``RULE_KINDS``.
    """

    relations: int
    facts: int
    first: Ints
    skew: float
    noise: float
    exceptions: float
    held_out: float
    rules: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, sizes: GraphSizes) -> Character:
        entities = max(12, round(_between(rng, sizes.entities)))
        kinds = int(rng.integers(1, max(2, min(8, entities // 12))))
        classes = min(2 * kinds, entities // 4)
        spare = entities - classes - FEWEST * kinds
        parts = FEWEST + (rng.dirichlet(np.full(kinds, 2.0)) * spare).astype(np.int64)
        first = np.concatenate([[0], np.cumsum(parts), [parts.sum() + classes]])
        return cls(
            relations=max(2, round(_between(rng, sizes.relations))),
            facts=round(entities * _between(rng, sizes.density)),
            first=first,
            skew=rng.uniform(0.0, 0.95),
            noise=rng.uniform(0.0, 0.1) * int(rng.integers(2)),
            exceptions=rng.uniform(0.0, 0.3) * int(rng.integers(2)),
            held_out=rng.uniform(0.1, 0.3),
            rules=rng.dirichlet(np.full(len(RULE_KINDS), 0.8)),
        )

    @property
    def entities(self) -> int:
        return int(self.first[-1])

    @property
    def kinds(self) -> int:
        """Number of kinds, without the classes."""
        return len(self.first) - 2

    def range_of(self, kind: int) -> tuple[int, int]:
        """Return the first entity of a kind, and the one after the last; ``MIXED`` stands for all kinds but classes."""
        low, high = (0, self.kinds) if kind == MIXED else (kind, kind + 1)
        return int(self.first[low]), int(self.first[high])

    def size(self, kind: int) -> int:
        first, last = self.range_of(kind)
        return last - first


def _between(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    low, high = np.log(bounds)
    return float(np.exp(rng.uniform(low, high)))


@dataclass
class Growing:
    """Graph to which relations are added one by one.

    Attributes:
        names: of the relations.
        train, held_out: pairs of each relation, int64 [n, 2].
        ends: kinds of the heads and of the tails of each relation.
        rules: all rules.
    """

    rng: np.random.Generator
    character: Character
    names: list[str] = field(default_factory=list)
    train: list[Ints] = field(default_factory=list)
    held_out: list[Ints] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Number of relations that are still to be added."""
        return self.character.relations - len(self.train)

    def budget(self) -> int:
        """Draw the number of pairs of the next relation: about an equal share of the facts that are still to come."""
        facts = sum(map(len, self.train)) + sum(map(len, self.held_out))
        share = max(
            (self.character.facts - facts) / max(self.left, 1), self.character.facts / self.character.relations / 2
        )
        return max(FEWEST, int(share * self.rng.lognormal(-0.18, 0.6)))

    def kind(self) -> int:
        """Draw a kind, a large one more often."""
        return int(np.searchsorted(self.character.first[1:-2], self.rng.integers(self.character.first[-2]), "right"))

    def pairs(self, shape: Shape, ends: tuple[int, int], count: int) -> Ints:
        """Draw pairs of a shape between entities of the kinds ``ends``."""
        heads, tails = ends
        character = self.character
        places = shape(self.rng, Ends(character.size(heads), character.size(tails), character.skew), count)
        firsts = np.array([character.range_of(kind)[0] for kind in ends])
        return distinct(places + firsts, character.entities)

    def add_base(self, ends: tuple[int, int] | None = None) -> None:
        """Add a relation that follows from no rule, between given kinds or any."""
        if ends is None:
            head = self.kind()
            ends = head, head if self.rng.random() < 0.4 else self.kind()
        shapes = BETWEEN_KINDS + ORDERED if ends[0] == ends[1] else BETWEEN_KINDS
        shape = shapes[int(self.rng.integers(len(shapes)))]
        own = self.pairs(shape, ends, self.budget())
        if len(own) < FEWEST:
            ends = (MIXED, MIXED)
            own = self.pairs(skewed, ends, 8 * FEWEST)
        self.add("base", ends, own)

    def add(self, name: str, ends: tuple[int, int], own: Ints, implied: Ints | None = None) -> int:
        """Add a relation and return it.

        Args:
            own: pairs that follow from no rule.
            implied: pairs that follow; some are exceptions, some are held out.
        """
        rng, character = self.rng, self.character
        implied = own[:0] if implied is None else implied[~is_among(implied, own, character.entities)]
        holds = rng.random(len(implied)) >= character.exceptions
        holds[:2] = True
        implied = implied[holds]
        hidden = rng.random(len(implied)) < character.held_out
        hidden[1:2] = True  # every rule has a fact to find, and one that shows it
        hidden[:1] = False
        self.names.append(f"{name}_{len(self.names)}")
        self.train.append(np.concatenate([own, implied[~hidden]]))
        self.held_out.append(implied[hidden])
        self.ends.append(ends)
        return len(self.train) - 1

    def extra(self, ends: tuple[int, int], implied: Ints) -> Ints:
        """Draw pairs that no rule implies, up to a third as many as the implied ones."""
        count = int(len(implied) * self.rng.uniform(0.0, 0.33))
        return self.pairs(skewed, ends, count)

    def directed(self, relation: int) -> Ints:
        """Return the training pairs of a relation in [0, 2R), heads first."""
        pairs = self.train[relation % self.character.relations]
        return pairs if relation < self.character.relations else pairs[:, ::-1]

    def ends_of(self, relation: int) -> tuple[int, int]:
        """Return the kinds of heads and of tails of a relation in [0, 2R)."""
        head, tail = self.ends[relation % self.character.relations]
        return (head, tail) if relation < self.character.relations else (tail, head)

    def body(self, *, starts: int | None = None) -> int | None:
        """Draw a relation in [0, 2R) to be the body of a rule, whose heads are of the kind ``starts``; None if there is
        none."""
        relations = self.character.relations
        both = [r + turn for r, pairs in enumerate(self.train) if len(pairs) >= FEWEST for turn in (0, relations)]
        fitting = [relation for relation in both if starts in (None, MIXED, self.ends_of(relation)[0])]
        return int(self.rng.choice(fitting)) if fitting else None
