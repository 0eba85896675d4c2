"""Exports read back by other libraries, and FAISS against exact search."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from distributed import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save
from small_model import SmallModel

from distkg.config import ModelConfig
from distkg.data.store.graph_store import Store
from distkg.embedding.scorers import make_scorer
from distkg.inference.export import export, export_model, write_rows
from distkg.inference.exported_rows import ExportedRows
from distkg.inference.vector_index import EntityIndex, write_index
from distkg.kernels import nearest_neighbours
from distkg.kernels.nearest_neighbours import AnnError
from distkg.sharding.ranks import Ranks


def people_model(store: Store, ranks: Ranks | None = None, scorer: str = "distmult") -> SmallModel:
    generator = torch.Generator().manual_seed(0)
    width = make_scorer(ModelConfig(name=scorer, dim=4)).entity_width
    rows = torch.randn(store.num_entities, width, generator=generator)
    return SmallModel(rows, torch.randn(4, 4, generator=generator), ranks, scorer, dim=4)


def test_an_export_holds_vectors_labels_and_constants(store: Store, tmp_path: Path) -> None:
    model = people_model(store)
    export_model(model, store, model.config, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "entities.parquet",
        "entities.safetensors",
        "model.json",
        "relations.parquet",
        "relations.safetensors",
    ]
    np.testing.assert_array_equal(
        load_file(tmp_path / "out" / "entities.safetensors")["vectors"], model.entities.whole.numpy()
    )
    np.testing.assert_array_equal(
        load_file(tmp_path / "out" / "relations.safetensors")["vectors"], model.relations.numpy()
    )
    people = pq.read_table(tmp_path / "out" / "entities.parquet")
    assert people.column("id").to_pylist() == [0, 1, 2, 3, 4]
    assert people.column("label").to_pylist() == [store.entity_labels()[i].as_py() for i in range(5)]
    assert pq.read_table(tmp_path / "out" / "relations.parquet").to_pylist() == [
        {"id": i, "label": store.relation_labels()[i].as_py()} for i in range(2)
    ]
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert {key: facts[key] for key in ("scorer", "similarity", "dim", "inverse", "options", "num_relations")} == {
        "scorer": "distmult",
        "similarity": "dot",
        "dim": 4,
        "inverse": "learned",
        "options": {"distance": "none"},
        "num_relations": 2,
    }
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]  # the build may be left out


def test_layers_of_a_scorer_are_beside_the_relations(store: Store, tmp_path: Path) -> None:
    model = people_model(store, scorer="tucker")
    export_model(model, store, model.config, tmp_path)
    tensors = load_file(tmp_path / "relations.safetensors")
    assert set(tensors) == {"vectors", *model.scorer.state_dict()}
    np.testing.assert_array_equal(tensors["core"], model.scorer.state_dict()["core"].numpy())


def test_bfloat16_rows_are_exported_as_float32(store: Store, tmp_path: Path) -> None:
    rows = torch.full((5, 4), 1.1).bfloat16()
    model = people_model(store)
    export(tmp_path, store, model.config, model.scorer, model.relations, [(0, rows)])
    vectors = load_file(tmp_path / "entities.safetensors")["vectors"]
    assert vectors.dtype == np.float32
    assert set(vectors.ravel().tolist()) == {1.1015625}


def export_on(ranks: Ranks, address: str, folder: Path) -> None:
    store = Store.open(address)
    model = people_model(store, ranks)
    export_model(model, store, model.config, folder)


def test_ranks_export_what_one_would(store: Store, tmp_path: Path) -> None:
    export_on(Ranks.single(), store.address, tmp_path / "single")
    run_ranks(2, export_on, store.address, tmp_path / "shared")
    single, shared = (
        {path.name: path.read_bytes() for path in (tmp_path / at).iterdir()} for at in ("single", "shared")
    )
    assert shared.keys() - single.keys() == {
        "entities-00001-of-00002.safetensors", "entities-00002-of-00002.safetensors", "entities.index.json"
    }  # fmt: skip
    assert single.keys() - shared.keys() == {"entities.safetensors"}
    assert {name: single[name] for name in single.keys() & shared.keys()} == {
        name: shared[name] for name in single.keys() & shared.keys()
    }
    whole = load_file(tmp_path / "single" / "entities.safetensors")["vectors"]
    listed = json.loads(shared["entities.index.json"])
    assert (listed["rows"], listed["width"]) == whole.shape == (5, 4)
    for file in listed["files"]:
        part = load_file(tmp_path / "shared" / file["name"])["vectors"]
        np.testing.assert_array_equal(part, whole[file["low"] : file["high"]])
    np.testing.assert_array_equal(ExportedRows(tmp_path / "shared").rows(1, 4), whole[1:4])
    export_on(Ranks.single(), store.address, tmp_path / "shared")
    assert {path.name for path in (tmp_path / "shared").iterdir()} == single.keys()


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(0, 40), width=st.integers(1, 9), seed=st.integers(0, 1000))
def test_streamed_rows_are_the_file_that_safetensors_writes(tmp_path_factory, rows, width, seed) -> None:
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((rows, width)).astype(np.float32)
    cuts = [0, *np.sort(rng.integers(0, rows + 1, 4)).tolist(), rows]
    ranges = [(a, torch.from_numpy(table[a:b])) for a, b in pairwise(cuts)]
    path = tmp_path_factory.mktemp("rows") / "x.safetensors"
    write_rows(path, table.shape, [ranges[i] for i in rng.permutation(len(ranges))])
    np.testing.assert_array_equal(load_file(path)["vectors"], table)
    assert len(path.read_bytes()) == len(save({"vectors": table}))


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(0, torch.zeros(2, 3))], "row 2 was never given; the table has 4 rows"),
        ([(0, torch.zeros(2, 3)), (1, torch.zeros(3, 3))], "rows 1 to 3 .* were given before"),
        ([(0, torch.zeros(5, 3))], r"rows 0 to 4 of shape \[5, 3\] do not fit a table of 4 × 3"),
        ([(0, torch.zeros(4, 2))], r"shape \[4, 2\] do not fit"),
    ],
)
def test_ranges_that_are_not_the_table_are_refused(tmp_path: Path, ranges, message: str) -> None:
    path = tmp_path / "entities.safetensors"
    with pytest.raises(ValueError, match=message):
        write_rows(path, (4, 3), ranges)
    assert not path.exists()


def test_an_index_of_a_small_graph_answers_as_the_scorer_does(store: Store, tmp_path: Path) -> None:
    model = people_model(store, scorer="simple")
    export_model(model, store, model.config, tmp_path, index=True)
    query = model.scorer.eval().query(model.entities.whole[:3], model.relations[[0, 1, 2]]).detach()
    expected = model.scorer.similarity.scores(query, model.scorer.candidates(model.entities.whole))
    scores, entities = EntityIndex(tmp_path / "index.faiss", model.scorer).search(query, 3)
    np.testing.assert_array_equal(entities, expected.topk(3).indices.numpy())
    np.testing.assert_allclose(scores, expected.topk(3).values.numpy(), rtol=1e-5)


def clustered(count: int, width: int, seed: int) -> torch.Tensor:
    """Vectors around 50 centres, as trained ones lie, and not evenly as random ones."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(50, width, generator=generator)
    return centres[torch.randint(50, (count,), generator=generator)] + 0.3 * torch.randn(
        count, width, generator=generator
    )


@pytest.mark.parametrize(("scorer", "norm"), [("distmult", None), ("transe", "l2"), ("transe", "squared_l2")])
def test_an_index_in_lists_recalls_the_exact_top_ten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scorer: str, norm: str | None
) -> None:
    monkeypatch.setattr(nearest_neighbours, "_FLAT_BELOW", 1000)
    rows = clustered(20_000, 16, seed=0)
    made = make_scorer(ModelConfig(name=scorer, dim=16, options={"norm": norm} if norm else {}))
    write_rows(tmp_path / "entities.safetensors", (20_000, 16), [(0, rows)])
    index = EntityIndex(write_index(tmp_path, made), made)
    query = clustered(100, 16, seed=0)
    scores, entities = index.search(query, 10)
    exact = made.similarity.scores(query, rows).topk(10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(entities, exact.indices.tolist(), strict=True)])
    assert recall >= 0.9
    np.testing.assert_allclose(scores[:, 0], exact.values[:, 0], rtol=1e-2, atol=1e-3)
    assert index._index.index.nlist == 565


def test_an_index_for_a_distance_faiss_lacks_is_refused(tmp_path: Path) -> None:
    rotate = make_scorer(ModelConfig(name="rotate", dim=4))
    with pytest.raises(AnnError, match=r"no ANN index for the similarity modulus.*`distkg predict` is exact"):
        write_index(tmp_path, rotate)


def test_without_faiss_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(AnnError, match=r"pip install 'distkg\[ann\]'"):
        write_index(tmp_path, make_scorer(ModelConfig(name="distmult", dim=4)))


def test_an_index_is_not_opened_for_another_similarity(store: Store, tmp_path: Path) -> None:
    model = people_model(store)
    export_model(model, store, model.config, tmp_path, index=True)
    transe = make_scorer(ModelConfig(name="transe", dim=4, options={"norm": "l2"}))
    with pytest.raises(AnnError, match="built for another similarity than l2"):
        EntityIndex(tmp_path / "index.faiss", transe)
    with pytest.raises(AnnError, match="there is no index"):
        EntityIndex(tmp_path / "other.faiss", transe)


def test_an_export_without_index_removes_a_stale_one(store: Store, tmp_path: Path) -> None:
    (tmp_path / "index.faiss").write_bytes(b"of an earlier model")
    model = people_model(store)
    export_model(model, store, model.config, tmp_path)
    assert not (tmp_path / "index.faiss").exists()
