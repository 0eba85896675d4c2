"""A store of a few facts."""

from __future__ import annotations

from pathlib import Path

from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store

FACTS = "ada\tknows\tbob\nbob\tlives in\tparis\nada\tlives in\t/m/oslo\n"


def small_store(folder: Path, facts: str = FACTS, seed: int = 0) -> Store:
    """Of facts in lines, all of them for training, in folder/store."""
    (folder / "facts.tsv").write_text(facts, encoding="utf-8")
    prepare(str(folder / "facts.tsv"), str(folder / "store"), split=(1.0, 0.0, 0.0), seed=seed)
    return Store.open(str(folder / "store"))
