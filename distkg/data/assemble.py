"""Assembly of a store from triples in provisional ids: renumber entities by partition, write files, commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distkg.data.errors import IngestError
from distkg.data.readers.problems import Problems
from distkg.data.spool import NO_ROWS, Spool
from distkg.data.store.classes import Declared, encode_classes
from distkg.data.store.graph_store import Store
from distkg.data.store.manifest import Grown, Manifest
from distkg.data.store.writer import StoreWriter, TripleSink
from distkg.graph.partition import choose_partitioner, part_offsets

PartitionerName = Literal["random", "metis"]
ReportProgress = Callable[[str, int], None]


@dataclass(frozen=True)
class PrepareReport:
    """Report of ``prepare`` and ``generate`` about the store that they made.

    Attributes:
        store: address of the store.
        entities, relations: number of labels.
        triples: split → number of triples.
        warnings: warning → count, such as ``train_duplicates``.
        rejects: address of the rejects file; None if no line was rejected.
        seconds: wall time.
        examples: warning → first occurrence, ``file:line``.
        notes: sentences for the user about how files were read.
        training_graph: report of the training graph, if the source holds two graphs.
    """

    store: str
    entities: int
    relations: int
    triples: dict[str, int]
    warnings: dict[str, int]
    rejects: str | None
    seconds: float
    examples: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    training_graph: PrepareReport | None = None


@dataclass(frozen=True)
class SplitPart:
    """Triples of one split: a spool, of which the sorted rows ``without`` are skipped."""

    spool: Spool
    without: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)

    def __len__(self) -> int:
        return len(self.spool) - len(self.without)

    def chunks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """Yield row numbers in the spool [m] and triples [m, 3]."""
        return self.spool.chunks(self.without)


@dataclass(frozen=True)
class Graph:
    """Graph in provisional ids, ready to be written.

    Attributes:
        parts: split → its triples, train first.
        entities, relations: labels in provisional id order, large_utf8.
        declared: entity classes, domains and ranges of the source; None if it has none.
        base: store that is extended, whose labels come first and keep their ids; None for a new graph.
        grown: part of the graph that is from ``base``.
    """

    parts: dict[str, SplitPart]
    entities: pa.Array
    relations: pa.Array
    declared: Declared | None = None
    base: Store | None = None
    grown: Grown | None = None


@dataclass(frozen=True)
class StorePlan:
    """Options of assembling a store: source address, seed of the entity order, partitions and partitioner."""

    source: str
    seed: int
    partitions: int
    partitioner: PartitionerName


def assemble(
    writer: StoreWriter, graph: Graph, plan: StorePlan, problems: Problems, progress: ReportProgress
) -> Manifest:
    """Write all files of a store and commit it.

    Raises:
        IngestError: more partitions than entities, or less than one.
    """
    count = len(graph.entities)
    if graph.base is None and not 1 <= plan.partitions <= count:
        raise IngestError(f"{plan.partitions} partitions of {count} entities: choose from 1 to {count}")
    name, new_ids = renumber(graph, plan)
    triples = {split: _write_split(writer, split, part, new_ids, progress) for split, part in graph.parts.items()}
    entities = graph.entities.take(pa.array(np.argsort(new_ids)))
    writer.write_labels("entities.parquet", entities)
    writer.write_labels("relations.parquet", graph.relations)
    if graph.declared is not None:
        classes, unknown = encode_classes(graph.declared, entities, graph.relations)
        writer.write_classes(classes)
        for warning, (times, example) in unknown.items():
            problems.note(warning, example, times)
    if problems.counts["rejected_lines"]:
        problems.close()
        writer.record("rejects.tsv", problems.counts["rejected_lines"])
    manifest = Manifest(
        entities=count,
        relations=len(graph.relations),
        triples=triples,
        files=writer.files,
        partitioner=name,
        partition_offsets=_partition_offsets(graph, plan),
        warnings=dict(problems.counts),
        examples=problems.examples,
        source=plan.source,
        seed=plan.seed,
        grown=graph.grown,
    )
    writer.commit(manifest)
    return manifest


def renumber(graph: Graph, plan: StorePlan) -> tuple[str, NDArray[np.int32]]:
    """Return the partitioner used, and the map provisional id → id in the store: int32 [N], a permutation.

    Ids are random, so that any contiguous range is a fair sample of degrees. With METIS each partition gets a
    contiguous range, and ids are random within it. Entities of a store that is extended keep their ids, and new ones
    get random ids above them.
    """
    count = len(graph.entities)
    if graph.base is not None:
        old = graph.base.num_entities
        new = np.random.default_rng([plan.seed, 1]).permutation(count - old).astype(np.int32)
        return graph.base.manifest.partitioner, np.concatenate([np.arange(old, dtype=np.int32), old + new])
    order = np.random.default_rng([plan.seed, 1]).permutation(count).astype(np.int32)
    name = "random"
    if plan.partitioner == "metis" and plan.partitions > 1:
        edges = np.concatenate([triples[:, [0, 2]] for _, triples in graph.parts["train"].chunks()])
        name, partitioner = choose_partitioner()
        assignment = partitioner(edges, count, plan.partitions, plan.seed)
        order = order[np.argsort(assignment[order], kind="stable")]
    new_ids = np.empty(count, dtype=np.int32)
    new_ids[order] = np.arange(count, dtype=np.int32)
    return name, new_ids


def _partition_offsets(graph: Graph, plan: StorePlan) -> list[int]:
    """Return the bounds of the partitions; new entities of a store that is extended join its last one."""
    count = len(graph.entities)
    if graph.base is not None:
        return [*graph.base.manifest.partition_offsets[:-1], count]
    return part_offsets(count, plan.partitions).tolist()


def count_unseen(parts: dict[str, SplitPart], entities: int, relations: int, problems: Problems) -> None:
    """Count the valid and test triples with an entity or a relation that is absent from train."""
    in_train = np.zeros(entities, dtype=bool), np.zeros(relations, dtype=bool)
    for _, triples in parts["train"].chunks():
        in_train[0][triples[:, [0, 2]]] = True
        in_train[1][triples[:, 1]] = True
    for split in [split for split in parts if split != "train"]:
        for rows, triples in parts[split].chunks():
            unseen_entity = ~(in_train[0][triples[:, 0]] & in_train[0][triples[:, 2]])
            for kind, unseen in (("entities", unseen_entity), ("relations", ~in_train[1][triples[:, 1]])):
                if unseen.any():
                    where = parts[split].spool.where(int(rows[unseen.argmax()]))
                    problems.note(f"{split}_unseen_{kind}", where, int(unseen.sum()))


def _write_split(
    writer: StoreWriter, split: str, part: SplitPart, new_ids: NDArray[np.int32], progress: ReportProgress
) -> int:
    with TripleSink(writer, split) as sink:
        for _, triples in part.chunks():
            triples[:, 0] = new_ids[triples[:, 0]]
            triples[:, 2] = new_ids[triples[:, 2]]
            sink.write(triples)
            progress(f"writing {split}", sink.rows)
    return len(part)
