"""Foundation models on Ray Train: workers of a node read the same graphs, and learn as from their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import run_ranks

from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.launch import launch_training, run_on_workers
from distkg.config import RunConfig
from distkg.data.errors import StoreError
from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.data.tokens.token_store import write_modality
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("graphs")
    for name, entities, triples, seed in (("small", 150, 1500, 1), ("large", 800, 9000, 2)):
        generate(str(folder / name), entities=entities, relations=4, triples=triples, seed=seed)
    ids = np.random.default_rng(0).integers(0, 20, (150, 3)).astype(np.int32)
    codebook = np.random.default_rng(1).standard_normal((20, 6)).astype(np.float32)
    write_modality(Store.open(str(folder / "small")), "text", [ids], 3, codebook, "drawn")
    return [str(folder / name) for name in ("small", "large")]


def run_config(stores: list[str], name: str = "ultra", **options: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"graphs": stores},
            "model": {"name": name, "options": {"width": 8, "layers": 2, "hidden": 8, **options}},
            "objective": {"name": "self_adversarial", "margin": 0.0},
            "negatives": {"count": 8},
            "optimizer": {"name": "adam", "learning_rate": 0.005},
            "train": {"workers": 2, "batch_size": 16, "epochs": 2, "steps_per_epoch": 10},
            "evaluate": {"every": 1, "max_valid_triples": 20},
        }
    )


def train(ranks: Ranks, settings: RunConfig, run: str) -> dict[str, Any]:
    return train_on_rank(settings, Path(run), ranks)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]


@pytest.mark.parametrize(("name", "options"), [("ultra", {}), ("tofu", {"modalities": {"text": 6}})])
def test_two_workers_learn_from_two_graphs_as_ranks_with_graphs_of_their_own(
    stores: list[str], tmp_path: Path, kept_workers: KeptWorkers, name: str, options: dict[str, Any]
) -> None:
    settings = run_config(stores, name, **options)
    shared = run_on_workers(train_on_rank, settings, tmp_path / "shared", kept=kept_workers)
    own, _ = run_ranks(2, train, settings, str(tmp_path / "own"))
    assert losses(tmp_path / "shared") == losses(tmp_path / "own")
    assert shared["metrics"] == own["metrics"]
    assert [each["graph"].rsplit("/", 1)[-1] for each in shared["by_graph"]] == ["small", "large"]
    assert shared["by_graph"] == own["by_graph"]
    assert shared["train"]["workers"] == 2
    assert (tmp_path / "shared" / "model" / "model.safetensors").is_file()


def test_workers_of_a_node_read_the_same_memory(stores: list[str], tmp_path: Path) -> None:
    # Closures, which Ray sends by value: workers cannot import a test.
    def place(address: int) -> tuple[str, str, int]:
        """Permissions, file and offset of what is mapped at an address: the same of two processes, the same memory."""
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, permissions, offset, device, inode = line.split()[:5]
            low, high = (int(end, 16) for end in span.split("-"))
            if low <= address < high:
                return permissions, f"{device} {inode}", int(offset, 16) + address - low
        raise AssertionError(f"nothing is mapped at {address:x}")

    def look(config: RunConfig, run: Path, ranks: Any, *, resume: bool, listener: Any, services: Any) -> dict[str, Any]:
        from distkg.foundation.models import KnowledgeGraph

        def refuse(*_: object) -> None:
            raise AssertionError("a worker makes a graph of its own")

        KnowledgeGraph.of_store = KnowledgeGraph._of_relations = refuse  # type: ignore[assignment, method-assign]
        graph = services.graph_of(config.data.graphs[1])
        edges = graph.facts.facts
        arrays = [edges.dst, edges.src, edges.relation, graph.facts.triples, graph.facts.meetings.src]
        assert not graph.known.answers.flags.writeable
        found = [place(tensor.data_ptr()) for tensor in arrays] + [place(graph.known.answers.ctypes.data)]
        (run / f"rank-{ranks.rank}.json").write_text(json.dumps(found))
        ranks.barrier()
        return {}

    run_on_workers(look, run_config(stores), tmp_path / "run")
    first, second = (json.loads((tmp_path / "run" / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert {permissions[-1] for permissions, _, _ in first} == {"s"}
    assert len({offset for _, _, offset in first}) == len(first)


def test_a_graph_that_is_not_there_ends_the_run_with_the_reason(stores: list[str], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .*nowhere"):
        launch_training(run_config([*stores, str(tmp_path / "nowhere")]), tmp_path / "run")
