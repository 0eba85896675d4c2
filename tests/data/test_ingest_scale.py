"""A million entities and ten million triples in less than 2 GB."""

import subprocess
import sys
from pathlib import Path

import pytest

GIGABYTE = 10**9

GENERATE = """
import sys
from distkg.data.generate import generate
generate(sys.argv[1], entities=1_000_000, relations=20, triples=10_000_000, seed=0)
"""

EXPORT = """
import sys
import pyarrow as pa, pyarrow.parquet as pq
from distkg.data.store.graph_store import Store
store = Store.open(sys.argv[1])
entities, relations = store.entity_labels(), store.relation_labels()
schema = pa.schema([("head", pa.utf8()), ("relation", pa.utf8()), ("tail", pa.utf8())])
with pq.ParquetWriter(sys.argv[2], schema) as file:
    for batch in store.iter_triples(["train", "valid", "test"], 1 << 18):
        head, relation, tail = (pa.array(batch[:, column]) for column in range(3))
        columns = [entities.take(head), relations.take(relation), entities.take(tail)]
        file.write_table(pa.table(columns, schema=schema))
"""

PREPARE = """
import sys
from distkg.data.prepare import prepare
report = prepare(sys.argv[1], sys.argv[2], partitions=4)
assert (report.entities, report.relations) == (1_000_000, 20), report
assert report.triples == {"train": 9_000_000, "valid": 500_000, "test": 500_000}, report
# The rules of the graph hold inverses and synonyms, which a split at random leaves on both sides.
leaks = {f"train_{split}_{kind}" for split in ("valid", "test") for kind in ("inverses", "duplicates_by_relation")}
assert set(report.warnings) == leaks, report
"""

PEAK = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"


def peak_bytes(script: str, *arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", script + PEAK, *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.slow
def test_ten_million_triples_fit_in_memory(tmp_path: Path) -> None:
    made, file, prepared = (str(tmp_path / name) for name in ("made", "all.parquet", "prepared"))
    assert peak_bytes(GENERATE, made) < 2 * GIGABYTE
    peak_bytes(EXPORT, made, file)
    assert peak_bytes(PREPARE, file, prepared) < 2 * GIGABYTE
