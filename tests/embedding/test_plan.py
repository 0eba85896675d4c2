import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distkg.config import ConfigError, RunConfig
from distkg.embedding.footprint import query_floats, step_sizes
from distkg.embedding.plan import Times, bytes_per_step, count_distinct_queries, measured_times, plan
from distkg.embedding.scorers import make_scorer
from distkg.planning.machine import Machine
from distkg.planning.plan import Plan, PlanError
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


RELATIONS = 200 * 512 + 200
"""Bytes of the gradients of all relations and their inverses, and of one for each that tells whether a step uses it."""


@pytest.mark.parametrize(
    ("changes", "relations"),
    [
        ({}, RELATIONS),
        ({"train__batch_size": 4}, 8 * 512 + 200),  # eight queries use eight rows at most
        ({"train__batch_size": 4, "model__inverse": "tied"}, 100 * 512),  # 51 KB are summed whole
    ],
)
def test_a_step_sums_the_gradients_of_the_relations_that_it_uses(changes: dict[str, Any], relations: int) -> None:
    config = make_config(**changes)
    rows = step_sizes(config, Counts()).rows * 512
    # Two workers: each sends and receives half of the rows and as many gradients, and a sum once.
    assert bytes_per_step(config, Counts()) == 2 * rows + 2 * relations


def test_exchange_of_shared_negatives() -> None:
    # 1,024 queries of this worker in 4 chunks that share 100 negatives: 1,024 + 400 rows of 512 bytes, 5 buffers.
    assert plan(make_config(), Counts(), None).memory["exchange buffers"] == 5 * 1424 * 512 + RELATIONS
    assert plan(make_config(train__workers=1), Counts(), None).memory["exchange buffers"] == 2 * (2048 + 800) * 512


def test_exchange_of_independent_negatives_is_bounded_by_the_graph() -> None:
    config = make_config(negatives__shared=False)
    assert plan(config, Counts(), None).memory["exchange buffers"] == 5 * (1024 + 102_400) * 512 + RELATIONS
    assert plan(config, Counts(entities=5000), None).memory["exchange buffers"] == 5 * 5000 * 512 + RELATIONS


def test_overlap_keeps_one_more_set_of_rows() -> None:
    assert (
        plan(make_config(train__overlap=True), Counts(), None).memory["exchange buffers"] == 6 * 1424 * 512 + RELATIONS
    )


def test_objective_over_all_entities_holds_the_gradient_of_its_shard() -> None:
    config = make_config(objective__name="one_vs_all", objective__score_memory_mb=64)
    memory = plan(config, Counts(), None).memory["objective"]
    # DistMult's transform takes 6 vectors of each of 512 queries of this worker; all workers' 1,024 take 4.
    gradient, vectors, block = 500_000 * 128 * 4, int(1.8 * (6 * 512 + 4 * 1024) * 128) * 4, 96 << 20
    assert memory == gradient + vectors + block
    config.train.overlap = True  # the last step's gradient waits while the next is computed
    assert plan(config, Counts(), None).memory["objective"] == memory + gradient
    config.model.name = "cp"  # rows twice as wide; the answers' half apart, and its gradient
    transform = int(1.8 * (8 / 2 * 512 + 4 * 1024) * 2 * 128) * 4
    assert plan(config, Counts(), None).memory["objective"] == 4 * 2 * gradient + transform + block


def test_objective_with_negatives() -> None:
    # 1,024 queries of this worker: 6 vectors each in DistMult's transform and 4 around it, 2 for each of 400 negatives,
    # 5.5 floats a score; and the heap's fragments.
    memory = plan(make_config(), Counts(), None).memory["objective"]
    assert memory == int(1.8 * 4 * ((10 * 1024 + 2 * 400) * 128 + 5.5 * 1024 * 101))


@pytest.mark.parametrize(("name", "floats"), [("distmult", 6 * 64), ("pairre", 13.03125 * 64), ("rescal", 132 * 64)])
def test_the_transform_of_a_scorer_is_counted(name: str, floats: float) -> None:
    with torch.device("meta"):
        scorer = make_scorer(make_config(model__name=name, model__dim=64).model)
    assert query_floats(scorer) == floats


def test_a_transform_that_reads_values_has_an_upper_bound_where_there_are_layers() -> None:
    with torch.device("meta"):
        scorer = make_scorer(make_config(model__dim=64).model)

    def transform(anchor: torch.Tensor, relation: torch.Tensor) -> torch.Tensor:
        return anchor * float(relation.detach().sum())  # no number on the device `meta`

    scorer.query = transform  # type: ignore[method-assign]
    # anchor, relation, query, and the gradients of query and anchor
    assert query_floats(scorer) == 5 * 64
    with torch.device("meta"):
        scorer.layer = torch.nn.Linear(64, 64)
    assert query_floats(scorer) == 12 * 64


def test_a_checkpoint_copies_the_shard_and_its_optimizer_state() -> None:
    memory = plan(make_config(optimizer__name="adagrad"), Counts(), None).memory
    assert memory["checkpoint copy"] == 2 * 500_000 * 128 * 4 + 200 * 128 * 2 * 4


def test_what_is_left_of_an_epoch_is_found_in_memory_that_steps_use_later() -> None:
    few = Counts(triples={"train": 1_000_000, "valid": 1000, "test": 1000})
    assert "continued epoch" not in plan(make_config(), few, None).memory
    many = Counts(triples={"train": 400_000_000, "valid": 1000, "test": 1000})
    for gpus in (0.0, 1.0):
        memory = plan(make_config(cluster__gpus_per_worker=gpus), many, None).memory
        later = [
            memory.get(use, 0) for use in ("checkpoint copy", "exchange buffers", "objective", "evaluation", "batches")
        ]
        assert memory["continued epoch"] + sum(later) == 200_000_000 * 56


def test_a_table_on_disk_is_counted_as_disk() -> None:
    in_memory = plan(make_config(optimizer__name="adagrad"), Counts(), None)
    config = make_config(optimizer__name="adagrad", train__table_storage="disk")
    on_disk = plan(config, Counts(), None, disk_available=1 << 40)
    assert on_disk.disk == {"entity table": 500_000 * 128 * 4, "optimizer state": 500_000 * 128 * 4}
    assert not in_memory.disk
    relations = 200 * 128 * 4 * 2
    assert on_disk.memory["checkpoint copy"] == relations  # rows are written from the file
    # The rows of two steps, each on a page of the table and a page of the state.
    assert on_disk.memory["pages of a step"] == 2 * 2 * 1424 * 4096
    rest = set(on_disk.memory) - {"checkpoint copy", "pages of a step", "continued epoch"}
    assert {use: on_disk.memory[use] for use in rest} == {use: in_memory.memory[use] for use in rest}
    assert on_disk.disk_bytes == 2 * 500_000 * 128 * 4 == on_disk.to_dict()["disk_bytes"]


def test_a_disk_that_is_too_small_is_named() -> None:
    config = make_config(optimizer__name="adagrad", train__table_storage="disk")
    with pytest.raises(
        PlanError, match=r"needs 0\.48 GiB of disk in train\.table_folder per worker, and 0\.1"
    ) as caught:
        plan(config, Counts(), 64 << 30, disk_available=100 << 20)
    assert "optimizer.name=rowwise_adagrad" in str(caught.value)


def test_too_little_memory_for_the_pages_of_the_table_is_a_warning() -> None:
    config = make_config(optimizer__name="adagrad", train__table_storage="disk")
    needed = plan(config, Counts(), None).total_bytes
    assert not plan(config, Counts(), needed + 2 * 500_000 * 128 * 4).warnings
    (warning,) = plan(config, Counts(), needed + (100 << 20)).warnings
    assert "take 0.48 GiB of disk per worker, and 0.10 GiB of memory are left for their pages" in warning
    assert "Set train.resident_share: 0.2, and" in warning  # 100 of 488 MiB


def test_a_table_in_buckets_needs_the_memory_of_its_partitions() -> None:
    """Of 64 partitions, 14 in use and 2 that are read and written."""
    table = 2 * 500_000 * 128 * 4
    config = make_config(optimizer__name="adagrad", train__table_storage="disk")
    at_random = plan(config, Counts(), None)
    config = make_config(optimizer__name="adagrad", train__table_storage="disk", train__resident_share=0.25)
    buckets = plan(config, Counts(), None)
    assert buckets.memory["resident partitions"] == table // 4
    assert buckets.memory["pages of a step"] == at_random.memory["pages of a step"]
    more = buckets.memory["training triples"] - at_random.memory["training triples"]
    assert more == 20 * 5_000_000
    assert not plan(config, Counts(), buckets.total_bytes + table).warnings
    (warning,) = plan(config, Counts(), buckets.total_bytes).warnings
    assert "an epoch reads 1.4 GiB and writes as much, which the estimate of time leaves out" in warning


def test_a_table_that_does_not_fit_is_offered_the_disk() -> None:
    with pytest.raises(
        PlanError, match=r"train\.table_storage=disk: 1\.\d\d GiB and 2\.38 GiB of disk per worker \(fits"
    ):
        plan(make_config(optimizer__name="adagrad"), Counts(entities=5_000_000), 3 << 30)


def test_filtered_negatives_need_all_training_facts_on_every_worker() -> None:
    plain = plan(make_config(), Counts(), None).memory["known facts"]
    assert plan(make_config(negatives__filter=True), Counts(), None).memory["known facts"] == plain + 20_000_000 * 60


def test_what_a_gpu_holds_is_counted_apart() -> None:
    on_cpu = plan(make_config(), Counts(), None)
    on_gpu = plan(make_config(cluster__gpus_per_worker=1), Counts(), None)
    assert on_cpu.gpu_memory == {}
    expected = {**on_cpu.memory, "evaluation": on_gpu.gpu_memory["evaluation"]}
    expected["continued epoch"] = on_gpu.memory["continued epoch"]  # less of what steps use later is there
    made_there = {"batches on the GPU": on_gpu.gpu_memory["batches on the GPU"]}
    assert on_gpu.memory | on_gpu.gpu_memory == expected | made_there
    # A GPU scores many rows at once, a CPU those that fit into its cache.
    assert on_gpu.gpu_memory["evaluation"] > 256 << 20 > on_cpu.memory["evaluation"]
    assert "entity table" in on_gpu.gpu_memory
    assert "base process" in on_gpu.memory


def test_a_gpu_holds_triples_and_known_facts_to_make_batches_of() -> None:
    def there(**settings: Any) -> int | None:
        return plan(make_config(cluster__gpus_per_worker=1, **settings), Counts(), None).gpu_memory.get(
            "batches on the GPU"
        )

    plain, filtered = there(), there(negatives__filter=True)
    assert plain is not None
    assert filtered is not None
    # Of 10 M triples, a worker of two has 5 M: 12 bytes each, and 8 bytes in the order of each of three epochs.
    assert 5_000_000 * 36 < plain < 5_000_000 * 36 + (16 << 20)
    # Two facts of each triple, and at most as many queries, in 8 bytes each.
    assert filtered - plain >= 10_000_000 * 32
    assert there(negatives__source="k_hop") is None
    assert there(train__resident_share=0.5) is None
    one, several = (make_config(cluster__gpus_per_worker=1, train__workers=workers) for workers in (1, 2))
    # Steps of one GPU are captured, and two graphs keep their memory; the step is that of twice as many queries.
    objectives = [plan(each, Counts(), None).gpu_memory["objective"] for each in (one, several)]
    assert objectives[0] == pytest.approx(6 * objectives[1], rel=0.01)


def test_making_batches_on_a_gpu_takes_its_bandwidth() -> None:
    machine = Machine(flops=1e13, bandwidth=1e12)
    seconds = plan(make_config(cluster__gpus_per_worker=1), Counts(), None, machine).seconds
    slower = plan(make_config(cluster__gpus_per_worker=1), Counts(), None, replace(machine, bandwidth=1e11)).seconds
    assert slower["data"] == pytest.approx(10 * seconds["data"])


def test_a_gpu_that_is_too_small_is_named() -> None:
    config = make_config(cluster__gpus_per_worker=1)
    with pytest.raises(PlanError) as caught:
        plan(config, Counts(), 64 << 30, gpu_available=100 << 20)
    assert "of GPU memory per worker, and 0.10 GiB are available: evaluation 0.25 GiB, entity table 0.24 GiB" in str(
        caught.value
    )
    assert "memory_per_worker_gb" not in str(caught.value)


def test_evaluation_is_bounded_by_its_setting() -> None:
    queries = 2000 * 64 + 1000 * 24
    bounded = plan(make_config(evaluate__memory_mb=4), Counts(), None).memory["evaluation"]
    assert bounded == (4 << 20) + queries
    # 256 queries and 1,024 rows at once, and the vectors of all queries.
    large = plan(make_config(evaluate__memory_mb=100), Counts(), None).memory["evaluation"]
    assert large == 2 * 256 * 1024 * 4 + 8 * 1000 * 128 * 4 + queries
    few = make_config(evaluate__memory_mb=100, evaluate__max_final_triples=10, evaluate__max_valid_triples=50)
    small = plan(few, Counts(entities=900), None).memory["evaluation"]
    assert small == 2 * 256 * 450 * 4 + 8 * 50 * 128 * 4 + 2 * 50 * 64 + 1000 * 24


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
    # 1,024 queries × (100 negatives + 1 answer): 128 floats × 2 operations × 3 products at 1e11 per second, and 400
    # bytes at 1e10.
    found = plan(make_config(train__batch_size=1024), Counts(triples={"train": 1024}), None, MACHINE)
    assert found.seconds is not None
    assert found.seconds["compute"] == pytest.approx(1024 * 101 * (128 * 2 * 3 / 1e11 + 400 / 1e10))


def test_a_distance_taken_pair_by_pair_costs_more_than_a_product() -> None:
    def compute(name: str, **options: str) -> float:
        config = make_config(model__name=name, model__options=options)
        found = plan(config, Counts(), None, Machine(flops=1e11, bandwidth=math.inf)).seconds
        assert found is not None
        return found["compute"]

    assert compute("transe", norm="l2") == compute("distmult")
    assert compute("transe", norm="l1") == pytest.approx(6 * compute("distmult"))


def test_composed_entities_take_tokens_and_replicated_vectors_instead_of_rows() -> None:
    pieces = {"anchors": 500, "nearest": 10, "relations": 4, "encoder": "mlp"}
    config = make_config(model__dim=64, model__entities="nodepiece", model__nodepiece=pieces, optimizer__name="adam")
    result = plan(config, Counts(), None)
    stored = plan(make_config(model__dim=64, optimizer__name="adam"), Counts(), None)
    # 24 places for tokens of 4 bytes; vectors of 500 anchors, 16 distances, both directions of relations and none
    assert result.memory["entity table"] == result.rows_per_worker * 24 * 4
    assert result.memory["optimizer state"] == 0
    assert stored.memory["optimizer state"] > 0
    relations = Counts().relations
    vectors = (500 + 16 + 2 * relations + 1) * 64
    network = 64 * 128 + 128 + 128 * 64 + 64
    assert result.parameters == 2 * relations * 64 + vectors + network
    summed = config.model_copy(deep=True)
    summed.model.nodepiece.encoder = "sum"
    assert plan(summed, Counts(), None).parameters == 2 * relations * 64 + vectors
    # The search, which is over before a step: 10 of the nearest anchors of all entities, and 20 million directions.
    search = 20_000_000 * 64 + Counts().entities * (10 * 5 + 3 * 8)
    later = sum(
        result.memory[use] for use in ("checkpoint copy", "exchange buffers", "objective", "evaluation", "batches")
    )
    assert result.memory["search for anchors"] == search - later


def test_a_refused_run_with_composed_entities_is_offered_no_setting_of_stored_ones() -> None:
    config = make_config(model__entities="nodepiece")
    with pytest.raises(PlanError) as caught:
        plan(config, Counts(), 100 << 20)
    for key in ("model.dtype", "train.table_storage", "optimizer.name"):
        assert key not in str(caught.value)


def test_a_distance_taken_pair_by_pair_is_measured() -> None:
    counts, work = Counts(triples={"train": 1024}), make_config(model__name="transe", model__options={"norm": "l1"})
    found = plan(
        work, counts, None, Machine(flops=1e11, bandwidth=math.inf), times=Times(query=1e-5, pair=1e-6)
    ).seconds
    assert found is not None
    assert found["compute"] == pytest.approx(1024 * 1e-5 + 1024 * 101 * 1e-6)
    assert measured_times(make_config(model__name="distmult"), 0.01).pair is None
    assert (
        measured_times(make_config(model__name="atth"), 0.01).pair is None
    )  # its queries and candidates differ in width
    measured = [("transe", {"norm": "l1"}), *((name, {}) for name in ("rotate", "pairre", "trans", "hake"))]
    for work.model.name, work.model.options in measured:
        taken = measured_times(work, seconds=0.01).pair
        assert taken is not None
        assert 128 * 1e-12 < taken < 128 * 1e-7  # a term takes less than a nanosecond or so


def test_exponentials_over_all_entities_cost_more_than_their_products() -> None:
    config = make_config(train__workers=1, train__batch_size=1024, objective__name="one_vs_all")
    config.objective.group_answers = False
    found = plan(config, Counts(entities=5000, triples={"train": 1024}), None, MACHINE).seconds
    assert found is not None
    # 2,048 queries × 5,000 entities × (128 floats × 3 products + 200) × 2 operations at 1e11 per second.
    assert found["compute"] == pytest.approx(2048 * 5000 * (128 * 3 + 200) * 2 / 1e11)


def test_relation_prediction_compares_every_query_with_every_relation() -> None:
    counts, machine = Counts(triples={"train": 1024}), Machine(flops=1e11, bandwidth=math.inf)

    def compute(weight: float, **changes: Any) -> float:
        config = make_config(train__workers=1, objective__relation_prediction=weight, **changes)
        found = plan(config, counts, None, machine, times=Times(query=0.0, pair=0.0)).seconds
        assert found is not None
        return found["compute"]

    # Of 2,048 queries with 100 relations each: 128 floats × 2 operations × 3 products at 1e11 per second.
    assert compute(0.5) - compute(0.0) == pytest.approx(2048 * 100 * 128 * 2 * 3 / 1e11)
    # Without a direct form, there is a query vector for each.
    apart = {"model__name": "rotate"}
    assert compute(0.5, **apart) - compute(0.0, **apart) == pytest.approx(12 * 2048 * 100 * 128 * 2 * 3 / 1e11)
    measured = measured_times(make_config(model__name="rotate", objective__relation_prediction=0.5), 0.01)
    assert measured.relation is not None
    assert 128 * 1e-12 < measured.relation < 128 * 1e-7
    assert measured_times(make_config(), 0.01).relation is None


def test_an_average_of_weights_takes_one_more_table_and_its_copy() -> None:
    plain, averaged = (plan(make_config(train__average=kind), Counts(), None).memory for kind in ("none", "ema"))
    table, relations = 500_000 * 128 * 4, 200 * 128 * 4
    assert "average of weights" not in plain
    assert averaged["average of weights"] == table
    assert averaged["relations and networks"] - plain["relations and networks"] == relations
    assert averaged["checkpoint copy"] - plain["checkpoint copy"] == table + relations
    on_disk = plan(make_config(train__average="mean", train__table_storage="disk"), Counts(), None)
    assert on_disk.disk["average of weights"] == table


def test_products_of_dura_are_two_more_transforms_of_a_query() -> None:
    counts, machine = Counts(triples={"train": 1024}), Machine(flops=1e11, bandwidth=math.inf)

    def compute(name: str) -> float:
        config = make_config(train__workers=1, regularizer__name=name)
        found = plan(config, counts, None, machine, times=Times(query=1e-5, pair=0.0)).seconds
        assert found is not None
        return found["compute"]

    assert compute("dura") - compute("l2") == pytest.approx(2 * 2048 * 1e-5)


def test_relation_prediction_has_memory_of_its_own() -> None:
    config = make_config(train__workers=1, objective__relation_prediction=0.5)
    assert "relation prediction" not in plan(make_config(), Counts(), None).memory
    # Five vectors for each relation, and a block of ten pairs: four numbers for each relation, and twelve vectors.
    floats = 5 * 100_000 * 128 + 10 * (4 * 100_000 + 12 * 128)
    assert plan(config, Counts(relations=100_000), None).memory["relation prediction"] == int(1.8 * floats) * 4
    whole = make_config(objective__relation_prediction=0.5, train__batch_size=4)  # all relations have gradients
    assert bytes_per_step(whole, Counts()) - bytes_per_step(make_config(train__batch_size=4), Counts()) == 2 * (
        200 * 512 - 8 * 512 - 200
    )


def test_what_sources_hold_counts() -> None:
    def held(source: str, workers: int = 2, **options: object) -> int:
        config = make_config(negatives__source=source, negatives__options=options, train__workers=workers)
        return plan(config, Counts(), None).memory["negative source"]

    assert held("uniform") == 0
    triples = 10_000_000 * 12
    assert held("relational") == 20_000_000 * 120 + triples
    # Known answers, and of each worker's half of the queries 10 candidates of 4 bytes with 24 for its key, twice.
    table = 20_000_000 * 60 + 10_000_000 * 2 * (40 + 24)
    # 1,024 queries of this worker, with 10 candidates each; a search for the vectors of both, by blocks of scores.
    draw = 1024 * 10 * 40 + 2048 * (3 * 4 * 128 + 64 * 10) + 2048 * 1024 * 8
    assert held("near_miss", neighbours=10) == table + draw + triples
    # 50 cached candidates and 50 that compete with them, of 72 bytes, and vectors of all.
    draw = 1024 * 50 * 40 + 1024 * 100 * (72 + 2 * 4 * 128)
    assert held("cached") == 20_000_000 * 60 + 10_000_000 * 2 * (200 + 24) + draw + triples
    assert held("mixture", parts=[{"source": "uniform"}, {"source": "k_hop"}]) == 20_000_000 * 40 + triples


def test_vectors_for_actors_and_the_actors_themselves_are_counted() -> None:
    def planned(source: str, **pool: Any) -> Plan:
        config = make_config(negatives__source=source, negatives__pool={"actors": 2, **pool})
        return plan(config, Counts(), None)

    shard, triples = 500_000 * 128, 10_000_000 * 12
    # Two versions of the shard in half precision in Ray's object store, and one that is being rounded.
    assert planned("near_miss").memory["vectors for actors"] == 2 * shard * 2 + shard * 2
    assert planned("near_miss", sync=True).memory["vectors for actors"] == 2 * shard * 4
    assert planned("kmas").memory["vectors for actors"] == 0  # of relations only
    # 32 steps of 1,024 queries: twice 24 bytes of ids, a vector, a reply with 100 negatives of 5 bytes.
    assert planned("near_miss").memory["requests to actors"] == 32 * 1024 * (48 + 4 * 128 + 100 * 5)
    # Two generated entities of 4 bytes with their marks, a band and a factor; vectors of answers too.
    assert planned("dans").memory["requests to actors"] == 32 * 1024 * (48 + 8 * 128 + 100 * 5 + 2 * 5 + 12)
    # For a message of 72 steps, rows and query vectors are gathered and copied, in the memory of the steps between.
    deep = planned("near_miss", depth=64).memory
    assert deep["requests to actors"] == 128 * 1024 * 1060 + 72 * 1024 * 4 * 128 * 4 - deep["objective"]
    assert planned("kmas").memory["requests to actors"] == 0
    actor = planned("near_miss").actor_memory
    assert (actor["training triples"], actor["vectors of answers"]) == (triples, 0)
    # Known answers, and of all queries 32 candidates of 4 bytes with 24 for their key, twice; the draw of one worker.
    draw = 1024 * 32 * 40 + 1024 * (3 * 4 * 128 + 64 * 32) + 1024 * 1024 * 8
    assert actor["negative source"] == 20_000_000 * (60 + 2 * (4 * 32 + 24)) + draw
    # 1,024 queries: 24 floats of ids, the vector of each three times, and 96 bytes for each of 100 negatives.
    assert actor["requests"] == 1024 * ((24 + 3 * 128) * 4 + 100 * 96)
    # A table of 100 relations by their vectors: no draws, but a column of the triples.
    similar = planned("kmas").actor_memory
    assert similar["negative source"] == 10_000_000 * 8 + 3 * 4 * 100 * 128 + 24 * 100 * 100
    assert similar["requests"] == 0
    assert planned("nearest_neighbour").actor_memory["vectors of answers"] == 1_000_000 * 129 * 4
    assert not plan(make_config(), Counts(), None).actor_memory


def test_actors_need_their_part_of_the_machine() -> None:
    config = make_config(negatives__source="near_miss", negatives__pool={"actors": 1})
    free = plan(config, Counts(), None)
    beside = -(-free.actor_bytes // 2)
    assert plan(config, Counts(), free.total_bytes + beside).fits
    with pytest.raises(PlanError, match=r"negative actors [0-9.]+ GiB"):
        plan(config, Counts(), free.total_bytes + beside - 1)


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


def test_the_transform_of_a_query_is_measured() -> None:
    simple, tensor = (measured_times(make_config(model__name=name), 0.01).query for name in ("distmult", "tucker"))
    # A query of TuckER in 128 dimensions takes 128³ multiply-adds three times over; one of DistMult a product.
    assert 1e-9 < simple < 1e-4
    assert tensor > 10 * simple
    slower = Times(query=2.0, pair=None).slower(3)
    assert (slower.query, slower.pair) == (6.0, None)
    assert Times(query=2.0, pair=1.0).slower(3) == Times(6.0, 3.0)


def test_rows_of_negatives_that_are_not_shared_are_read_for_each_score() -> None:
    config = make_config(train__batch_size=1024, negatives__shared=False)
    found = plan(config, Counts(triples={"train": 1024}), None, MACHINE).seconds
    assert found is not None
    assert found["compute"] == pytest.approx(1024 * 101 * (128 * 2 * 3 / 1e11 + (400 + 128 * 4) / 1e10))
    assert found["data"] == pytest.approx(1024 * 1.3e-7 + 1024 * 100 * 2.2e-8)


def test_triples_outside_of_the_cache_are_read_slowly() -> None:
    def data(triples: int) -> float:
        config = make_config(train__batch_size=1024, train__workers=1)
        found = plan(config, Counts(triples={"train": triples}), None, MACHINE).seconds
        assert found is not None
        return found["data"] / -(-triples // 1024)

    # 16 Mi triples of 12 bytes are six times the cache: five of six queries wait for memory.
    queries, drawn = 2048, 8 * 100
    assert data(1 << 24) == pytest.approx(queries * (1.3e-7 + 5 / 6 * 1e-6) + drawn * 2.2e-8)
    assert data(1 << 20) == pytest.approx(queries * 1.3e-7 + drawn * 2.2e-8)


def test_layers_too_large_to_make_are_counted() -> None:
    large = make_config(model__name="tucker", model__dim=1024)  # a tensor, and two normalisations
    assert measured_times(large) == Times()  # 4 GiB of weights
    large.train.batch_size = 1024
    found = plan(large, Counts(triples={"train": 1024}), None, Machine(flops=1e11, bandwidth=math.inf)).seconds
    assert found is not None
    assert found["compute"] == pytest.approx(1024 * 6 * (1024**3 + 4 * 1024) / 1e11 + 1024 * 101 * 1024 * 2 * 3 / 1e11)
