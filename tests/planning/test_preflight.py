from pathlib import Path

import pytest
import torch

from distkg.config import ConfigError, RunConfig
from distkg.data.errors import StoreError
from distkg.data.prepare import prepare
from distkg.negatives import SourceError
from distkg.planning import preflight
from distkg.planning.machine import Machine
from distkg.planning.plan import PlanError


@pytest.fixture
def store(tmp_path: Path) -> str:
    (tmp_path / "train.tsv").write_text("a\tr\tb\na\tr\tc\nb\ts\tc\n")
    (tmp_path / "test.tsv").write_text("c\tr\tb\n")
    return prepare(str(tmp_path), str(tmp_path / "store")).store


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(preflight, "measure", lambda device: Machine(1e11, 1e10))
    monkeypatch.setattr(preflight, "memory_limit", lambda: 12 << 30)


def make_config(store: str = "") -> RunConfig:
    config = RunConfig()
    config.data.store, config.train.workers, config.train.batch_size = store, 3, 5
    return config


def test_a_plan_counts_the_store_that_is_named(store: str) -> None:
    found = preflight.plan_run(make_config(store))
    assert found.parameters == 3 * 256 + 4 * 256
    assert found.available == 4 << 30
    assert found.steps == 1  # five distinct queries: (a, r), (b, r⁻¹), (c, r⁻¹), (b, s), (c, s⁻¹)


def test_splits_with_nothing_to_rank_are_said_before_training(store: str) -> None:
    config = make_config(store)
    no_validation = "valid holds no triples: nothing is validated, and the newest checkpoint is kept, not the best"
    assert preflight.plan_run(config).warnings == (no_validation,)
    config.train.patience, config.optimizer.schedule = 3, "plateau"
    assert preflight.plan_run(config).warnings == (
        f"{no_validation}; train.patience and optimizer.schedule: plateau will do nothing",
    )


def test_a_graph_with_all_splits_needs_no_warning(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.tsv").write_text("a\tr\tb\n" if split == "train" else "b\tr\ta\n")
    assert preflight.plan_run(make_config(prepare(str(tmp_path), str(tmp_path / "store")).store)).warnings == ()


def test_a_foundation_model_is_told_of_missing_tokens_and_splits(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("a\tr\tb\na\tr\tc\nb\ts\tc\n")
    address = prepare(str(tmp_path), str(tmp_path / "store")).store
    config = RunConfig.model_validate(
        {
            "data": {"graphs": [address]},
            "model": {"name": "tofu", "options": {"width": 8, "layers": 2, "hidden": 8, "modalities": {"text": 4}}},
            "objective": {"name": "self_adversarial"},
        }
    )
    assert preflight.plan_run(config).warnings == (
        "the model reads tokens of text, and no graph has them, so it learns from facts alone; `distkg tokens` makes "
        "them",
        "valid holds no triples: nothing is validated, and the newest checkpoint is kept, not the best",
        "test holds no triples: the run will end without test metrics",
    )


def test_large_graphs_are_planned_without_counting_queries(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distkg.embedding.family.COUNTED_TRIPLES", 2)
    assert preflight.plan_run(make_config(store)).steps == 2  # for six queries, two of each triple


def test_a_configuration_without_a_store_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"data\.store is empty.*--set data\.store"):
        preflight.plan_run(make_config())


@pytest.mark.parametrize("objective", ["one_vs_all", "logistic", "query_sampling", "non_negative"])
def test_a_batch_that_leaves_a_worker_without_a_query_is_refused(store: str, objective: str) -> None:
    config = make_config(store)
    config.model.name, config.objective.name, config.train.batch_size = "rote", objective, 2
    message = r"train\.batch_size: 2 leaves some of 3 workers without a query\. Set it to 3 at least"
    with pytest.raises(ConfigError, match=message):
        preflight.plan_run(config)


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        preflight.plan_run(make_config(str(tmp_path / "none")))


def test_a_graph_that_a_source_cannot_draw_from_is_refused(store: str) -> None:
    config = make_config(store)
    config.objective.name = "logistic"
    config.negatives.source = "typed"
    with pytest.raises(SourceError, match=r"negatives\.source: typed needs classes.*entity_types\.tsv"):
        preflight.plan_run(config)
    config.negatives.source = "mixture"
    config.negatives.options = {"parts": [{"source": "uniform"}, {"source": "typed", "weight": [[0, 0], [1, 1]]}]}
    with pytest.raises(SourceError, match=r"negatives\.source: typed needs classes"):
        preflight.plan_run(config)
    config.negatives.source, config.negatives.options = "relational", {}
    config.negatives.pool.actors, config.negatives.pool.fallback = 1, "classes"
    with pytest.raises(SourceError, match=r"negatives\.source: classes needs classes"):
        preflight.plan_run(config)
    config.negatives.pool.actors = 0
    assert preflight.plan_run(config).steps == 1, "what stands in is not asked where there is no pool"


def test_the_limit_that_is_configured_wins(store: str) -> None:
    config = make_config(store)
    config.cluster.memory_per_worker_gb = 0.5
    with pytest.raises(PlanError, match=r"0\.50 GiB are available"):
        preflight.plan_run(config)


def test_memory_of_another_cluster_is_not_guessed(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert preflight.plan_run(make_config(store)).available is None
    config = make_config(store)
    config.cluster.address = "local"
    assert preflight.plan_run(config).available == 4 << 30


@pytest.mark.parametrize(("address", "joins"), [(None, False), ("local", False), ("auto", True), ("h:6379", True)])
def test_which_addresses_are_other_clusters(address: str | None, joins: bool) -> None:
    config = make_config()
    config.cluster.address = address
    assert preflight.joins_cluster(config) is joins


def test_workers_beyond_the_cores_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.os, "cpu_count", lambda: 2)
    config = make_config()
    config.train.workers = 8
    assert preflight.worker_machine(config).flops == 1e11 / 4
    config.train.workers = 2
    assert preflight.worker_machine(config).flops == 1e11


def test_measuring_uses_the_threads_of_a_worker_and_gives_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = torch.get_num_threads()

    def record(device: str) -> Machine:
        seen.append(torch.get_num_threads())
        return Machine(1e11, 1e10)

    monkeypatch.setattr(preflight, "measure", record)
    config = make_config()
    config.cluster.cpus_per_worker = 2.5
    preflight.worker_machine(config)
    assert seen == [2]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "unifrom"}, "there is no negative source named 'unifrom'"),
        ({"source": "k_hop", "options": {"hopps": 3}}, r"negatives\.options\.hopps: .*Did you mean hops"),
    ],
)
def test_negatives_are_checked_also_where_the_objective_draws_none(store: str, change: dict, message: str) -> None:  # type: ignore[type-arg]
    config = RunConfig.model_validate({"data": {"store": store}, "negatives": change})
    assert config.objective.name == "one_vs_all"
    with pytest.raises(ValueError, match=message):
        preflight.plan_run(config)
