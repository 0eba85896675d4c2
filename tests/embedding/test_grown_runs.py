"""A run whose graph grows: old rows stay bit for bit, new ones are made, and frozen ones are never trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distkg.config import ConfigError, RunConfig, parse_config
from distkg.data.extend import extend_store
from distkg.data.generate import generate
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store
from distkg.embedding.growth import new_rows
from distkg.embedding.growth.new_rows import RowMap
from distkg.embedding.load_run import load_run
from distkg.embedding.model import initial_rows
from distkg.embedding.scorers import SCORERS
from distkg.evaluation.score_blocks import evaluating
from distkg.planning.resources import Resources
from distkg.sharding.checkpoint import parts as parts_module
from distkg.sharding.checkpoint.checkpoint import Checkpoints
from distkg.sharding.ranks import Ranks
from distkg.training.extend import FIRST, GrownRun, extend_run
from distkg.training.family import family_of
from distkg.training.run import train_on_rank
from distkg.training.run_dir import RunFolder
from tests.distributed import run_ranks

DIFFERENT = ["atth", "complex", "conve", "cp", "pairre", "rote", "tucker"]
"""Scorers whose rows, networks or biases are treated in other ways."""
NAMES = [name if name in DIFFERENT else pytest.param(name, marks=pytest.mark.slow) for name in sorted(SCORERS)]
OBJECTIVES: dict[str, dict[str, Any]] = {
    "one_vs_all": {"objective": {"name": "one_vs_all"}, "regularizer": {"name": "n3", "weight": 0.01}},
    "single": {"objective": {"name": "one_vs_all", "group_answers": False}},
    "k_vs_all": {"objective": {"name": "k_vs_all"}},
    "sampled": {
        "objective": {"name": "self_adversarial", "margin": 2.0},
        "negatives": {"count": 4, "chunk_size": 16, "filter": True},
    },
    "query_sampling": {"objective": {"name": "query_sampling"}},
    "non_negative": {"objective": {"name": "non_negative"}},
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files of a graph: ``old``, and ``new`` with new entities (some linked to new ones alone) and a
    new relation."""
    folder = tmp_path_factory.mktemp("growth")
    generate(str(folder / "whole"), entities=60, relations=4, triples=600, seed=3)
    whole = Store.open(str(folder / "whole"))
    held = set(range(50, 60))
    for split in ("train", "valid", "test"):
        lines: dict[str, list[str]] = {"old": [], "new": []}
        for head, relation, tail in whole.triples(split).tolist():
            kind = "new" if {head, tail} & held else "old"
            lines[kind].append(f"e{head}\tr{relation}\te{tail}\n")
        if split == "train":
            lines["new"] += ["chain1\tr0\te50\n", "chain2\tr0\tchain1\n", "island1\tr1\tisland2\n", "e50\tfresh\te51\n"]
        for kind, text in lines.items():
            (folder / kind).mkdir(exist_ok=True)
            (folder / kind / f"{split}.tsv").write_text("".join(text))
    prepare(str(folder / "old"), str(folder / "store"))
    return folder


def config_of(graph: Path, **sections: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"store": str(graph / "store")},
        "model": {"name": "complex", "dim": 8},
        "objective": {"name": "one_vs_all"},
        "train": {"batch_size": 64, "seed": 5, "epochs": 1},
        "evaluate": {"every": 1},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return parse_config(tree, "test")


def train(ranks: Ranks, config: RunConfig, folder: str, resume: bool = False) -> dict[str, Any]:
    return train_on_rank(config, Path(folder), ranks, resume=resume)


def go_on(ranks: Ranks, folder: str, epochs: int | None = None) -> dict[str, Any]:
    config = RunFolder(Path(folder)).read_config()
    if epochs is not None:
        config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})
    return train_on_rank(config, Path(folder), ranks, resume=True)


def extended(graph: Path, run: Path, to: Path, *changes: str, rows: Any = "neighbours") -> GrownRun:
    store = str(to.with_name(f"{to.name}-store"))

    def make(base: Store) -> Any:
        return extend_store(base, str(graph / "new"), store)

    return extend_run(run, to, make, store, first_rows=rows, changes=changes)[1]


def tensors(run: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint of a run, whole."""
    checkpoints = Checkpoints(RunFolder(run).checkpoints, Ranks.single(), 2)
    name = checkpoints.newest()
    assert name is not None
    found = {}
    for tensor, entry in checkpoints.describe(name).tensors.items():
        if entry.sharded:
            found[tensor] = checkpoints.read_rows(name, tensor, 0, entry.shape[0])
        else:
            found[tensor] = checkpoints.read_replicated(name, tensor)
    return found


def old_relations(values: Tensor, old: int, new: int) -> Tensor:
    """The rows of the old relations and of their inverses."""
    return torch.cat([values[:old], values[new : new + old]]) if len(values) == 2 * new else values[:old]


def scores(run: Path, facts: np.ndarray) -> Tensor:
    """Scores of the tail queries of facts by a run."""
    model, _, _ = load_run(run, Ranks.single(), held=True)
    head, relation, tail = torch.from_numpy(facts.astype(np.int64)).unbind(1)
    with evaluating(model):
        query = model.query(model.entities.gather(head), relation)
        return model.scorer.similarity.pairs(query, model.scorer.candidates(model.entities.gather(tail)))


def same(values: Tensor, others: Tensor) -> bool:
    return (
        values.dtype == others.dtype and values.contiguous().numpy().tobytes() == others.contiguous().numpy().tobytes()
    )


@pytest.fixture(scope="module")
def old_run(graph: Path) -> Path:
    train(Ranks.single(), config_of(graph, optimizer={"name": "adam", "learning_rate": 0.01}), str(graph / "run"))
    return graph / "run"


@pytest.mark.parametrize("name", NAMES)
def test_old_scores_stay_with_every_scorer_before_training_and_after_it_if_frozen(
    graph: Path, tmp_path: Path, name: str
) -> None:
    """Rows, relations, networks and batch statistics; optimizer state of old rows is kept, of new ones zero."""
    model = {"name": name, "dim": 8} | ({"options": {"kernel": 2}} if name == "conve" else {})
    config = config_of(graph, model=model, optimizer={"name": "adam", "learning_rate": 0.01})
    train(Ranks.single(), config, str(tmp_path / "old"))
    grown = extended(graph, tmp_path / "old", tmp_path / "new", "train.old_rows=frozen", "train.epochs=2")
    facts = Store.open(str(graph / "store")).triples("test")
    before, after = tensors(tmp_path / "old"), tensors(tmp_path / "new")
    assert (grown.entities, grown.relations) == (14, 1)
    for tensor, values in before.items():
        if values.shape[:1] == (50,):
            assert same(after[tensor][:50], values), tensor
            assert tensor == "entities" or not after[tensor][50:].any(), tensor
    assert same(old_relations(after["model.relations"], 4, 5), before["model.relations"])
    assert torch.isfinite(after["entities"]).all()
    expected = scores(tmp_path / "old", facts)
    assert same(scores(tmp_path / "new", facts), expected)
    go_on(Ranks.single(), str(tmp_path / "new"))
    assert same(scores(tmp_path / "new", facts), expected)
    trained = tensors(tmp_path / "new")
    assert same(trained["entities"][:50], before["entities"])
    assert not torch.equal(trained["entities"][50:], after["entities"][50:])


@pytest.mark.parametrize(
    ("ranks", "optimizer", "objective"),
    [
        (1, "adagrad", "one_vs_all"),
        (1, "rowwise_adagrad", "sampled"),
        (2, "adam", "one_vs_all"),
        (2, "adam", "sampled"),
        (2, "adagrad", "sampled"),
        (3, "rowwise_adagrad", "one_vs_all"),
    ],
)
def test_frozen_rows_are_not_trained(graph: Path, tmp_path: Path, ranks: int, optimizer: str, objective: str) -> None:
    """With weight decay and clipping of replicated parameters; nor is the optimizer state of frozen values."""
    sections = OBJECTIVES[objective] | {
        "optimizer": {"name": optimizer, "learning_rate": 0.05, "weight_decay": 0.1, "clip_norm": 0.5},
        "model": {"name": "distmult", "dim": 8},
    }
    train(Ranks.single(), config_of(graph, **sections), str(tmp_path / "old"))
    extended(graph, tmp_path / "old", tmp_path / "new", "train.old_rows=frozen", "train.epochs=2")
    start = tensors(tmp_path / "new")
    if ranks == 1:
        go_on(Ranks.single(), str(tmp_path / "new"))
    else:
        run_ranks(ranks, go_on, str(tmp_path / "new"))
    end = tensors(tmp_path / "new")
    assert start.keys() == end.keys()
    for name in start:
        if start[name].shape[:1] == (64,):
            assert same(end[name][:50], start[name][:50]), name
    assert not torch.equal(end["entities"][50:], start["entities"][50:])
    relations, after = start["model.relations"], end["model.relations"]
    assert same(old_relations(after, 4, 5), old_relations(relations, 4, 5))
    assert not torch.equal(after[4], relations[4])
    assert not torch.equal(after[9], relations[9])
    for name in start:
        if name.startswith("dense_optimizer.") and start[name].numel() == relations.numel():
            state, later = start[name].view(relations.shape), end[name].view(relations.shape)
            assert same(old_relations(later, 4, 5), old_relations(state, 4, 5)), name


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("facts", ["all", "new"])
def test_every_objective_trains_on_all_facts_or_on_new_ones(
    graph: Path, tmp_path: Path, objective: str, facts: str
) -> None:
    model = {"name": "transe", "dim": 8, "options": {"norm": "squared_l2"}}
    sections = OBJECTIVES[objective] | {"model": model, "optimizer": {"name": "adagrad", "learning_rate": 0.05}}
    train(Ranks.single(), config_of(graph, **sections), str(tmp_path / "old"))
    extended(graph, tmp_path / "old", tmp_path / "new", f"train.facts={facts}")
    start = tensors(tmp_path / "new")["entities"]
    result = go_on(Ranks.single(), str(tmp_path / "new"))
    end = tensors(tmp_path / "new")["entities"]
    manifest = Store.open(str(tmp_path / "new-store")).manifest
    assert manifest.grown is not None
    new = manifest.triples["train"] - manifest.grown.triples["train"]
    assert 0 < new < 250
    items = {"all": manifest.triples["train"], "new": new}[facts]
    if objective not in ("one_vs_all", "k_vs_all"):
        plan = family_of(config_of(graph)).plan(RunFolder(tmp_path / "new").read_config(), Resources(None))
        assert result["train"]["steps"] == plan.steps == -(-items // 64)
    assert not torch.equal(end[50:], start[50:])
    assert not torch.equal(end[:50], start[:50])


def test_queries_of_new_facts_have_all_their_answers(graph: Path, tmp_path: Path, old_run: Path) -> None:
    from distkg.embedding.batches import AllEntitiesBatches

    extended(graph, old_run, tmp_path / "new")
    store = Store.open(str(tmp_path / "new-store"))
    assert store.manifest.grown is not None
    first = store.manifest.grown.triples["train"]
    facts = {tuple(fact) for fact in store.triples("train").tolist()}
    queries = {(h, r, t) for h, r, t in facts} | {(t, r + 5, h) for h, r, t in facts}
    new = {tuple(fact) for fact in store.triples("train")[first:].tolist()}
    wanted = {(h, r) for h, r, _ in new} | {(t, r + 5) for _, r, t in new}
    batches = AllEntitiesBatches(store, True, 1 << 20, 0, Ranks.single(), first)
    (batch,) = batches.window(0, 0, 1)
    anchors = batch.ids[batch.anchor]
    seen = {
        (int(anchors[query]), int(batch.relation[query]), int(row))
        for query, row in zip(batch.answers.query, batch.answers.row, strict=True)
    }
    assert seen == {(anchor, relation, answer) for anchor, relation, answer in queries if (anchor, relation) in wanted}
    assert len(seen) > 2 * len(new)


def test_random_rows_are_those_of_a_new_run(graph: Path, tmp_path: Path, old_run: Path) -> None:
    grown = extended(graph, old_run, tmp_path / "new", rows="random")
    model, _, _ = load_run(tmp_path / "new", Ranks.single(), held=True)
    assert grown.from_neighbours == 0
    ((first, rows),) = initial_rows(model.scorer, 64, 50, 64, seed=5)
    assert first == 50
    assert same(tensors(tmp_path / "new")["entities"][50:], rows)


def test_chains_of_new_entities_are_reached_and_islands_are_random(graph: Path, tmp_path: Path, old_run: Path) -> None:
    grown = extended(graph, old_run, tmp_path / "new")
    extended(graph, old_run, tmp_path / "random", rows="random")
    assert grown.from_neighbours == 12
    store = Store.open(str(tmp_path / "new-store"))
    made, random = (tensors(tmp_path / name)["entities"] for name in ("new", "random"))
    islands = [store.entity_id("island1"), store.entity_id("island2")]
    assert same(made[islands], random[islands])
    others = [entity for entity in range(50, 64) if entity not in islands]
    assert (made[others] - random[others]).abs().amax(1).min() > 5e-3


def test_first_rows_by_the_definition(
    graph: Path, tmp_path: Path, old_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map and the sums, written as loops over facts; without noise."""
    monkeypatch.setattr(new_rows, "NOISE", 0.0)
    monkeypatch.setattr(new_rows, "_FACTS", 7)
    extended(graph, old_run, tmp_path / "new")
    model, store, _ = load_run(tmp_path / "new", Ranks.single(), held=True)
    rows = model.entities.gather(torch.arange(64))
    level = {store.entity_id("chain1"): 2, store.entity_id("chain2"): 3}
    pointed: dict[int, list[Tensor]] = {}
    with evaluating(model):
        for h, r, t in store.triples("train").tolist():
            for anchor, relation, answer in ((h, r, t), (t, r + 5, h)):
                if r < 4 and (anchor < 50 or (answer >= 50 and level.get(anchor, 1) < level.get(answer, 1))):
                    query = model.query(rows[anchor][None], torch.tensor([relation]))
                    pointed.setdefault(answer, []).append(model.scorer.answer_rows(rows[anchor][None], query)[0])
    sums = {entity: torch.stack(each).sum(0).double() / len(each) ** 0.5 for entity, each in pointed.items()}
    old = sorted(entity for entity in sums if entity < 50)
    x, y = torch.stack([sums[entity] for entity in old]), rows[old].double()
    away = x - x.mean(0)
    gram = away.T @ away
    weight = torch.linalg.solve(gram + 0.01 * gram.diagonal().mean() * torch.eye(8), away.T @ (y - y.mean(0)))
    islands = {store.entity_id("island1"), store.entity_id("island2")}
    for entity in set(range(50, 64)) - islands:
        expected = y.mean(0) + (sums[entity] - x.mean(0)) @ weight
        torch.testing.assert_close(rows[entity].double(), expected, atol=1e-5, rtol=1e-4)


def test_the_map_finds_an_affine_relation() -> None:
    generator = torch.Generator().manual_seed(0)
    sums, weight = torch.randn(200, 3, generator=generator), torch.randn(3, 3, generator=generator)
    sums[:, 2] = 1.0  # a constant column, as the factor of a bias
    rows = sums @ weight + 2
    fitted = RowMap.fit(sums, rows)
    torch.testing.assert_close(fitted(sums), rows, atol=0.1, rtol=0)
    assert torch.equal(RowMap.fit(sums[:0], rows[:0])(sums), sums)
    torch.testing.assert_close(RowMap.fit(sums[:1], rows[:1])(sums), rows[:1].expand(200, 3))


def test_checkpoints_of_any_number_of_workers_grow_alike(graph: Path, tmp_path: Path, old_run: Path) -> None:
    """One file or several, written and read; bit for bit."""
    import shutil

    extended(graph, old_run, tmp_path / "one")
    shutil.copytree(old_run, tmp_path / "copy")
    run_ranks(3, rewrite, str(tmp_path / "copy"))
    extended(graph, tmp_path / "copy", tmp_path / "three")
    one, three = tensors(tmp_path / "one"), tensors(tmp_path / "three")
    assert one.keys() == three.keys()
    for name, values in one.items():
        assert same(three[name], values), name


def rewrite(ranks: Ranks, folder: str) -> None:
    """Write the newest checkpoint of a run again by several ranks."""
    from distkg.embedding.learner import EmbeddingLearner
    from distkg.training.schedule import Schedule
    from distkg.training.services import LOCAL_SERVICES

    run = RunFolder(Path(folder))
    config = run.read_config()
    learner = EmbeddingLearner(config, ranks, Schedule(config.optimizer, 1), LOCAL_SERVICES)
    checkpoints = Checkpoints(run.checkpoints, ranks, 2)
    name = checkpoints.best_or_newest()
    assert name is not None
    progress = checkpoints.load(name, learner.state())
    checkpoints.save("again", learner.state(), progress, best=True)
    checkpoints.wait()


def test_files_are_cut_and_read_by_any_number_of_ranks(
    graph: Path, tmp_path: Path, old_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extended(graph, old_run, tmp_path / "whole")
    cut = parts_module.write_in_parts
    monkeypatch.setattr(
        "distkg.embedding.growth.checkpoint.write_in_parts", lambda *arguments: cut(*arguments, file_bytes=1000)
    )
    extended(graph, old_run, tmp_path / "cut")
    files = sorted((tmp_path / "cut" / "checkpoints" / FIRST).glob("*.safetensors"))
    assert len(files) == 7  # 64 rows of 8 · 3 + 1 floats
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "cut")
    assert all(same(parts[name], values) for name, values in whole.items())
    first, second = run_ranks(2, go_on, str(tmp_path / "whole")), run_ranks(2, go_on, str(tmp_path / "cut"))
    assert first[0]["metrics"] == second[0]["metrics"]


@pytest.mark.parametrize("old_rows", ["free", "frozen"])
def test_a_grown_run_that_is_resumed_equals_an_undisturbed_one(
    graph: Path, tmp_path: Path, old_run: Path, old_rows: str
) -> None:
    for name in ("whole", "parts"):
        extended(graph, old_run, tmp_path / name, f"train.old_rows={old_rows}", "train.epochs=4")
    go_on(Ranks.single(), str(tmp_path / "whole"))
    go_on(Ranks.single(), str(tmp_path / "parts"), epochs=2)
    go_on(Ranks.single(), str(tmp_path / "parts"), epochs=4)
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(same(resumed[name], values) for name, values in whole.items())


def test_bfloat16_rows_stay_too(graph: Path, tmp_path: Path) -> None:
    train(
        Ranks.single(),
        config_of(graph, model={"name": "complex", "dim": 8, "dtype": "bfloat16"}),
        str(tmp_path / "old"),
    )
    extended(graph, tmp_path / "old", tmp_path / "new", "train.old_rows=frozen")
    start = tensors(tmp_path / "new")["entities"]
    assert start.dtype == torch.bfloat16
    go_on(Ranks.single(), str(tmp_path / "new"))
    end = tensors(tmp_path / "new")["entities"]
    assert torch.equal(start[:50].view(torch.int16), end[:50].view(torch.int16))
    assert not torch.equal(start[50:].view(torch.int16), end[50:].view(torch.int16))


def test_factors_of_an_activation_grow_with_the_relations(graph: Path, tmp_path: Path) -> None:
    hale = {"model": {"name": "rote", "dim": 8}, "objective": {"name": "query_sampling", "activation": "hanon"}}
    train(Ranks.single(), config_of(graph, **hale, optimizer={"name": "adam"}), str(tmp_path / "old"))
    extended(graph, tmp_path / "old", tmp_path / "new", "train.old_rows=frozen")
    scale = "model.hardness.raw_scale"
    before, start = tensors(tmp_path / "old")[scale], tensors(tmp_path / "new")[scale]
    assert (before.shape, start.shape) == ((8, 1), (10, 1))
    assert same(old_relations(start, 4, 5), before)
    go_on(Ranks.single(), str(tmp_path / "new"))
    end = tensors(tmp_path / "new")[scale]
    assert same(old_relations(end, 4, 5), before)
    assert end[4] != start[4]


def test_tied_inverses_have_a_row_for_each_relation(graph: Path, tmp_path: Path) -> None:
    train(
        Ranks.single(), config_of(graph, model={"name": "complex", "dim": 8, "inverse": "tied"}), str(tmp_path / "old")
    )
    extended(graph, tmp_path / "old", tmp_path / "new", "train.old_rows=frozen")
    before, start = tensors(tmp_path / "old")["model.relations"], tensors(tmp_path / "new")["model.relations"]
    assert (before.shape, start.shape) == ((4, 8), (5, 8))
    assert same(start[:4], before)
    go_on(Ranks.single(), str(tmp_path / "new"))
    end = tensors(tmp_path / "new")["model.relations"]
    assert same(end[:4], before)
    assert not torch.equal(end[4], start[4])


def test_settings_that_need_a_grown_store_are_refused_without_one(graph: Path, tmp_path: Path) -> None:
    for key, value in (("facts", "new"), ("old_rows", "frozen")):
        config = config_of(graph, train={key: value})
        with pytest.raises(ConfigError, match=rf"train\.{key}: {value} is for a store that `distkg extend` made"):
            train(Ranks.single(), config, str(tmp_path / key))


def test_settings_that_leave_nothing_to_train_are_refused(graph: Path, tmp_path: Path, old_run: Path) -> None:
    (tmp_path / "facts.tsv").write_text("e0\tr0\te1\ne1\tr1\te0\ne2\tr2\te9\ne3\tr3\te7\n")

    def make(**arguments: Any) -> Any:
        def made(base: Store) -> Any:
            return extend_store(base, arguments.pop("source"), str(tmp_path / "store"), **arguments)

        return made

    facts, store = str(tmp_path / "facts.tsv"), str(tmp_path / "store")
    with pytest.raises(ConfigError, match=r"frozen leaves nothing to train, as data\.store has no new entity"):
        extend_run(old_run, tmp_path / "new", make(source=facts), store, changes=["train.old_rows=frozen"])
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "test.tsv").write_text("e0\tr0\tlate\n")
    with pytest.raises(ConfigError, match=r"the new facts of data\.store are not in train"):
        extend_run(old_run, tmp_path / "new", make(source=str(tmp_path / "held")), store, changes=["train.facts=new"])
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "new").exists()
    assert json.loads((old_run / "result.json").read_text())["metrics"]["test"]["queries"] > 0
