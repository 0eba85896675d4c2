"""The arena: which graphs are clean for a model, paired gains, what is kept, the result file and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import arena
from benchmarks.arena import (
    CLEAN,
    LEAKED,
    NEW_ENTITIES,
    NEW_RELATIONS,
    Contender,
    InductiveGraph,
    contenders,
    family_of,
    groups_of,
    paired_gain,
    reciprocal_ranks,
    summaries,
)
from benchmarks.arena_page import render
from benchmarks.common import BenchmarkError
from distkg.evaluation.ranking import Ranking
from distkg.foundation.model_files import make_model, save_model

GRAPHS = [
    InductiveGraph("GraIL-FB15k-237-v1", "a", "FB", new_relations=False),
    InductiveGraph("InGram-FB-50", "b", "FB", new_relations=True),
    InductiveGraph("GraIL-NELL-995-v1", "c", "NELL", new_relations=False),
    InductiveGraph("InGram-WK-50", "d", "WK", new_relations=True),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two inductive data sets, the second with relations of its own, and a folder that is none."""
    folder = tmp_path_factory.mktemp("data")
    for name, new in (("InGram-FB-50", ""), ("InGram-WK-50", "new_")):
        (folder / name).mkdir()
        parts = (("train", "e", ""), ("inference", "i", new), ("valid", "i", new), ("test", "i", new))
        for seed, (split, entity, relation) in enumerate(parts):
            rows = np.random.default_rng(seed).integers(0, [12, 3, 12], (60 if seed < 2 else 8, 3))
            lines = {f"{entity}{h}\t{relation}r{r}\t{entity}{t}\n" for h, r, t in rows}
            (folder / name / f"{split}.tsv").write_text("".join(sorted(lines)))
    (folder / "UMLS").mkdir()
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 0), ("two", 1)):
        torch.manual_seed(seed)
        save_model(make_model("ultra", {"width": 8, "layers": 2, "hidden": 8}), folder / name)
    return [folder / "one", folder / "two"]


def run_arena(models: list[Path], data: Path, folder: Path) -> tuple[dict[str, Any], str]:
    given = ["--quick", "--models", *map(str, models), "--data", str(data), "--folder", str(folder)]
    written = arena.main([*given, "--learned-from", "FB", "two=WK", "--results", str(folder / "results")])
    return json.loads(written.read_text()), written.with_suffix(".html").read_text()


@pytest.mark.benchmarks
def test_the_arena_runs_and_keeps_what_it_ranked(models: list[Path], data: Path, tmp_path: Path) -> None:
    content, page = run_arena(models, data, tmp_path)
    rows = [f"{model}, {graph}" for model in ("one", "two") for graph in ("InGram-FB-50", "InGram-WK-50")]
    assert list(content["figures"]) == rows
    settings = content["settings"]
    assert settings["graphs"]["InGram-FB-50"]["new relations"] is False
    assert settings["graphs"]["InGram-WK-50"]["new relations"] is True
    groups = {name: model["groups"] for name, model in settings["models"].items()}
    assert groups["one"] == {
        "all": ["InGram-FB-50", "InGram-WK-50"],
        LEAKED: ["InGram-FB-50"],
        CLEAN: ["InGram-WK-50"],
        NEW_RELATIONS: ["InGram-WK-50"],
    }
    assert groups["two"] == {"all": ["InGram-FB-50", "InGram-WK-50"], LEAKED: ["InGram-FB-50", "InGram-WK-50"]}
    mrr = {row: columns["MRR"]["median"] for row, columns in content["figures"].items()}
    means = settings["means over graphs"]
    assert means["one"][CLEAN]["MRR"] == pytest.approx(mrr["one, InGram-WK-50"])
    assert means["two"]["all"]["MRR"] == pytest.approx((mrr[rows[2]] + mrr[rows[3]]) / 2)
    (gain,) = settings["gains over the first model"]
    assert (gain["model"], gain["over"], gain["graphs"], gain["number"]) == ("two", "one", "all", 2)
    assert gain["mean"] == pytest.approx(means["two"]["all"]["MRR"] - means["one"]["all"]["MRR"])
    shares = [stratum["share"] for stratum in settings["half-links"]["one"]["InGram-WK-50"].values()]
    assert sum(shares) == pytest.approx(1)
    for text in (
        "InGram-WK-50",
        f"{mrr['one, InGram-FB-50']:.4f}*",
        f"{gain['mean']:+.4f}",
        "Half-links",
        "two over one",
    ):
        assert text in page
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "ranks").iterdir()}
    assert len(kept) == 4
    again, _ = run_arena(models, data, tmp_path)
    assert again["figures"] == content["figures"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "ranks").iterdir()} == kept


def test_a_family_is_the_graph_that_a_set_was_cut_from() -> None:
    names = {
        "GraIL-FB15k-237-v2": "FB", "GraIL-WN18RR-v1": "WN", "GraIL-NELL-995-v1": "NELL", "InGram-NL-50": "NELL",
        "InGram-WK-50": "WK", "CoDEx-S": "CoDEx", "Metafam": "Metafam",
    }  # fmt: skip
    assert {name: family_of(name) for name in names} == names


def test_a_graph_is_leaked_for_who_learned_from_its_family() -> None:
    found = groups_of(Contender("m", Path("m"), frozenset({"FB", "CoDEx"})), GRAPHS)
    assert found[LEAKED] == ["GraIL-FB15k-237-v1", "InGram-FB-50"]
    assert found[CLEAN] == ["GraIL-NELL-995-v1", "InGram-WK-50"]
    assert found[NEW_ENTITIES] == ["GraIL-NELL-995-v1"]
    assert found[NEW_RELATIONS] == ["InGram-WK-50"]
    assert LEAKED not in groups_of(Contender("m", Path("m"), frozenset()), GRAPHS)


def test_families_are_of_all_models_or_of_one(tmp_path: Path) -> None:
    found = contenders(["a=x/y", "x/b/"], ["WN", "a=FB,CoDEx"], "ultra", tmp_path)
    assert [(each.name, sorted(each.learned_from)) for each in found] == [("a", ["CoDEx", "FB", "WN"]), ("b", ["WN"])]
    assert [each.folder for each in found] == [Path("x/y"), Path("x/b")]
    with pytest.raises(BenchmarkError, match=r"there is no model c. There are: a, b"):
        contenders(["a=x/y", "x/b"], ["c=FB"], "ultra", tmp_path)
    with pytest.raises(BenchmarkError, match="two models have one name among b, b"):
        contenders(["x/b", "y/b"], [], "ultra", tmp_path)


def test_a_paired_gain_has_intervals_over_graphs_and_over_triples() -> None:
    alike = {"a": np.full(50, 0.5), "b": np.full(10, 0.3)}
    better = {"a": np.full(50, 0.6), "b": np.full(10, 0.6)}
    gain = paired_gain(better, alike)
    assert gain["mean"] == pytest.approx(0.2), "graphs count equally"
    assert (gain["low over triples"], gain["high over triples"]) == pytest.approx((0.2, 0.2))
    assert (gain["low over graphs"], gain["high over graphs"]) == pytest.approx((0.1, 0.3))
    rng = np.random.default_rng(3)
    noisy = {"a": alike["a"] + rng.normal(0.1, 0.2, 50), "b": alike["b"] + rng.normal(0.1, 0.2, 10)}
    found = paired_gain(noisy, alike)
    spread = np.hypot(np.std(noisy["a"]) / 50**0.5, np.std(noisy["b"]) / 10**0.5) / 2
    assert found["high over triples"] - found["low over triples"] == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_both_queries_of_a_triple_are_drawn_together() -> None:
    queries, answers = np.zeros((4, 2), np.int32), np.zeros(4, np.int32)
    ranking = Ranking(queries, answers, np.array([0, 1, 3, 0]), np.array([0, 0, 0, 2]))
    # Tails have ranks 1 and 2, heads 4 and, with half of two ties lost, 2.
    assert reciprocal_ranks(ranking).tolist() == [(1 + 1 / 4) / 2, (1 / 2 + 1 / 2) / 2]


def test_models_are_in_the_order_of_their_clean_graphs() -> None:
    models = [Contender("low", Path(), frozenset()), Contender("high", Path(), frozenset({"FB"}))]
    figures = {
        (model.name, graph.name): dict.fromkeys(("MRR", "Hits@10", "MRR, ties lost", "Hits@10, ties lost"), value)
        for model, of_family in zip(models, ({"FB": 0.9}, {"FB": 0.1}), strict=True)
        for graph in GRAPHS
        for value in [of_family.get(graph.family, 0.2 if model.name == "low" else 0.7)]
    }
    found = summaries(models, GRAPHS, figures)
    assert list(found) == ["high", "low"]
    assert found["high"][CLEAN]["MRR"] == pytest.approx(0.7)
    assert found["low"]["all"]["MRR"] == pytest.approx(0.55)
    assert found["low"]["all"]["graphs"] == 4


def test_a_page_escapes_names() -> None:
    columns = {"graphs": 1, "MRR": 0.5, "Hits@10": 0.6, "MRR, ties lost": 0.4, "Hits@10, ties lost": 0.5}
    settings = {
        "models": {"<b>": {"model": "ultra", "learned from": ["<i>"], "groups": {"all": ["g"]}}},
        "graphs": {"g": {"family": "g", "new relations": True, "entities": 9, "test triples ranked": 2}},
        "means over graphs": {"<b>": {"all": columns}},
        "gains over the first model": [],
        "half-links": {"<b>": {"g": {"both seen": {"MRR": 0.5, "share": 1.0}}}},
    }
    page = render(
        {"settings": settings, "figures": {"<b>, g": {"MRR": {"median": 0.5}}}, "date": "2026-12-01", "command": "<u>"}
    )
    assert not any(tag in page for tag in ("<b></td>", "<i>", "<u>"))
    assert "&lt;b&gt;" in page
    assert "0.5000 (100%)" in page
