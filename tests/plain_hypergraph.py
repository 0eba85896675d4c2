"""The hypergraph of relations by its definition: every pair and triple of facts is looked at."""

from __future__ import annotations

Fact = tuple[int, int, int]
Hyperedge = tuple[str, *tuple[int, ...]]


def by_definition(facts: list[Fact], relations: int) -> set[Hyperedge]:
    """Kind and members of every hyperedge of the facts and their inverses."""
    both = facts + [(t, r + relations, h) for h, r, t in facts]
    found: set[Hyperedge] = set()
    for h, r, t in both:
        for other_h, other_r, other_t in both:
            if h == other_h:
                found.add(("hh", r, other_r))
            if t == other_t:
                found.add(("tt", r, other_r))
            if h == other_t:
                found.add(("ht", r, other_r))
    for u, b, v in both:
        for h, a, t in both:
            for other_h, c, other_t in both:
                for begin in ["h"] * (h == u) + ["t"] * (t == u):
                    for end in ["h"] * (other_h == v) + ["t"] * (other_t == v):
                        found.add((f"{begin}f{end}", a, b, c))
    return found
