"""Preparation of a store from files of triples, in bounded memory.

Files are streamed: labels become provisional ids, and triples are spooled to local disk as three integers each.
Then duplicates are found with hash buckets, a single file is split, entities are renumbered by partition, and the
store is written as Parquet. Memory holds the labels, a few integers per entity and one bucket of triples, never all
triples (except with METIS, which needs the edges of train).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distkg.data.assemble import (
    Graph,
    PartitionerName,
    PrepareReport,
    ReportProgress,
    SplitPart,
    StorePlan,
    assemble,
    count_unseen,
)
from distkg.data.errors import IngestError, check_choice
from distkg.data.label_forms import warn_of_forms
from distkg.data.readers.delimited import read_delimited
from distkg.data.readers.formats import READERS
from distkg.data.readers.ntriples import FORMATS as N_TRIPLES
from distkg.data.readers.ntriples import read_ntriples
from distkg.data.readers.problems import OnError, Problems
from distkg.data.readers.rdf_documents import FORMATS as RDF_DOCUMENTS
from distkg.data.readers.rdf_documents import read_rdf_document
from distkg.data.readers.sources import (
    DETECTED,
    SPLITS,
    ReadOptions,
    SourceFile,
    files_left_aside,
    find_sources,
)
from distkg.data.readers.tables import read_parquet
from distkg.data.splits.duplicates import find_repeats
from distkg.data.splits.holdout import split_part
from distkg.data.splits.inductive import INFERENCE, TRAINING, InductiveGraphs, inductive_graphs
from distkg.data.splits.leaks import report_leaks
from distkg.data.spool import CHUNK_ROWS, Spool
from distkg.data.storage.location import Location, address_within, without_secrets
from distkg.data.store.classes import Declared, read_declared
from distkg.data.store.graph_store import Store
from distkg.data.store.manifest import Grown, Manifest
from distkg.data.store.vocabulary import Vocabulary
from distkg.data.store.writer import StoreWriter
from distkg.redaction import is_remote

READERS.register("tsv")(read_delimited)
READERS.register("parquet")(read_parquet)
for _format in N_TRIPLES:
    READERS.register(_format)(read_ntriples)
for _format in RDF_DOCUMENTS:
    READERS.register(_format)(read_rdf_document)


def prepare(
    source: str,
    store: str,
    options: ReadOptions = DETECTED,
    *,
    valid: str | None = None,
    test: str | None = None,
    split: tuple[float, float, float] = (0.9, 0.05, 0.05),
    partitions: int = 1,
    partitioner: PartitionerName = "random",
    seed: int = 0,
    progress: ReportProgress | None = None,
) -> PrepareReport:
    """Make a store from files of triples.

    Args:
        source: a file, or a folder with train, valid and test files and optional class files (see
            ``distkg.data.store.classes``); a local path or a pyarrow address. A folder with a file ``inference`` holds
            two graphs (see ``distkg.data.splits.inductive``): two stores are made, ``training`` and ``inference`` in
            ``store``.
        store: new folder or address; a half-written store is replaced, a finished one never.
        options: options of reading the files.
        valid, test: files of these splits, if ``source`` is one file or a folder without them.
        split: shares of train, valid and test, if ``source`` is one file and neither ``valid`` nor ``test`` is given.
            Every entity and relation of valid and test also stays in train. If the graph is too sparse for these
            shares, fewer triples are held out, and the warning ``held_out_short`` counts the missing ones.
        partitions: number of contiguous ranges of entity ids, of ceil(N / partitions) entities each except the last.
        partitioner: assignment of entities to ranges.
        seed: random seed of entity order and splits.
        progress: callback that receives a stage and the number of triples done.

    Returns:
        Counts and warnings. Duplicates within a split are dropped and counted (``train_duplicates``). Triples in two
        splits stay in both and are counted (``train_test_overlap``). Also counted are valid and test triples with
        entities or relations that train lacks (``test_unseen_entities``), held-out triples that train contains under
        another relation (``train_test_inverses``), labels that differ in spaces only, and rejected, blank and header
        lines. docs/data.md lists all warnings.

    Raises:
        IngestError: an unusable source; names file and line.
        StoreError: the folder is not free, or a write fails.
    """
    check_split(split)
    check_choice("partitioner", partitioner, PartitionerName)
    plan = StorePlan(without_secrets(source), seed, partitions, partitioner)
    settings = Settings(plan, options.on_error, progress or silent)
    location = Location.of(source)
    is_folder = location.is_folder()
    declared = read_declared(location, options.encoding) if is_folder else None
    graphs = inductive_graphs(location, options) if is_folder else None
    if graphs is not None:
        _refuse_separate_splits(source, valid, test)
        check_tables(options, [file for graph in graphs.values() for files in graph.values() for file in files])
        return _make_both(graphs, store, settings, declared)
    files = find_sources(source, options, valid, test)
    check_tables(options, list(files.values()))
    unread = files_left_aside(location, {file.name for file in files.values()}) if is_folder else []
    shares = split if len(files) == 1 and not is_folder else None
    return make_store({name: [file] for name, file in files.items()}, store, settings, declared, shares, unread)


@dataclass(frozen=True)
class Settings:
    """Options of ``prepare`` that do not depend on the files."""

    plan: StorePlan
    on_error: OnError
    progress: ReportProgress


def _refuse_separate_splits(source: str, valid: str | None, test: str | None) -> None:
    """Raise IngestError if files of splits are given in addition to a folder of two graphs."""
    if valid or test:
        raise IngestError(
            f"folder {without_secrets(source)} holds a training and an inference graph, whose splits are in its files: "
            "leave out --valid and --test"
        )


def _make_both(graphs: InductiveGraphs, store: str, settings: Settings, declared: Declared | None) -> PrepareReport:
    """Make a store for each graph, in folders named after the graphs; return the report of the inference graph."""
    reports = {
        name: make_store(files, address_within(store, name), settings, declared) for name, files in graphs.items()
    }
    return replace(reports[INFERENCE], training_graph=reports[TRAINING])


def make_store(
    sources: Mapping[str, Sequence[SourceFile]],
    store: str,
    settings: Settings,
    declared: Declared | None,
    shares: tuple[float, float, float] | None = None,
    notes: Sequence[str] = (),
    base: Store | None = None,
) -> PrepareReport:
    """Make one store, splitting train by ``shares`` if given; with ``base``, of its facts and those of the files."""
    started = time.perf_counter()
    with StoreWriter(store, private=is_remote(settings.plan.source)) as writer:
        problems = Problems(settings.on_error, writer.open_rejects)
        for note in notes:
            problems.tell(note)
        ingest = _Ingest(writer, problems, settings.progress, base)
        parts = ingest.read(sources)
        grown = None if base is None else _grown(base, parts, sources)
        if shares:
            sizes = len(ingest.entities), len(ingest.relations)
            parts = split_part(parts["train"], *sizes, shares, settings.plan.seed, writer.scratch, problems)
        graph = Graph(parts, ingest.entities.labels(), ingest.relations.labels(), declared, base, grown)
        count_unseen(parts, len(graph.entities), len(graph.relations), problems)
        report_leaks(parts, graph.relations, writer.scratch, problems)
        for labels in (graph.entities, graph.relations):
            warn_of_forms(labels, problems)
        manifest = assemble(writer, graph, settings.plan, problems, ingest.progress)
    return replace(report(store, manifest, time.perf_counter() - started), notes=tuple(problems.notes))


def _grown(base: Store, parts: Mapping[str, SplitPart], sources: Mapping[str, Sequence[SourceFile]]) -> Grown:
    """Count the facts of each split that are from the store that is extended.

    Raises:
        IngestError: there are no others.
    """
    before = base.manifest.triples
    old = {name: before.get(name, 0) - int((part.without < before.get(name, 0)).sum()) for name, part in parts.items()}
    if all(len(part) == old[name] for name, part in parts.items()):
        files = ", ".join(file.name for files in sources.values() for file in files)
        raise IngestError(f"{files}: no new facts, as all are in store {base.shown} already")
    address = without_secrets(base.address)
    return Grown(store=address, entities=base.num_entities, relations=base.num_relations, triples=old)


def check_tables(options: ReadOptions, files: Sequence[SourceFile]) -> None:
    """Raise IngestError if an option of tables or delimited text applies to none of the files."""
    tables = any(file.format in ("tsv", "parquet") for file in files)
    text = any(file.format == "tsv" for file in files)
    for name, is_set, applies, formats in (
        ("--columns", bool(options.columns), tables, "delimited text and Parquet"),
        ("--header and --no-header", options.header is not None, text, "delimited text"),
        ("--delimiter", bool(options.delimiter), text, "delimited text"),
    ):
        if is_set and not applies:
            shown = ", ".join(file.name for file in files)
            raise IngestError(f"{name}: only for {formats}, which none of the files ({shown}) is; leave it out")


class _Ingest:
    """Reader of files into spools of provisional ids, after the facts and labels of a store that is extended."""

    def __init__(
        self, writer: StoreWriter, problems: Problems, progress: ReportProgress, base: Store | None = None
    ) -> None:
        self.scratch = writer.scratch
        self.problems = problems
        self.progress = progress
        self.base = base
        self.entities = Vocabulary()
        self.relations = Vocabulary()
        if base is not None:
            _encode_all(self.entities, base.entity_labels())
            _encode_all(self.relations, base.relation_labels())

    def read(self, sources: Mapping[str, Sequence[SourceFile]]) -> dict[str, SplitPart]:
        """Read all splits without duplicates; a split without files is empty."""
        spools = {split: self._spool(split, sources.get(split, ())) for split in SPLITS}
        self._warn_of_headers(spools)
        self.progress("looking for duplicates", sum(len(spool) for spool in spools.values()))
        repeats = find_repeats(spools, self.scratch)
        repeats.report(spools, self.problems)
        return {split: SplitPart(spool, repeats.dropped[split]) for split, spool in spools.items()}

    def _spool(self, split: str, files: Sequence[SourceFile]) -> Spool:
        old = self._old_facts(split)
        spool = old or Spool(self.scratch / split, files[0].name if files else "", files[0].unit if files else "")
        before = len(spool)
        for place, file in enumerate(files):
            if place or old:
                spool.begin(file.name, file.unit)
            for columns, lines in READERS[file.format](file, self.problems):
                spool.append(self._encode(columns), lines)
                self.progress(f"reading {file.name}", len(spool))
        if files:
            self._check_filled(split, files[0].name, len(spool) - before)
        spool.finish()
        return spool

    def _old_facts(self, split: str) -> Spool | None:
        """Return a spool with the facts of the store that is extended; None if there are none."""
        if self.base is None or not self.base.manifest.triples.get(split):
            return None
        spool = Spool(self.scratch / split, f"{split}.parquet of {self.base.shown}", "row ")
        for triples in self.base.iter_triples([split]):
            spool.append(triples, np.arange(len(spool) + 1, len(spool) + len(triples) + 1))
        return spool

    def _warn_of_headers(self, spools: Mapping[str, Spool]) -> None:
        """Warn of first triples whose labels do not recur in their columns in any file."""
        for name, line, labels in self.problems.possible_headers:
            head, relation, tail = (pa.array([label], pa.utf8()) for label in labels)
            first = self._encode((head, relation, tail))[0]
            recurs = (
                ((triples == first).any(axis=1) & ~(triples == first).all(axis=1)).any()
                for spool in spools.values()
                for _, triples in spool.chunks()
            )
            if not any(recurs):
                self.problems.note("first_line_may_be_a_header", f"{name}:{line}")

    def _encode(self, columns: tuple[pa.Array, pa.Array, pa.Array]) -> NDArray[np.int32]:
        head, relation, tail = columns
        ids = self.entities.encode(head), self.relations.encode(relation), self.entities.encode(tail)
        return np.stack(ids, axis=1)

    def _check_filled(self, split: str, name: str, triples: int) -> None:
        if triples:
            return
        if split == "train" or self.problems.on_error == "fail":
            rejected = self.problems.counts["rejected_lines"]
            first = f"; {rejected} lines rejected, first {self.problems.examples['rejected_lines']}" if rejected else ""
            raise IngestError(f"{name}:1: the file holds no triples{first}. Check the file and --format")
        self.problems.note("empty_files", name)


def _encode_all(vocabulary: Vocabulary, labels: pa.Array) -> None:
    """Give the labels of a store the ids that they have in it."""
    for start in range(0, len(labels), CHUNK_ROWS):
        vocabulary.encode(labels.slice(start, CHUNK_ROWS).cast(pa.utf8()))


def silent(stage: str, done: int) -> None:
    """Default ``progress`` callback: do nothing."""


def check_split(split: tuple[float, float, float]) -> None:
    """Check the shares of train, valid and test.

    Raises:
        IngestError: not three shares ≥ 0 that sum to 1, with some for train.
    """
    if len(split) != 3 or min(split) < 0 or split[0] <= 0 or abs(sum(split) - 1) > 1e-6:
        raise IngestError(
            f"split {split} must be three shares that sum to 1, with some for train, such as 0.9,0.05,0.05"
        )


def report(store: str, manifest: Manifest, seconds: float) -> PrepareReport:
    """Build the report of a committed store."""
    rejects = address_within(store, "rejects.tsv") if "rejects.tsv" in manifest.files else None
    return PrepareReport(
        store=store,
        entities=manifest.entities,
        relations=manifest.relations,
        triples=manifest.triples,
        warnings=manifest.warnings,
        rejects=rejects,
        seconds=seconds,
        examples=manifest.examples,
    )
