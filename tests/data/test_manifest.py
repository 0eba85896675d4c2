import json

import pytest

from distkg.data.errors import StoreError
from distkg.data.store.manifest import Manifest, parse_manifest

TREE = {
    "schema_version": 1,
    "entities": 3,
    "relations": 1,
    "triples": {"train": 2},
    "files": {"train.parquet": {"sha256": "00", "bytes": 10, "rows": 2}},
    "partitioner": "random",
    "partition_offsets": [0, 2, 3],
    "source": "graph.tsv",
    "seed": 7,
}


def test_a_manifest_is_read_as_written() -> None:
    manifest = parse_manifest(json.dumps(TREE).encode(), "x")
    assert manifest.files["train.parquet"].rows == 2
    assert manifest.partition_offsets == [0, 2, 3]
    assert manifest.warnings == {}
    assert parse_manifest(manifest.model_dump_json().encode(), "x") == manifest
    assert Manifest.model_fields["schema_version"].default == 1


def test_a_later_schema_is_refused_with_the_way_out() -> None:
    later = TREE | {"schema_version": 2, "entities": {"a new": "shape"}}
    with pytest.raises(StoreError, match=r"store x has schema version 2; this distkg reads up to 1\. Upgrade distkg"):
        parse_manifest(json.dumps(later).encode(), "x")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        json.dumps(TREE).encode()[:-20],
        json.dumps(TREE | {"entities": -1}).encode(),
        json.dumps(TREE | {"schema_version": "one"}).encode(),
        json.dumps({key: value for key, value in TREE.items() if key != "triples"}).encode(),
    ],
)
def test_a_damaged_manifest_is_refused_with_the_way_out(content: bytes) -> None:
    with pytest.raises(StoreError, match=r"manifest\.json of store x is damaged .*`distkg prepare`"):
        parse_manifest(content, "x")
