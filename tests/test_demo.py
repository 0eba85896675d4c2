import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.demo import _examples, run_demo


def test_examples_are_test_facts_of_different_relations(tmp_path: Path) -> None:
    generate(str(tmp_path / "store"), entities=400, relations=6, triples=3000, seed=1)
    store = Store.open(str(tmp_path / "store"))
    examples = _examples(store)
    facts = {tuple(triple) for triple in store.triples("test").tolist()}
    assert len(examples) == 3
    assert facts.issuperset(examples)
    assert len({relation for _, relation, _ in examples}) == 3
    assert examples == _examples(store)


@pytest.mark.slow
@pytest.mark.cluster
def test_the_demonstration_learns_its_rules(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=160)
    report = run_demo(tmp_path / "demo", 2, console)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert report == tmp_path / "demo" / "run" / "report.html"
    assert report.stat().st_size > 20_000
    assert text.count(", ?)") == 3
    assert "MRR" in text
    result = json.loads((tmp_path / "demo" / "run" / "result.json").read_text())
    assert result["train"]["workers"] == 2
    assert result["metrics"]["test"]["mrr"] > 0.3  # a guess would be below 0.01
