"""Stores of a small and a larger random graph, for tests that train on both."""

from __future__ import annotations

from pathlib import Path

from distkg.data.generate import generate


def two_stores(folder: Path, *, relations: int = 3, large: tuple[int, int] = (60, 450)) -> list[str]:
    """Generate them in a folder, and return their addresses; ``large`` has so many entities and triples."""
    for name, (entities, triples), seed in (("small", (40, 150), 1), ("large", large, 2)):
        generate(str(folder / name), entities=entities, relations=relations, triples=triples, seed=seed)
    return [str(folder / name) for name in ("small", "large")]
