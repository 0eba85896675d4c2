"""Detection of the columns of head, relation and tail from common column names.

Names are compared without case, spaces, quotes, underscores and marks: ``# Head``, ``head_id``, ``?s`` and Neo4j's
``:START_ID(Person)`` are known. A name consists of a base, which gives the role, and an optional ending such as ``_id``
or ``_name``; head and tail columns are paired by equal endings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

Order = tuple[int, int, int]

PAIRS = (
    ("head", "tail"),
    ("h", "t"),
    ("subject", "object"),
    ("subj", "obj"),
    ("sub", "obj"),
    ("s", "o"),
    ("source", "target"),
    ("source", "destination"),
    ("src", "dst"),
    ("src", "dest"),
    ("src", "tgt"),
    ("src", "trg"),
    ("from", "to"),
    ("start", "end"),
    ("begin", "end"),
    ("origin", "destination"),
    ("left", "right"),
    ("lhs", "rhs"),
    ("x", "y"),
    *((f"{name}{first}", f"{name}{second}") for name in (
        "node", "n", "entity", "ent", "e", "vertex", "concept", "arg", "argument", "item", "term",
    ) for first, second in (("1", "2"), ("a", "b"))),
)  # fmt: skip
HEADS = {head: {tail for other, tail in PAIRS if other == head} for head, _ in PAIRS}
TAILS = {tail for _, tail in PAIRS}
WEAK = {"x", "y", *(f"{letter}{end}" for letter in "en" for end in "12ab")}
"""Names that toy graphs use as entity labels: with a one-letter relation, the line is a fact and not a header."""

ENDINGS = ("id", "ids", "name", "label", "node", "entity", "iri", "uri", "curie", "key", "code")
RELATION_BASES = (
    "relation",
    "rel",
    "r",
    "predicate",
    "pred",
    "p",
    "edge",
    "property",
    "prop",
    "relationship",
    "link",
    "metaedge",
    "interaction",
    "verb",
    "type",
    "label",
)
RELATION_NAMES = {
    *RELATION_BASES,
    *(f"{base}{ending}" for base in RELATION_BASES if base not in ("type", "label") for ending in ENDINGS),
    *(f"{base}type" for base in ("relation", "rel", "edge", "relationship", "predicate", "link", "interaction")),
    "edgelabel",
    "displayrelation",
    "relations",
    "predicates",
    "etype",
    "relname",
}
COMMON_RELATION = {"subject": "predicate", "subj": "pred", "sub": "pred", "s": "p", "h": "r", "start": "type"}
"""Base of the head's name → name of the relation column that is used with it; ``relation`` for all other bases."""


class Ambiguous(NamedTuple):
    """Ambiguous header: several columns fit a role.

    Attributes:
        role: "head and tail" or "relation".
        names: names of the candidate columns.
    """

    role: str
    names: tuple[str, ...]


class _Name(NamedTuple):
    column: int
    base: str
    ending: str


def columns_by_name(names: Sequence[str]) -> Order | Ambiguous | None:
    """Detect the columns of head, relation and tail; None if the names do not determine the columns."""
    cleaned = [clean_name(name) for name in names]
    heads = [_Name(column, *parts) for column, name in enumerate(cleaned) if (parts := _parts(name, HEADS))]
    tails = [_Name(column, *parts) for column, name in enumerate(cleaned) if (parts := _parts(name, TAILS))]
    relations = [column for column, name in enumerate(cleaned) if name in RELATION_NAMES]
    if not (heads and tails and relations):
        return None
    pairs = [(head, tail) for head in heads for tail in tails if tail.base in HEADS[head.base]]
    pairs = [(head, tail) for head, tail in pairs if head.ending == tail.ending]
    if len(heads) == len(tails) == 1:
        head, tail = heads[0], tails[0]
        if _is_toy_fact(head, tail, [cleaned[column] for column in relations]):
            return None
    elif len(plain := [pair for pair in pairs if not pair[0].ending]) == 1 or len(plain := pairs) == 1:
        head, tail = plain[0]
    else:
        return Ambiguous("head and tail", tuple(names[part.column] for part in sorted([*heads, *tails])))
    if len(relations) > 1:
        relation_name = COMMON_RELATION.get(head.base, "relation")
        relations = [
            column for column in relations if cleaned[column] in (relation_name, f"{relation_name}{head.ending}")
        ] or relations
    if len(relations) > 1:
        return Ambiguous("relation", tuple(names[column] for column in relations))
    return head.column, relations[0], tail.column


def column_order(names: Sequence[str]) -> Order | None:
    """Return the columns of head, relation and tail by their names; None if the names are unknown or ambiguous."""
    order = columns_by_name(names)
    return None if isinstance(order, Ambiguous) else order


def clean_name(name: str) -> str:
    """Normalise a column name for comparison.

    >>> [clean_name(name) for name in ("# Head Entity", ":START_ID(Person)", '"?s"', "rdf:predicate")]
    ['headentity', 'startid', 's', 'predicate']
    """
    name = re.sub(r"\(.*\)$", "", name.strip(" \t\r\"'#?$<>")).rpartition(":")[2]
    return re.sub(r"[\W_]", "", name).lower()


def _is_toy_fact(head: _Name, tail: _Name, relations: Sequence[str]) -> bool:
    """Return True if one- or two-letter names are rather labels: ``x r y``, ``s r t``."""
    if head.ending or tail.ending:
        return False
    letters = len(head.base) == len(tail.base) == 1 and tail.base not in HEADS[head.base]
    weak = {head.base, tail.base} & WEAK and all(len(relation) == 1 for relation in relations)
    return bool(letters or weak)


def _parts(name: str, bases: set[str] | dict[str, set[str]]) -> tuple[str, str] | None:
    """Split a name into base and ending; None if its base is unknown."""
    if name in bases:
        return name, ""
    for ending in ENDINGS:
        base = name.removesuffix(ending)
        if base != name and base in bases:
            return base, ending.rstrip("s")
    return None
