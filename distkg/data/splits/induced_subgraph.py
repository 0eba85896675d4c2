"""Store of the subgraph that a set of entities induces, such as a k-core.

Every split keeps its triples between these entities, in their order. Entities keep their order, and so its randomness;
relations keep their ids. Classes, relation texts and tokens are those of the source.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distkg.data.splits.inductive_split import copy_extras
from distkg.data.storage.location import without_secrets
from distkg.data.store.classes import Classes
from distkg.data.store.graph_store import Store
from distkg.data.store.manifest import Manifest
from distkg.data.store.writer import StoreWriter, TripleSink
from distkg.graph.csr import expanded_ranges
from distkg.redaction import is_remote


def write_induced_subgraph(store: Store, kept: NDArray[np.bool_], address: str, name: str) -> Store:
    """Write the subgraph of the entities in ``kept``, bool [N], to a new store, and open it.

    Memory: 5 bytes for each entity, its labels, and one batch of triples.

    Args:
        address: new or empty folder, a half-written store, or an address.
        name: what the subgraph is, such as ``12-core``, for the manifest.

    Raises:
        StoreError: ``store`` cannot be read, the folder is not free, or a write fails.
    """
    new_id = np.cumsum(kept, dtype=np.int32) - 1
    ids = np.flatnonzero(kept)
    manifest = store.manifest
    with StoreWriter(address, private=is_remote(store.address)) as writer:
        triples = {split: _write_split(writer, store, split, kept, new_id) for split in manifest.triples}
        writer.write_labels("entities.parquet", store.entity_labels().take(pa.array(ids)).cast(pa.large_utf8()))
        writer.write_labels("relations.parquet", store.relation_labels().cast(pa.large_utf8()))
        classes = store.classes()
        if classes is not None:
            writer.write_classes(_classes_of(classes, ids))
        offsets = np.concatenate([[0], np.cumsum(kept)])[manifest.partition_offsets]
        writer.commit(
            Manifest(
                entities=len(ids),
                relations=store.num_relations,
                triples=triples,
                files=writer.files,
                partitioner=manifest.partitioner,
                partition_offsets=offsets.tolist(),
                source=f"{name} of {without_secrets(store.address)}",
                seed=manifest.seed,
            )
        )
    subgraph = Store.open(address)
    copy_extras(store, subgraph)
    return subgraph


def count_induced(store: Store, split: str, kept: NDArray[np.bool_]) -> int:
    """Return the number of triples of a split whose entities are both in ``kept``, bool [N]."""
    return sum(len(inside) for inside in _inside(store, split, kept))


def _inside(store: Store, split: str, kept: NDArray[np.bool_]) -> Iterator[NDArray[np.int32]]:
    for batch in store.iter_triples([split]):
        yield batch[kept[batch[:, 0]] & kept[batch[:, 2]]]


def _write_split(
    writer: StoreWriter, store: Store, split: str, kept: NDArray[np.bool_], new_id: NDArray[np.int32]
) -> int:
    with TripleSink(writer, split) as sink:
        for triples in _inside(store, split, kept):
            triples[:, ::2] = new_id[triples[:, ::2]]
            sink.write(triples)
    return sink.rows


def _classes_of(classes: Classes, ids: NDArray[np.int64]) -> Classes:
    """Return the classes of the entities in ``ids``, int64 [n], in this order; labels and relations are all kept."""
    starts, ends = classes.offsets[ids], classes.offsets[ids + 1]
    _, places = expanded_ranges(starts, ends)
    offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
    return Classes(classes.labels, offsets, classes.members[places], classes.required)
