"""The benchmarks run, and what they make of what they measured is right.

One of each family runs with the other tests: of machines (rooflines), steps of embeddings (one_vs_all) and of
foundation models (token_steps), ranking (zero_shot), quality under a time limit by embeddings (negative_quality) and by
foundation models (planted_images), and scale on Ray (million_entities). ``make test-benchmarks`` runs all.
"""

import importlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from at_work import describe, fail_on_last
from rich.console import Console
from small_model import SmallModel, random_model

from benchmarks import (
    dashboard,
    evaluation,
    growth,
    hale_ablation,
    kmas,
    message_passing,
    multimodal,
    one_vs_all,
    pool_soak,
    query_sampling,
    relation_meetings,
    rooflines,
    sampled_reasoning,
    soak_faults,
    soak_watch,
    table_on_disk,
    token_steps,
    worker_scaling,
)
from benchmarks.common import BenchmarkError, Figures, Session, begin, finish, rows_wanted
from benchmarks.gpu import PlainTraining
from benchmarks.peers import run_pykeen
from benchmarks.plain_query_sampling import PlainHaLE
from benchmarks.processes import alone, on_ranks
from benchmarks.rooflines import Rooflines, together
from benchmarks.training_windows import SCORERS, Window, Workload, shares
from distkg.config import ModelConfig
from distkg.data.generate import generate
from distkg.data.splits.inductive_split import inductive_split
from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import KnownAnswers
from distkg.embedding.scorers import make_scorer
from distkg.evaluation.ranking import rank_answers
from distkg.foundation.graphs.entity_tokens import EntityTokens
from distkg.foundation.model_files import make_model, save_model
from distkg.foundation.models import KnowledgeGraph
from distkg.kernels.message_passing.edges import Edges
from distkg.sharding.ranks import Ranks
from tests.with_dgl import HAS_DGL

ROOT = Path(__file__).resolve().parents[2]
MACHINE = Rooflines(torch_mm=100e9, onednn=200e9, bfloat16=400e9, bandwidth=20e9, square_roots=2e9)
MEASURED = ["triples/s", "step ms", "data ms", "exchange ms", "compute ms", "optimizer ms"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmarks") / "store"
    generate(str(path), entities=300, relations=6, triples=3000, seed=0)
    return path


def run_quickly(name: str, results: Path, *arguments: str, part: str = "") -> dict[str, Any]:
    """What a benchmark wrote, once checked for what all have in common."""
    typed = ["--quick", "--results", str(results), *arguments]
    written = importlib.import_module(f"benchmarks.{name}").main(typed)
    assert written.parent == results
    assert written.name.endswith(f"-{name}{part}-quick.json")
    content = json.loads(written.read_text())
    assert content["command"] == " ".join(["python", "-m", f"benchmarks.{name}", *typed])
    assert content["hardware"]["cores"] >= 1
    # A wheel may leave the build (+cpu, +cu130) out of its package's version.
    assert content["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    for row, columns in content["figures"].items():
        for column, found in columns.items():
            assert math.isfinite(found["median"]), (row, column)
            assert found["median"] >= 0, (row, column)
            assert found["repetitions"] == [found["median"]], (row, column)
    return content


def columns_of(content: dict[str, Any]) -> dict[str, list[str]]:
    return {row: list(columns) for row, columns in content["figures"].items()}


def test_rooflines_run(tmp_path: Path) -> None:
    rows = columns_of(run_quickly("rooflines", tmp_path))
    assert len(rows) == 5
    assert all(columns == ["1 process", "2 processes"] for columns in rows.values())


def test_one_vs_all_runs(tmp_path: Path, store: Path) -> None:
    content = run_quickly("one_vs_all", tmp_path, "--store", str(store))
    shown = [*MEASURED, "queries/s", "useful Gflop/s", "% oneDNN", "% torch.mm", "% bfloat16"]
    expected = ["one by one, float32", "one by one, bfloat16", "grouped, float32", "grouped, bfloat16"]
    assert columns_of(content) == dict.fromkeys(expected, shown)
    assert content["settings"]["graph"]["entities"] == 300


@pytest.mark.benchmarks
@pytest.mark.cluster
def test_start_runs(tmp_path: Path, store: Path) -> None:
    options = ("--preset", "complex_umls", "--epochs", "1", "--variants", "help", "train, one worker", "predict")
    content = run_quickly("start", tmp_path, "--store", str(store), *options)
    trained = ["first line s", "first report s", "seconds"]
    assert columns_of(content) == {"help": ["seconds"], "train, one worker": trained, "predict": ["seconds"]}
    first = content["figures"]["train, one worker"]
    assert 0 < first["first line s"]["median"] < first["first report s"]["median"] < first["seconds"]["median"]


@pytest.mark.benchmarks
def test_time_to_mrr_runs(tmp_path: Path, store: Path) -> None:
    content = run_quickly("time_to_mrr", tmp_path, "--store", str(store), part="-store")
    assert columns_of(content) == {
        row: ["best MRR", ".00, min", ".00, training s"] for row in ("distkg", "plain PyTorch", "PyKEEN")
    }
    settings = content["settings"]
    assert settings["missed"] == {row: [""] for row in content["figures"]}
    for row, (curve,) in settings["curves"].items():
        minutes, training_seconds, mrr = curve[-1]
        assert 0 < training_seconds < 60 * minutes
        assert mrr == pytest.approx(content["figures"][row]["best MRR"]["median"], abs=1e-4)
    assert settings["commands"]["distkg"][:4] == ["python", "-m", "distkg", "train"]


@pytest.mark.benchmarks
def test_evaluation_runs(tmp_path: Path, store: Path) -> None:
    content = run_quickly("evaluation", tmp_path, "--store", str(store))
    assert list(content["figures"]) == ["distkg, ranking", "distkg, whole", "plain PyTorch", "PyKEEN"]
    assert content["figures"]["PyKEEN"]["× PyKEEN"]["median"] == 1


@pytest.mark.benchmarks
def test_sampled_training_runs(tmp_path: Path, store: Path) -> None:
    content = run_quickly("sampled_training", tmp_path, "--store", str(store))
    by_products = [*MEASURED, "× PyKEEN", "% oneDNN", "% torch.mm"]
    assert columns_of(content) == {
        "DistMult, shared": by_products,
        "DistMult, shared, overlapped": by_products,
        "DistMult, independent": [*MEASURED, "× PyKEEN", "% bandwidth"],
        "DistMult, PyKEEN": ["triples/s"],
    }


@pytest.mark.benchmarks
def test_gpu_runs_on_any_device(tmp_path: Path, store: Path) -> None:
    content = run_quickly("gpu", tmp_path, "--store", str(store))
    rows = columns_of(content)
    assert list(rows) == [
        "products, float32",
        "products, bfloat16",
        "copies",
        "DistMult, shared",
        "DistMult, plain PyTorch",
        "1-vs-all, float32",
        "1-vs-all, bfloat16",
        "exact evaluation",
        "unfiltered ranks, plain PyTorch",
        "HaLE, dim 8",
        "messages, batch 2, distkg",
        "messages, batch 2, gather, multiply, index_add",
        "zero-shot ranking, ULTRA",
    ]
    assert rows["DistMult, shared"] == ["triples/s", "step ms", "× plain PyTorch", "% float32", "CUDA graphs"]


@pytest.mark.parametrize("scorer", list(SCORERS))
def test_the_plain_step_on_a_device_is_the_same_work(scorer: str) -> None:
    torch.manual_seed(0)
    plain = PlainTraining(scorer, 20, 3, Workload(dim=8, negatives=8, batch_size=300), "cpu")
    ours = make_scorer(ModelConfig.model_validate({**SCORERS[scorer], "dim": 8}))
    anchor, relation, candidates = plain.entities[:5], plain.relations[:5], plain.entities[5:]
    query = plain.query(anchor, relation)
    torch.testing.assert_close(query, ours.query(anchor, relation))
    torch.testing.assert_close(plain.scores(query, candidates), ours.similarity.block(query, candidates))
    before = plain.entities.detach().clone()
    assert plain.step().isfinite()
    assert (plain.entities != before).any()


@pytest.mark.benchmarks
def test_query_sampling_runs(tmp_path: Path, store: Path) -> None:
    content = run_quickly("query_sampling", tmp_path, "--store", str(store))
    timed = ["s/epoch", "× HaLE", "worker MB", "of it ours MB"]
    rows = columns_of(content)
    assert rows.pop("log Σ exp of 5 queries, dim 8") == ["useful Gflop/s", "% oneDNN", "% torch.mm"]
    assert rows.pop("HaLE in plain PyTorch, dim 8") == timed
    assert list(rows) == [f"{name}, dim 8" for name in (*query_sampling.STRATEGIES, "HaLE, batch × 8")]
    assert all(columns == timed for columns in rows.values())
    assert content["figures"]["HaLE, dim 8"]["× HaLE"]["median"] == 1


def test_plain_hale_is_the_formula() -> None:
    """All vectors 0 but one entity at distance 1 from all queries; c_r = ln 2."""
    model = PlainHaLE(entities=3, relations=1, dim=2)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        model.entities[2, 0] = 1.0
    zero = torch.zeros(2, dtype=torch.int64)
    loss = model(zero, zero, torch.tensor([1, 2]), 1, 0.5).item()
    near, far = (1 / (0.1 + math.exp(-3 * (x - 0.5))) for x in (0.0, math.log(2)))
    log_sum = math.log(2 * math.exp(-near) + math.exp(-far))
    assert loss == pytest.approx((near**2 + far**2) / 2 + 0.5 * log_sum, rel=1e-5)


@pytest.mark.benchmarks
def test_hale_ablation_runs(tmp_path: Path, store: Path) -> None:
    typed = ["--store", str(store), "--preset", "hale_codex_s", "--seconds", "5"]
    content = run_quickly("hale_ablation", tmp_path, *typed, part="-hale_codex_s")
    assert list(content["figures"]) == list(hale_ablation.VARIANTS)
    for columns in content["figures"].values():
        assert 0 < columns["MRR"]["median"] < 1
        assert columns["Hits@1"]["median"] <= columns["MRR"]["median"] <= columns["Hits@10"]["median"]


@pytest.mark.benchmarks
def test_growth_runs(tmp_path: Path, store: Path) -> None:
    graph, source = Store.open(str(store)), tmp_path / "source"
    source.mkdir()
    for split in ("train", "valid", "test"):
        lines = [f"e{head}\tr{relation}\te{tail}\n" for head, relation, tail in graph.triples(split).tolist()]
        (source / f"{split}.tsv").write_text("".join(lines))
    typed = [
        "--source",
        str(source),
        "--preset",
        "complex_codex_s",
        "--epochs",
        "1",
        "--folder",
        str(tmp_path / "kept"),
    ]
    content = run_quickly("growth", tmp_path, *typed, part="-complex_codex_s")
    assert list(content["figures"]) == ["old model", "neighbours, untrained", *growth.VARIANTS, "from scratch"]
    for row, columns in content["figures"].items():
        parts = ["MRR old", *([] if row == "old model" else ["MRR new", "MRR all"])]
        assert list(columns) == [*parts, "minutes", "CPU s"]
        assert all(0 < columns[part]["median"] < 1 for part in parts)
    sizes = content["settings"]
    assert sizes["all-store"]["entities"] - sizes["old-store"]["entities"] >= 30
    again = run_quickly("growth", tmp_path, *typed, part="-complex_codex_s")
    assert again["figures"] == content["figures"]


@pytest.mark.slow
def test_negative_quality_runs(tmp_path: Path, store: Path) -> None:
    typed = ["--store", str(store), "--preset", "negatives_complex", "--seconds", "5"]
    content = run_quickly("negative_quality", tmp_path, *typed, part=f"-negatives_complex-{store.name}")
    assert list(content["figures"]) == ["uniform", "corrupt"]
    assert content["figures"]["uniform"]["pool"]["median"] == 300
    assert content["figures"]["corrupt"]["pool"]["median"] < 300


@pytest.mark.benchmarks
def test_bucket_order_runs(tmp_path: Path, store: Path) -> None:
    typed = ["--store", str(store), "--preset", "negatives_complex", "--epochs", "1"]
    content = run_quickly("bucket_order", tmp_path, *typed, part=f"-negatives_complex-{store.name}")
    assert list(content["figures"]) == ["random order", "half of the entities", "a quarter", "a tenth"]
    assert content["settings"]["configuration"]["train"]["resident_share"] == 1.0


@pytest.mark.benchmarks
@pytest.mark.cluster
@pytest.mark.usefixtures("shared_ray")
def test_negative_pool_runs(tmp_path: Path, store: Path) -> None:
    typed = ["--store", str(store), "--preset", "negatives_rotate", "--seconds", "5"]
    content = run_quickly("negative_pool", tmp_path, *typed, part=f"-negatives_rotate-{store.name}")
    relational = [f"relational, {way}" for way in ("in the step", "by an actor", "by an actor, waited for")]
    assert list(content["figures"]) == ["uniform, in the step", *relational]
    assert content["figures"]["uniform, in the step"]["× uniform's steps/s"]["median"] == 1
    assert "delivered" not in content["figures"]["relational, in the step"]
    came = {name: column["median"] for name, column in content["figures"]["relational, by an actor"].items()}
    assert (came["delivered"] < 1) == (sum(came[why] for why in ("late", "old", "broken", "refused")) > 0)
    assert content["figures"]["relational, by an actor, waited for"]["delivered"]["median"] == 1


@pytest.mark.benchmarks
def test_dans_ablation_runs(tmp_path: Path, store: Path) -> None:
    typed = ["--store", str(store), "--preset", "negatives_rotate", "--seconds", "10"]
    content = run_quickly("dans_ablation", tmp_path, *typed, part=f"-negatives_rotate-{store.name}")
    assert list(content["figures"]) == ["uniform", "self-adversarial", "DANS"]
    assert all(0 < columns["MRR"]["median"] < 1 for columns in content["figures"].values())


@pytest.mark.benchmarks
def test_dans_sweep_runs(tmp_path: Path, store: Path) -> None:
    typed = ["--store", str(store), "--preset", "negatives_rotate", "--seconds", "10"]
    content = run_quickly("dans_sweep", tmp_path, *typed, part=f"-negatives_rotate-{store.name}")
    assert list(content["figures"]) == ["μ = 0.5", "μ = 1", "μ = 2"]
    assert content["settings"]["variants"]["η = 1"] == ["negatives.source=dans", "negatives.options={weight: 1.0}"]


@pytest.mark.benchmarks
def test_message_passing_runs(tmp_path: Path, store: Path) -> None:
    content = run_quickly("message_passing", tmp_path, "--store", str(store))
    columns = ["forward ms", "forward and backward ms", "× bandwidth, forward", "bandwidth GB/s", "peak MB"]
    for row in ("distkg, batch 2", "distkg, 8 queries of a relation, batch 2", "gather, multiply, index_add, batch 2"):
        assert columns_of(content)[row] == columns
    if HAS_DGL:
        assert columns_of(content)["DGL u_mul_e_sum, batch 2"] == columns


@pytest.mark.benchmarks
def test_relation_meetings_run(tmp_path: Path, store: Path) -> None:
    content = run_quickly("relation_meetings", tmp_path, "--store", str(store))
    columns = ["forward ms/query", "forward and backward ms/query", "graph MB", "peak MB"]
    assert columns_of(content) == {
        f"{name}, {graph}": columns
        for graph in ("as it is", "20 hubs")
        for name in ("distkg", "an edge for every pair")
    }


def test_both_forms_of_meetings_are_the_same_messages(store: Path) -> None:
    graph = relation_meetings.with_hubs(KnowledgeGraph.of_store(Store.open(str(store))), 2)
    states, factors = torch.randn(2, 12, 8), torch.randn(2, 300, 8)
    (ours, size), (pairs, more) = (
        relation_meetings.layer_of(name, graph) for name in (relation_meetings.OURS, relation_meetings.PAIRS)
    )
    torch.testing.assert_close(ours(states, factors), pairs(states, factors), rtol=1e-4, atol=1e-3)
    assert size < more


def test_zero_shot_runs(tmp_path: Path, store: Path) -> None:
    torch.manual_seed(0)
    save_model(make_model("ultra", {"width": 8, "layers": 2, "hidden": 8}), tmp_path / "model")
    given = "--model", str(tmp_path / "model"), "--stores", str(store)
    content = run_quickly("zero_shot", tmp_path, *given, part="-model")
    metrics = ["MRR", "Hits@10", "MRR, ties lost", "Hits@10, ties lost"]
    orders = [f"ms/query, {order}" for order in ("by relation", "random", "random, encoded anew")]
    assert columns_of(content) == {"store": [*metrics, "ms/query", "queries", "seconds", *orders]}


@pytest.mark.benchmarks
def test_sampled_reasoning_runs(tmp_path: Path, store: Path) -> None:
    torch.manual_seed(0)
    save_model(make_model("ultra", {"width": 8, "layers": 2, "hidden": 8}), tmp_path / "model")
    given = "--model", str(tmp_path / "model"), "--store", str(store)
    content = run_quickly("sampled_reasoning", tmp_path, *given, part="-store")
    assert list(content["figures"]) == list(sampled_reasoning.FANOUTS)


@pytest.mark.benchmarks
def test_dans_message_passing_runs(tmp_path: Path, store: Path) -> None:
    given = "--store", str(store), "--seconds", "2", "--epochs", "1"
    content = run_quickly("dans_message_passing", tmp_path, *given, part="-store")
    assert list(content["figures"]) == ["RotatE", "NBFNet, uniform", "NBFNet, DANS"]


@pytest.mark.benchmarks
def test_kmas_runs_and_goes_on_where_it_stopped(tmp_path: Path, store: Path) -> None:
    given = ["--preset", "ultra", "--graphs", str(store), "--stores", str(store), "--steps", "20"]
    given += ["--variants", *kmas.VARIANTS, "--folder", str(tmp_path / "runs")]
    content = run_quickly("kmas", tmp_path, *given, part="-ultra")
    quality = ["MRR", "Hits@10", "store"]
    trained = {row: [*quality, "validation MRR", "CPU ms/step", "peak MB"] for row in kmas.VARIANTS}
    assert columns_of(content) == {"untrained": quality, **trained}
    assert content["settings"]["loss by step"]["uniform, seed 0"][-1][0] == 20
    again = run_quickly("kmas", tmp_path, *given, part="-ultra")
    assert again["figures"] == content["figures"]


@pytest.fixture(scope="module")
def ultra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "ultra"
    save_model(make_model("ultra", {"width": 8, "layers": 2, "hidden": 8}), folder)
    return folder


@pytest.mark.benchmarks
def test_multimodal_runs(tmp_path: Path, store: Path, ultra: Path) -> None:
    given = ["--store", str(store), "--model", str(ultra), "--seconds", "2", "--folder", str(tmp_path / "runs")]
    content = run_quickly("multimodal", tmp_path, *given, part="-store")
    quality, cost = ["MRR", "Hits@10", "MRR, all tokens"], ["steps", "CPU ms/step", "peak MB"]
    columns = columns_of(content)
    assert columns.pop("ULTRA, not fine-tuned") == ["MRR", "Hits@10"]
    assert columns.pop("ULTRA") == columns.pop("TOFU, no tokens") == [*quality, *cost]
    assert columns == {
        f"TOFU, {kinds}": [*quality, "MRR, half hidden", "MRR, all hidden", *cost]
        for kinds in ("text", "numeric", "text and numeric", "all")
    }


def test_token_steps_run(tmp_path: Path, store: Path) -> None:
    content = run_quickly("token_steps", tmp_path, "--store", str(store))
    assert columns_of(content) == {row: ["step ms", "× ULTRA"] for row in token_steps.ROWS}
    assert content["figures"]["ULTRA"]["× ULTRA"]["repetitions"] == [1.0]


@pytest.mark.slow
def test_planted_images_run(tmp_path: Path, store: Path, ultra: Path) -> None:
    inductive_split(str(store), str(tmp_path / "two"), kind="entities", seed=1)
    given = ["--store", str(tmp_path / "two"), "--model", str(ultra), "--seconds", "2"]
    content = run_quickly("planted_images", tmp_path, *given, "--folder", str(tmp_path / "runs"), part="-two")
    hidden = [f"MRR, {column}" for column in multimodal.HIDDEN]
    assert columns_of(content) == {row: ["MRR", "Hits@10", *hidden, "steps"] for row in ("planted", "shuffled")}


def test_hidden_tokens_are_those_of_a_share_of_the_entities() -> None:
    own = EntityTokens.of(torch.zeros(1000, 2, dtype=torch.int32), torch.ones(1, 3))
    graph = KnowledgeGraph(torch.tensor([(0, 0, 1)]), 1000, 1, tokens={"text": own})
    half = multimodal.without_tokens(graph, 0.5).tokens["text"]
    assert 400 < int(half.present.sum()) < 600
    assert torch.equal(half.ids, multimodal.without_tokens(graph, 0.5).tokens["text"].ids)
    assert dict(multimodal.without_tokens(graph, 1.0).tokens) == {}
    assert multimodal.without_tokens(graph, 0.0).tokens["text"].present.all()


def test_rows_are_all_or_those_that_are_named() -> None:
    def session(*typed: str) -> Session:
        return begin(__file__, "Nothing", [*typed], "variants")

    assert rows_wanted(session(), ["a", "b"]) == ["a", "b"]
    assert rows_wanted(session("--variants", "b"), ["a", "b"]) == ["b"]
    with pytest.raises(BenchmarkError, match=r"c is no row. There are: a, b"):
        rows_wanted(session("--variants", "b", "c"), ["a", "b"])


def test_a_gain_is_a_mean_over_graphs_between_what_graphs_drawn_again_give() -> None:
    assert kmas.gain({"a": [0.1, 0.3], "b": [0.2, 0.2]}) == pytest.approx((0.2, 0.2, 0.2))
    mean, low, high = kmas.gain({"a": [0.0], "b": [1.0]})
    assert (mean, low, high) == (0.5, 0.0, 1.0)


def test_message_passing_needs_neither_dgl_nor_a_gpu(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = Edges.of(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([1, 0]), 2, 1)
    assert ("DGL u_mul_e_sum" in message_passing.layers(edges)) is HAS_DGL
    monkeypatch.setitem(sys.modules, "dgl", None)  # an import of it fails
    assert "DGL u_mul_e_sum" not in message_passing.layers(edges)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BenchmarkError, match="no GPU here"):
        message_passing.main(["--store", str(store), "--device", "cuda", "--results", str(tmp_path)])


def test_growth_is_the_slope_of_the_settled_part() -> None:
    rows = [{"minutes": float(minute), "MB": max(50.0, 40.0 + 2.0 * minute)} for minute in range(20)]
    assert pool_soak.growth(rows, "MB") == pytest.approx(120.0)
    assert pool_soak.growth([{"minutes": 0.0, "MB": 1.0}], "MB") == 0.0


def test_a_line_of_the_dashboard_is_named_by_its_labels() -> None:
    assert dashboard.legend("{{run}} {{trial}} rank {{rank}}", {"run": "/runs/a", "trial": "", "rank": "1"}) == "rank 1"
    assert dashboard.legend("{{run}} {{trial}}", {"run": "/runs/a"}) == "run"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.benchmarks
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="the program prometheus is not installed")
def test_dashboard_runs(tmp_path: Path, store: Path) -> None:
    arguments = ["--store", str(store), "--preset", "negatives_complex", "--seconds", "15"]
    figures = run_quickly("dashboard", tmp_path, *arguments)["figures"]
    assert figures["Workers (stat): run"]["value"]["median"] == 2
    shown = {row.rpartition(": ")[0] for row in figures}
    missing = {dashboard.row_of(panel).rpartition(": ")[0] for panel in dashboard.panels()} - shown
    assert missing <= {"Not delivered, by reason (timeseries)"}  # where all came in time


@pytest.mark.benchmarks
def test_negative_sources_runs(tmp_path: Path, store: Path) -> None:
    content = run_quickly("negative_sources", tmp_path, "--store", str(store))
    assert list(content["figures"]) == ["rotate, uniform", "rotate, degree"]
    assert content["figures"]["rotate, uniform"]["× uniform's time"]["median"] == 1
    assert content["figures"]["rotate, uniform"]["pool"]["median"] == 300


@pytest.mark.benchmarks
def test_worker_scaling_runs(tmp_path: Path, store: Path) -> None:
    content = run_quickly("worker_scaling", tmp_path, "--store", str(store))
    assert list(content["figures"]) == ["DistMult", "DistMult, overlapped"]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.benchmarks
def test_soak_runs(tmp_path: Path, store: Path) -> None:
    """Two faults; in a process of its own, which adopts orphans and starts clusters."""
    sizes = ["--epochs", "250", "--minutes", "0.1", "--every", "3"]
    typed = ["--quick", "--results", str(tmp_path), "--store", str(store), "--folder", str(tmp_path / "kept"), *sizes]
    subprocess.run([sys.executable, "-m", "benchmarks.soak", *typed], check=True, cwd=ROOT)
    (written,) = tmp_path.glob("*-soak-quick.json")
    content = json.loads(written.read_text())
    figures = content["figures"]
    faults = {row.partition(": ")[2]: columns for row, columns in figures.items() if ": " in row}
    assert set(faults) == {"worker killed", "actor killed in a draw"}
    for columns in faults.values():
        assert columns["whole s"]["median"] >= columns["next step s"]["median"] > 0
        assert columns["driver started"]["median"] == 0
    for run in ("undisturbed", "disturbed"):
        assert figures[run]["epochs"]["median"] == 250
        assert 0 < figures[run]["test MRR"]["median"] < 1
        assert list(figures[f"{run}, last quarter / second"]) == list(soak_watch.COLUMNS)
    assert content["settings"]["found"] == []


def test_steps_that_a_restart_repeats_are_counted(tmp_path: Path) -> None:
    def write(*steps: int, late: int = 0) -> None:
        lines = [json.dumps({"step": step, "negatives": {"late": late, "delivered": 0.5}}) + "\n" for step in steps]
        (tmp_path / "metrics.jsonl").write_text("".join(lines))
        progress.look()

    progress = soak_watch.Progress(tmp_path)
    progress.look()
    write(10, 20, 30)
    write(10, 20)  # cut back to the checkpoint of step 20
    assert (progress.repeated, progress.furthest, len(progress.reports)) == (10, 20, 3)
    write(10, 20, 30, 40)
    write(10, 20, 30, 31, late=7)  # other lines after none in common
    assert progress.repeated == 10 + 40
    assert [report.step for report in progress.reports] == [10, 20, 30, 30, 40, 10, 20, 30, 31]
    assert progress.reports[-1].missed == 7


def test_growth_compares_the_last_quarter_with_the_second_of_complete_samples() -> None:
    values = [100, 50, 60, 70, 80, 90, 77, 66]
    rows = [{"complete": 1.0, "MB": float(value)} for value in values]
    rows.insert(3, {"complete": 0.0, "MB": 1000.0})
    assert soak_watch.quarters(rows, "MB") == (65.0, 71.5)
    assert soak_watch.growth(rows, "MB") == pytest.approx(1.1)
    assert soak_watch.growth([], "MB") == 1.0


def test_every_kind_of_fault_comes_before_one_comes_again() -> None:
    names = list(soak_faults.FAULTS)
    found = list(itertools.islice(soak_faults.drawn(np.random.default_rng(3), names), 2 * len(names)))
    assert sorted(found[: len(names)]) == sorted(found[len(names) :]) == sorted(names)
    assert found[: len(names)] != names


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.benchmarks
def test_search_overhead_runs(tmp_path: Path, store: Path) -> None:
    content = run_quickly("search_overhead", tmp_path, "--store", str(store), "--seconds", "1")
    figures = content["figures"]
    assert list(figures) == ["kept workers", "Ray Train for each trial"]
    for columns in figures.values():
        assert len(columns["later trials s"]["repetitions"]) == 2
    kept, new = (columns["processor s"]["median"] for columns in figures.values())
    assert kept < new


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.benchmarks
def test_search_fidelity_runs(tmp_path: Path, store: Path) -> None:
    content = run_quickly("search_fidelity", tmp_path, "--store", str(store))
    figures = content["figures"]
    assert list(figures) == ["CONFIG", "rungs on k-cores", "ASHA on the whole graph"]
    assert figures["rungs on k-cores"]["trials"]["median"] == 4 + 2
    assert all(0 < columns["valid MRR"]["median"] <= 1 for columns in figures.values())


@pytest.mark.benchmarks
def test_memory_runs(tmp_path: Path, store: Path) -> None:
    content = run_quickly("memory", tmp_path, "--store", str(store))
    assert list(content["figures"]) == ["libraries alone", "training DistMult", "evaluation DistMult"]
    assert all(columns["worker MB"]["median"] > 50 for columns in content["figures"].values())


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("shared_ray")
def test_million_entities_runs(tmp_path: Path) -> None:
    content = run_quickly("million_entities", tmp_path, "--folder", str(tmp_path / "graph"))
    figures = {row: columns[""]["median"] for row, columns in content["figures"].items()}
    assert figures["queries ranked"] == 20
    # 150 rows a worker, each of 16 floats and one of row-wise Adagrad.
    assert figures["table and optimizer MB per worker"] == pytest.approx(150 * 17 * 4 / 1e6)
    with pytest.raises(BenchmarkError, match="name a new folder"):
        run_quickly("million_entities", tmp_path, "--folder", str(tmp_path / "graph"))


@pytest.mark.slow
@pytest.mark.benchmarks
def test_table_on_disk_runs(tmp_path: Path) -> None:
    try:
        with table_on_disk.memory_group(2.0):
            pass
    except BenchmarkError as error:
        pytest.skip(str(error))
    content = run_quickly("table_on_disk", tmp_path, "--folder", str(tmp_path / "graph"))
    rows = ["on disk in buckets, 2 GB in all", "on disk at random, 2 GB in all"]
    assert list(content["figures"]) == ["in memory", *rows]
    assert all(0.1 < content["figures"][row]["train GB"]["median"] < 2.0 for row in rows)


@pytest.mark.slow
@pytest.mark.benchmarks
def test_plan_check_runs(tmp_path: Path) -> None:
    rows = ["DistMult, logistic", "RotatE, 2 workers"]
    content = run_quickly("plan_check", tmp_path, "--folder", str(tmp_path / "graphs"), "--variants", *rows)
    assert list(content["figures"]) == rows
    for figures in content["figures"].values():
        assert figures["planned / peak"]["median"] > 1
        assert figures["measured s"]["median"] > 0


@pytest.mark.slow
@pytest.mark.benchmarks
def test_scaling_runs(tmp_path: Path) -> None:
    rows = ["1 M, 1 worker", "1 M, 2 workers, sockets", "10 M, 2 workers, weak"]
    content = run_quickly("scaling", tmp_path, "--folder", str(tmp_path / "graphs"), "--variants", *rows)
    assert list(content["figures"]) == rows
    assert content["figures"][rows[0]]["MB/step"]["median"] == 0
    # Rows that two queries share are sent once, so a step moves less than is foretold.
    assert (
        0 < content["figures"][rows[1]]["MB/step"]["median"] < content["figures"][rows[1]]["foretold MB/step"]["median"]
    )
    assert 0 < content["figures"][rows[0]]["MRR"]["median"] <= 1


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.benchmarks
def test_large_graph_runs(tmp_path: Path) -> None:
    content = run_quickly("large_graph", tmp_path, "--folder", str(tmp_path / "graph"))
    figures = content["figures"]
    steps = ["train", "evaluate", "export", "predict"]
    assert list(figures) == ["generate", *steps, "train, of it the epoch", "train to predict"]
    assert figures["train to predict"]["seconds"]["median"] == pytest.approx(
        sum(figures[step]["seconds"]["median"] for step in steps)
    )
    for step in steps:
        assert figures[step]["GB together"]["median"] >= figures[step]["GB largest"]["median"] > 0.1


def test_figures_give_medians_and_keep_every_repetition(tmp_path: Path) -> None:
    figures = Figures()
    for rate, ratio in ((100.0, 5.0), (1200.0, 0.5), (1500.0, 0.25)):
        figures.add("this", {"rate": rate, "ratio": ratio})
    figures.add("that", {"rate": 10.0})
    assert figures.to_dict()["this"]["rate"] == {"median": 1200.0, "repetitions": [100.0, 1200.0, 1500.0]}
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(figures.table("title"))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["│", "this", "│", "1,200", "│", "0.5", "│"] in lines
    assert ["│", "that", "│", "10.0", "│", "│"] in lines


def test_a_full_run_is_written_under_its_date_and_name(tmp_path: Path) -> None:
    arguments = ["--store", "a/store", "--repetitions", "3", "--results", str(tmp_path)]
    session = begin("/somewhere/speed.py", "Title.\n\nMore.", arguments, "store")
    figures = Figures()
    figures.add("row", {"column": 1.0})
    path = finish(session, {"dim": 4}, figures)
    content = json.loads(path.read_text())
    assert path.name == content["date"][:10] + "-speed.json"
    assert content["settings"] == {"dim": 4}
    assert (session.store, list(session.repetitions), session.title) == ("a/store", [0, 1, 2], "Title.")


def test_a_benchmark_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluation.main(["--quick"])
    assert "--store" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluation.main(["--store", "x", "--repetitions", "0"])
    assert "0 repetitions measure nothing" in capsys.readouterr().err


def test_shares_count_comparisons_with_negatives() -> None:
    work = Workload(dim=250, negatives=200)
    # 100,000 triples/s × 200 negatives × 250 dimensions = 5e9 terms a second.
    assert shares("DistMult", work, 1e5, MACHINE) == {"% oneDNN": 15.0, "% torch.mm": 30.0}
    assert shares("TransE L1", work, 1e5, MACHINE) == {"% bandwidth": 400.0}
    assert shares("RotatE", work, 1e5, MACHINE) == {"% bandwidth": 400.0, "% sqrt": 250.0}
    assert shares("DistMult", work, 1e5, MACHINE, shared=False) == {"% bandwidth": 400.0}


def test_one_vs_all_counts_three_products() -> None:
    window = Window(triples_per_second=1000.0, step_ms=2.0, phase_ms={"compute": 1.5})
    assert one_vs_all.columns(window, MACHINE, queries_per_triple=2.0, terms=10**6) == {
        "triples/s": 1000.0,
        "step ms": 2.0,
        "compute ms": 1.5,
        "queries/s": 2000.0,
        "useful Gflop/s": 12.0,
        "% oneDNN": 6.0,
        "% torch.mm": 12.0,
        "% bfloat16": 3.0,
    }


def test_scaling_is_held_against_one_worker_without_overlap() -> None:
    figures = Figures()
    one = {("DistMult", False): 50.0, ("DistMult", True): 40.0}
    two = {("DistMult", False): 80.0, ("DistMult", True): 90.0}
    worker_scaling.record(figures, one, two, two, {("DistMult", False): 75.0, ("DistMult", True): 60.0})
    assert figures.median("DistMult", "× strong") == 1.6
    assert figures.median("DistMult, overlapped", "× weak") == 1.8
    assert figures.median("DistMult", "× CPUs") == 1.5


def test_rates_of_processes_add_up() -> None:
    assert together([MACHINE, MACHINE]) == Rooflines(200e9, 400e9, 800e9, 40e9, 4e9)


def test_rooflines_are_the_mean_of_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def measured(ranks: Ranks, seconds: float) -> Rooflines:
        order.append("rates")
        return MACHINE if len(order) == 1 else Rooflines(0, 0, 0, 0, 0)

    monkeypatch.setattr(rooflines, "measure", measured)
    machine, value = rooflines.around(Ranks.single(), lambda: order.append("work") or 7)
    assert (value, order) == (7, ["rates", "work", "rates"])
    assert machine == Rooflines(50e9, 100e9, 200e9, 10e9, 1e9)


def test_rates_are_amounts_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes by a second when it is looked at: four actions in the five seconds until it is over."""
    clock = itertools.count(1.0)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    found = rooflines.measure(Ranks.single(), seconds=4.5)
    products = 2 * rooflines.SIDE**3  # an addition and a multiplication each
    bandwidth = rooflines.TRIAD_BYTES * rooflines.TRIAD_FLOATS
    amounts = [products, products, products, bandwidth, rooflines.CACHED_FLOATS]
    assert list(found) == [amount * 4 / 5 for amount in amounts]


def test_plain_pytorch_does_the_same_work() -> None:
    entities, relations = random_model(50, 3, 8, seed=0, integers=True)
    rng = np.random.default_rng(0)
    facts = rng.integers(0, [50, 3, 50], (400, 3)).astype(np.int32)
    known = KnownAnswers.from_triples(facts, 3)
    greater = evaluation.count_plainly(entities, relations, facts[:60], known, batch_size=32)
    assert greater.tolist() == rank_answers(SmallModel(entities, relations), facts[:60], known).greater.tolist()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to pin two workers to")
def test_workers_are_pinned_and_their_memory_is_their_own() -> None:
    small, large = on_ranks(2, describe, 1, pinned=True)
    first, second = sorted(os.sched_getaffinity(0))[:2]
    assert small.value == (0, 2, {first}, 1, "passive")
    assert large.value == (1, 2, {second}, 1, "passive")
    assert large.peak_mb > small.peak_mb + 150


def test_the_worker_that_failed_is_the_one_reported() -> None:
    with pytest.raises(ValueError, match="the last rank cannot"):
        on_ranks(2, fail_on_last)


def test_one_process_alone_has_every_core() -> None:
    assert alone(torch.get_num_threads).value == len(os.sched_getaffinity(0))


def test_pinning_asks_for_enough_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    with pytest.raises(BenchmarkError, match="need 2 cores; this process may use 1"):
        on_ranks(2, describe, 0, pinned=True)


def test_a_peer_that_fails_says_why(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such scorer >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(BenchmarkError, match="no such scorer"):
        run_pykeen("train", str(store), scorer="X")
