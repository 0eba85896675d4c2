from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distkg.config import ConfigError, RunConfig
from distkg.embedding.plan import count_distinct_queries, plan
from distkg.planning.machine import Machine
from distkg.planning.plan import PlanError
from distkg.planning.sizes import BASE_PROCESS
from distkg.registry import UnknownNameError

MACHINE = Machine(flops=1e11, bandwidth=1e10)


@dataclass(frozen=True)
class Counts:
    entities: int = 1_000_000
    relations: int = 100
    triples: dict[str, int] = field(default_factory=lambda: {"train": 10_000_000, "valid": 1000, "test": 1000})


def make_config(**changes: Any) -> RunConfig:
    tree: dict[str, dict[str, Any]] = {
        "model": {"name": "distmult", "dim": 128},
        "objective": {"name": "logistic"},
        "optimizer": {"name": "rowwise_adagrad"},
        "negatives": {"count": 100, "chunk_size": 256},
        "train": {"workers": 2, "batch_size": 1024},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        tree.setdefault(section, {})[name] = value
    return RunConfig.model_validate(tree)


@pytest.mark.parametrize(
    ("changes", "table", "state"),
    [
        ({}, 500_000 * 128 * 4, 500_000 * 4),
        ({"optimizer__name": "adagrad"}, 500_000 * 128 * 4, 500_000 * 128 * 4),
        ({"optimizer__name": "adam"}, 500_000 * 128 * 4, 500_000 * (128 + 128 + 1) * 4),
        ({"model__dtype": "bfloat16"}, 500_000 * 128 * 2, 500_000 * 4),
        ({"train__workers": 3}, 333_334 * 128 * 4, 333_334 * 4),
        ({"model__name": "cp"}, 500_000 * 256 * 4, 500_000 * 4),  # an entity row has two roles
    ],
)
def test_table_and_state(changes: dict[str, Any], table: int, state: int) -> None:
    memory = plan(make_config(**changes), Counts(), None).memory
    assert (memory["entity table"], memory["optimizer state"]) == (table, state)


@pytest.mark.parametrize(("inverse", "rows"), [("learned", 200), ("tied", 100)])
def test_relations_are_whole_on_every_worker(inverse: str, rows: int) -> None:
    # Value, gradient and accumulator of every float.
    config = make_config(model__inverse=inverse, optimizer__name="adagrad")
    assert plan(config, Counts(), None).memory["relations and networks"] == rows * 128 * 3 * 4


def test_a_scorer_with_a_matrix_per_relation() -> None:
    config = make_config(model__name="rescal", optimizer__name="adagrad")
    assert plan(config, Counts(), None).memory["relations and networks"] == 200 * 128 * 128 * 3 * 4


def test_exchange_of_shared_negatives() -> None:
    # 1,024 queries of this worker in 4 chunks that share 100 negatives: 1,024 + 400 rows of 512 bytes, 5 buffers.
    assert plan(make_config(), Counts(), None).memory["exchange buffers"] == 5 * 1424 * 512
    assert plan(make_config(train__workers=1), Counts(), None).memory["exchange buffers"] == 2 * (2048 + 800) * 512


def test_exchange_of_independent_negatives_is_bounded_by_the_graph() -> None:
    config = make_config(negatives__shared=False)
    assert plan(config, Counts(), None).memory["exchange buffers"] == 5 * (1024 + 102_400) * 512
    assert plan(config, Counts(entities=5000), None).memory["exchange buffers"] == 5 * 5000 * 512


def test_overlap_keeps_one_more_set_of_rows() -> None:
    assert plan(make_config(train__overlap=True), Counts(), None).memory["exchange buffers"] == 6 * 1424 * 512


def test_objective_over_all_entities_holds_the_gradient_of_its_shard() -> None:
    config = make_config(objective__name="one_vs_all", objective__score_memory_mb=64)
    memory = plan(config, Counts(), None).memory["objective"]
    gradient, vectors, block = 500_000 * 128 * 4, 6 * 1024 * 128 * 4, 64 << 20
    assert memory == gradient + vectors + block
    config.train.overlap = True  # the last step's gradient waits while the next is computed
    assert plan(config, Counts(), None).memory["objective"] == memory + gradient
    config.model.name = "cp"  # rows twice as wide; the answers' half apart, and its gradient
    assert plan(config, Counts(), None).memory["objective"] == 4 * 2 * gradient + 2 * vectors + block


def test_objective_with_negatives() -> None:
    # 1,024 queries of this worker: 8 vectors each, 2 for each of 400 negatives, 4 floats a score.
    memory = plan(make_config(), Counts(), None).memory["objective"]
    assert memory == (8 * 1024 + 2 * 400) * 128 * 4 + 4 * 1024 * 101 * 4


def test_a_checkpoint_copies_the_shard_and_its_optimizer_state() -> None:
    memory = plan(make_config(optimizer__name="adagrad"), Counts(), None).memory
    assert memory["checkpoint copy"] == 2 * 500_000 * 128 * 4 + 200 * 128 * 2 * 4


def test_filtered_negatives_need_all_training_facts_on_every_worker() -> None:
    plain = plan(make_config(), Counts(), None).memory["known facts"]
    assert plan(make_config(negatives__filter=True), Counts(), None).memory["known facts"] == plain + 20_000_000 * 60


def test_what_a_gpu_holds_is_counted_apart() -> None:
    on_cpu = plan(make_config(), Counts(), None)
    on_gpu = plan(make_config(cluster__gpus_per_worker=1), Counts(), None)
    assert on_cpu.gpu_memory == {}
    assert on_gpu.memory | on_gpu.gpu_memory == on_cpu.memory
    assert "entity table" in on_gpu.gpu_memory
    assert "base process" in on_gpu.memory


def test_a_gpu_that_is_too_small_is_named() -> None:
    config = make_config(cluster__gpus_per_worker=1)
    with pytest.raises(PlanError) as caught:
        plan(config, Counts(), 64 << 30, gpu_available=100 << 20)
    assert "of GPU memory per worker, and 0.10 GiB are available: evaluation 0.25 GiB, entity table 0.24 GiB" in str(
        caught.value
    )
    assert "memory_per_worker_gb" not in str(caught.value)


def test_evaluation_is_bounded_by_its_setting() -> None:
    large = plan(make_config(evaluate__memory_mb=100), Counts(), None).memory["evaluation"]
    assert large == (100 << 20) + 2000 * 64
    small = plan(make_config(evaluate__memory_mb=100), Counts(entities=2000), None).memory["evaluation"]
    assert small == 256 * 1000 * 4 + 4 * 2000 * 128 * 4 + 2000 * 64


def test_total_is_the_sum_and_counts_the_process() -> None:
    found = plan(make_config(), Counts(), None)
    assert found.memory["base process"] == BASE_PROCESS
    assert found.total_bytes == sum(found.memory.values())
    assert found.fits
    assert found.seconds is None
    assert found.parameters == 1_000_000 * 128 + 200 * 128


def test_a_run_that_cannot_fit_is_refused_with_numbers_and_knobs() -> None:
    config = make_config(optimizer__name="adam", train__workers=1)
    with pytest.raises(PlanError) as caught:
        plan(config, Counts(entities=20_000_000), 8 << 30)
    text = str(caught.value)
    assert "of memory per worker, and 8.00 GiB are available" in text
    assert "entity table 9.54 GiB" in text
    assert "optimizer state 19.15 GiB" in text
    for knob in ("optimizer.name=rowwise_adagrad", "model.dtype=bfloat16", "train.workers=4", "model.dim=64"):
        assert f"--set {knob}: " in text
    assert caught.value.plan.total_bytes > 28 << 30


def test_the_refusal_says_which_knob_is_enough() -> None:
    config = make_config(train__workers=1)  # 9.54 GiB of table, and as much while a checkpoint is written
    with pytest.raises(PlanError) as caught:
        plan(config, Counts(entities=20_000_000), 16 << 30)
    lines = {line.split(":")[0].strip(): line for line in str(caught.value).splitlines()[2:]}
    assert lines["--set model.dtype=bfloat16"].endswith("(fits)")
    assert lines["--set model.dim=64"].endswith("(fits)")
    assert "if each worker has as much memory" in lines["--set train.workers=2"]
    assert "--set optimizer.name=rowwise_adagrad" not in lines
    assert "--set objective.score_memory_mb=16" not in lines


def test_the_same_run_fits_in_enough_memory() -> None:
    needed = plan(make_config(), Counts(), None).total_bytes
    assert plan(make_config(), Counts(), needed).fits
    with pytest.raises(PlanError):
        plan(make_config(), Counts(), needed - 1)


def test_an_elastic_run_is_planned_for_its_fewest_workers() -> None:
    elastic = make_config(train__workers=4, cluster__min_workers=2)
    assert plan(elastic, Counts(), None).memory["entity table"] == 500_000 * 128 * 4


def test_steps() -> None:
    assert plan(make_config(), Counts(), None).steps == 9766  # ceil(10,000,000 / 1,024)
    grouped = make_config(objective__name="one_vs_all")
    assert plan(grouped, Counts(), None).steps == 19532  # at most two distinct queries per triple
    assert plan(grouped, Counts(), None, distinct_queries=4_000_000).steps == 3907
    apart = make_config(objective__name="one_vs_all", objective__group_answers=False)
    assert plan(apart, Counts(), None).steps == 9766


def test_compute_time_of_a_step() -> None:
    # 1,024 queries × (100 negatives + 1 answer) × 128 floats × 2 operations × 3 products at 1e11 per second.
    found = plan(make_config(train__batch_size=1024), Counts(triples={"train": 1024}), None, MACHINE)
    assert found.seconds is not None
    assert found.seconds["compute"] == pytest.approx(1024 * 101 * 128 * 2 * 3 / 1e11)


def test_a_distance_taken_pair_by_pair_costs_more_than_a_product() -> None:
    def compute(name: str, **options: str) -> float:
        config = make_config(model__name=name, model__options=options)
        found = plan(config, Counts(), None, MACHINE).seconds
        assert found is not None
        return found["compute"]

    assert compute("transe", norm="l2") == compute("distmult")
    assert compute("transe", norm="l1") == pytest.approx(6 * compute("distmult"))


def test_exponentials_over_all_entities_cost_more_than_their_products() -> None:
    config = make_config(train__workers=1, train__batch_size=1024, objective__name="one_vs_all")
    config.objective.group_answers = False
    found = plan(config, Counts(entities=5000, triples={"train": 1024}), None, MACHINE).seconds
    assert found is not None
    # 2,048 queries × 5,000 entities × (128 floats × 3 products + 200) × 2 operations at 1e11 per second.
    assert found["compute"] == pytest.approx(2048 * 5000 * (128 * 3 + 200) * 2 / 1e11)


def test_what_sources_hold_counts() -> None:
    def held(source: str, workers: int = 2, **options: object) -> int:
        config = make_config(negatives__source=source, negatives__options=options, train__workers=workers)
        return plan(config, Counts(), None).memory["negative source"]

    assert held("uniform") == 0
    triples = 10_000_000 * 12
    assert held("relational") == 20_000_000 * 120 + triples
    # Known answers, and of each worker's half of the queries 10 candidates of 4 bytes, a key and an age, twice.
    assert held("near_miss", neighbours=10) == 20_000_000 * 60 + 10_000_000 * 2 * (40 + 12) + triples
    assert held("mixture", parts=[{"source": "uniform"}, {"source": "k_hop"}]) == 20_000_000 * 40 + triples


def test_one_worker_exchanges_nothing() -> None:
    found = plan(make_config(train__workers=1), Counts(), None, MACHINE)
    assert found.seconds is not None
    assert found.seconds["exchange"] == 0


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="no scorer named 'complx'"):
        plan(make_config(model__name="complx"), Counts(), None)
    with pytest.raises(ConfigError, match=r"model\.options\.norm"):
        plan(make_config(model__name="transe", model__options={"norm": "l7"}), Counts(), None)


def test_a_core_tensor_of_hundreds_of_megabytes_is_counted_and_not_made() -> None:
    found = plan(make_config(model__name="tucker", model__dim=600), Counts(), None)
    assert found.memory["relations and networks"] > 600**3 * 4 * 2


@given(
    entities=st.integers(2, 10**8),
    workers=st.integers(1, 64),
    name=st.sampled_from(["one_vs_all", "logistic", "k_vs_all"]),
    dim=st.sampled_from([16, 64, 256]),
)
def test_more_workers_never_need_more_memory_each(entities: int, workers: int, name: str, dim: int) -> None:
    def total(count: int) -> int:
        config = make_config(objective__name=name, model__dim=dim, train__workers=count, train__overlap=True)
        return plan(config, Counts(entities=entities), None).total_bytes - BASE_PROCESS

    # From one worker to two, buffers for the exchange appear.
    if workers > 1:
        assert total(workers + 1) <= total(workers)
    assert total(workers) > 0


def test_distinct_queries_of_both_directions() -> None:
    # (0,0,1) and (0,0,2) ask (0, 0) once and their inverses apart; the repeated triple adds nothing.
    batches = [np.array([[0, 0, 1], [0, 0, 2]], np.int32), np.array([[0, 0, 1], [3, 1, 1]], np.int32)]
    assert count_distinct_queries(batches, relations=2) == 5


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=40))
def test_distinct_queries_equal_a_set(triples: list[tuple[int, int, int]]) -> None:
    expected = {(h, r) for h, r, _ in triples} | {(t, r + 4) for _, r, t in triples}
    array = np.array(triples, np.int32)
    assert count_distinct_queries([array[:7], array[7:]], relations=4) == len(expected)
