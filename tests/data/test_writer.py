import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distkg.data.errors import StoreError
from distkg.data.store.manifest import Manifest
from distkg.data.store.writer import StoreWriter, TripleSink


def manifest_of(writer: StoreWriter) -> Manifest:
    return Manifest(
        entities=2,
        relations=1,
        triples={"train": 3},
        files=writer.files,
        partitioner="random",
        partition_offsets=[0, 2],
        source="a test",
        seed=0,
    )


def fill(address: str) -> dict[str, int]:
    with StoreWriter(address) as writer:
        with TripleSink(writer, "train") as sink:
            sink.write(np.array([[0, 0, 1], [1, 0, 0]], dtype=np.int32))
            sink.write(np.array([[1, 0, 1]], dtype=np.int32))
        writer.write_labels("entities.parquet", pa.array(["a", "b"], pa.large_utf8()))
        writer.commit(manifest_of(writer))
        return {name: entry.rows for name, entry in writer.files.items()}


def test_files_are_as_the_manifest_says(tmp_path: Path) -> None:
    store = tmp_path / "deep" / "store"
    assert fill(str(store)) == {"train.parquet": 3, "entities.parquet": 2}
    names = {"train.parquet", "entities.parquet", "manifest.json"}
    assert {path.name for path in store.iterdir()} == names
    manifest = Manifest.model_validate_json((store / "manifest.json").read_bytes())
    content = (store / "train.parquet").read_bytes()
    assert manifest.files["train.parquet"].sha256 == hashlib.sha256(content).hexdigest()
    assert manifest.files["train.parquet"].bytes == len(content)
    assert pq.read_table(store / "train.parquet").to_pydict() == {
        "head": [0, 1, 1],
        "relation": [0, 0, 0],
        "tail": [1, 0, 1],
    }
    assert pq.read_table(store / "entities.parquet").to_pydict() == {"id": [0, 1], "label": ["a", "b"]}


def test_until_the_commit_only_the_marker_tells_of_a_store(tmp_path: Path) -> None:
    with StoreWriter(str(tmp_path / "s")) as writer:
        assert (tmp_path / "s" / ".incomplete").exists()
        assert not (tmp_path / "s" / "manifest.json").exists()
        writer.commit(manifest_of(writer))
        assert (tmp_path / "s" / "manifest.json").exists()
        assert not (tmp_path / "s" / ".incomplete").exists()


def interrupted(address: str) -> None:
    with StoreWriter(address) as writer:
        writer.open_rejects().write(b"x")
        with TripleSink(writer, "train") as sink:
            sink.write(np.zeros((5, 3), dtype=np.int32))
            raise RuntimeError("on the way")


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on the way"):
        interrupted(str(tmp_path / "s"))
    assert list(tmp_path.iterdir()) == []


def test_a_finished_store_is_never_overwritten(tmp_path: Path) -> None:
    fill(str(tmp_path / "s"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    with pytest.raises(StoreError, match=r"already holds a finished store\. Remove the folder, or name another"):
        fill(str(tmp_path / "s"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"holds other files \(thesis\.tex\)\. Name a new or empty folder"):
        fill(str(tmp_path))
    with pytest.raises(StoreError, match=r"thesis\.tex is a file"):
        fill(str(tmp_path / "thesis.tex"))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_half_written_store_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".incomplete").write_bytes(b"")
    (tmp_path / "train.parquet").write_bytes(b"half")
    (tmp_path / ".scratch-x").mkdir()
    fill(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"train.parquet", "entities.parquet", "manifest.json"}
    assert pq.read_table(tmp_path / "train.parquet").num_rows == 3


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    fill(str(tmp_path))
    assert (tmp_path / "manifest.json").exists()
