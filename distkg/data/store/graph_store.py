"""Graph store: Parquet files of triples as ids, labels by id, and a manifest.

Layout of a store folder: ``train.parquet``, ``valid.parquet``, ``test.parquet`` (columns head, relation, tail,
int32), ``entities.parquet`` and ``relations.parquet`` (columns id, label, in id order), ``manifest.json``, and
``rejects.tsv`` if lines were rejected. If the source declares classes: ``classes.parquet`` (id, label),
``entity_classes.parquet`` (entity, class) and ``relation_classes.parquet`` (class of heads and of tails, -1 for none).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distkg.data.errors import StoreError
from distkg.data.splits.inductive import INFERENCE, TRAINING
from distkg.data.storage.location import Location, address_within, without_secrets
from distkg.data.store.classes import Classes, Declared
from distkg.data.store.manifest import MANIFEST, MARKER, Manifest, damaged, parse_manifest
from distkg.printable import from_printable
from distkg.redaction import is_remote, redact
from distkg.strict_json import MAX_BYTES

__all__ = ["Manifest", "Store", "StoreError"]

BATCH_ROWS = 1 << 20
LABELS_AT_ONCE = 1 << 16
MOST_COMPARED = 20_000
TRIPLE_COLUMNS = {"head": pa.int32(), "relation": pa.int32(), "tail": pa.int32()}
LABEL_COLUMNS = {"id": pa.int32(), "label": pa.utf8()}
LABELS = ("entities.parquet", "relations.parquet", "classes.parquet")
CLASS_FILES = ("classes.parquet", "entity_classes.parquet", "relation_classes.parquet")


class Store:
    """Opened graph store; create it with ``Store.open``, which reads the manifest only.

    Attributes:
        address: address as given to ``open``, possibly with credentials: do not print or record it.
        shown: name of the store in errors: the address without credentials, or ``called`` of ``open``.
        manifest: counts, files and partitions of the store.
    """

    def __init__(self, address: str, location: Location, manifest: Manifest, called: str | None = None) -> None:
        self.address = address
        self.manifest = manifest
        self.shown = without_secrets(called or address)
        self._location = location

    @classmethod
    def open(cls, address: str, called: str | None = None) -> Store:
        """Open a local folder or any address pyarrow knows, such as ``s3://bucket/graph?region=eu-west-1``.

        Args:
            called: name of the store in errors, if its address means nothing to the user.

        Raises:
            StoreError: no store there, or one that is half-written, damaged or of a later schema; says what to do.
        """
        location, shown = Location.of(address), without_secrets(address)
        try:
            names = location.names()
            if MANIFEST in names:
                content = location.file_within(MANIFEST).read_bytes(MAX_BYTES + 1)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"store {shown} cannot be read: {redact(str(error))}{_how_to_sign_in(address)}") from None
        if MANIFEST in names:
            manifest = parse_manifest(content, shown)
            _check_files(manifest, shown)
            return cls(address, location, manifest, called)
        if MARKER in names:
            raise StoreError(
                f"store {shown} is half-written: the `distkg prepare` or `distkg generate` that made it has "
                "not finished. If it is no longer running, run it again with the same --store; it starts over"
            )
        if {TRAINING, INFERENCE} <= names:
            raise StoreError(f"{shown} holds two stores: open {shown}/{TRAINING} or {shown}/{INFERENCE}")
        raise StoreError(f"there is no store at {shown}. Make one with `distkg prepare SOURCE --store {shown}`")

    @classmethod
    def open_inference(cls, address: str) -> Store:
        """Open a store as ``open`` does; in a folder that holds two stores, open the inference store.

        Raises:
            StoreError: as ``open``.
        """
        location = Location.of(address)
        two = location.is_folder() and {TRAINING, INFERENCE} <= location.names()
        return cls.open(address_within(address, INFERENCE) if two else address)

    @classmethod
    def open_all(cls, address: str) -> list[Store]:
        """Open all stores of an address: the training and inference stores of a folder that holds two, else one.

        Raises:
            StoreError: as ``open``.
        """
        location = Location.of(address)
        two = location.is_folder() and {TRAINING, INFERENCE} <= location.names()
        return (
            [cls.open(address_within(address, name)) for name in (TRAINING, INFERENCE)] if two else [cls.open(address)]
        )

    @cached_property
    def num_entities(self) -> int:
        """Number of entities N, checked against the rows of ``entities.parquet``.

        Raises:
            StoreError: manifest and file disagree, or the file cannot be read.
        """
        return self._rows("entities.parquet", self.manifest.entities)

    @cached_property
    def num_relations(self) -> int:
        """Number of relations R, without inverses; checked like ``num_entities``."""
        return self._rows("relations.parquet", self.manifest.relations)

    def triples(self, split: str) -> NDArray[np.int32]:
        """Read all triples of a split: int32 [n, 3], columns head, relation, tail."""
        return self.triples_part(split, 0, 1)

    def triples_part(self, split: str, part: int, parts: int, first: int = 0) -> NDArray[np.int32]:
        """Read every ``parts``-th triple from row ``first + part`` on: int32 [n, 3]. Memory: the part and one batch."""
        if not 0 <= part < parts:
            raise ValueError(f"part {part} of {parts}: it must be from 0 to {parts - 1}")
        row_numbers = range(first + part, self._rows(f"{split}.parquet", self._count(split)), parts)
        out = np.empty((len(row_numbers), 3), dtype=np.int32)
        start = filled = 0
        for batch in self.iter_triples([split], first=first):
            selected = batch[(part - start) % parts :: parts]
            out[filled : filled + len(selected)] = selected
            start, filled = start + len(batch), filled + len(selected)
        return out

    def iter_triples(
        self, splits: Sequence[str], batch_rows: int = BATCH_ROWS, first: int = 0
    ) -> Iterator[NDArray[np.int32]]:
        """Stream the triples of the splits, in their order, in batches of at most ``batch_rows``: int32 [b, 3].

        Args:
            first: rows to leave out at the start of each split, such as those of the store that was extended.

        Raises:
            StoreError: an unknown split, a missing or damaged file, a row count other than the manifest's, or an id
                outside the store's range.
        """
        limits = self.num_entities, self.num_relations, self.num_entities
        for split in splits:
            name = f"{split}.parquet"
            with self._parquet(name, self._count(split), TRIPLE_COLUMNS) as parquet:
                skipped = 0
                for batch in parquet.iter_batches(batch_rows):
                    own = min(first - skipped, len(batch))
                    skipped += own
                    batch = batch.slice(own)
                    if not len(batch) and own:
                        continue
                    columns = [
                        self._ids(name, column, most) for column, most in zip(batch.columns, limits, strict=True)
                    ]
                    yield np.stack(columns, axis=1)

    def entity_labels(self) -> pa.Array:
        """Entity labels in id order: utf8 [N] (large_utf8 beyond 2 GiB of text)."""
        return self._entities

    def iter_entity_labels(self, batch_rows: int = LABELS_AT_ONCE) -> Iterator[pa.Array]:
        """Stream the entity labels in id order: utf8 [n] each.

        Raises:
            StoreError: as ``num_entities``, or a row lacks its label.
        """
        name = "entities.parquet"
        with self._parquet(name, self.manifest.entities, LABEL_COLUMNS) as parquet:
            for batch in parquet.iter_batches(batch_rows, columns=["label"], use_threads=False):
                batch.validate(full=True)
                if batch.column(0).null_count:
                    raise self._unreadable(name, "a row lacks its label")
                yield batch.column(0)

    def relation_labels(self) -> pa.Array:
        """Relation labels in id order: utf8 [R]."""
        return self._relations

    def entity_id(self, label: str) -> int:
        """Id of an entity by its label, or by its printed form (`printable`) if it holds unprintable characters.

        Raises:
            StoreError: no such label; suggests similar labels.
        """
        return self._id(label, self._entities, "entity")

    def relation_id(self, label: str) -> int:
        """Id of a relation by its label, like ``entity_id``."""
        return self._id(label, self._relations, "relation")

    def entity_labels_of(self, ids: np.ndarray) -> list[str]:
        """Labels of entity ids [n]."""
        return self._entities.take(pa.array(ids)).to_pylist()

    def degrees(self) -> NDArray[np.int64]:
        """Occurrences of each entity in train, as head or tail: int64 [N]."""
        counts = np.zeros(self.num_entities, dtype=np.int64)
        for batch in self.iter_triples(["train"]):
            counts += np.bincount(batch[:, 0], minlength=len(counts))
            counts += np.bincount(batch[:, 2], minlength=len(counts))
        return counts

    def classes(self) -> Classes | None:
        """Entity classes, domains and ranges; None if the source declared no classes."""
        if "classes.parquet" not in self.manifest.files:
            return None
        labels = self._labels("classes.parquet")
        files, most = self.manifest.files, len(labels)
        limits = {"entity": self.num_entities, "class": most}
        entity, kind = self._columns("entity_classes.parquet", files["entity_classes.parquet"].rows, limits)
        if (np.diff(entity) < 0).any():
            raise self._unreadable("entity_classes.parquet", "its entities are not in order")
        limits_of_sides = {"head": most, "tail": most}
        head, tail = self._columns("relation_classes.parquet", self.num_relations, limits_of_sides, least=-1)
        offsets = np.searchsorted(entity, np.arange(self.num_entities + 1)).astype(np.int64)
        return Classes(labels, offsets, kind, np.concatenate([tail, head]))

    def declared_classes(self, entities: np.ndarray, relations: np.ndarray) -> Declared | None:
        """Return the declared classes of these entities, and domains and ranges of these relations, as labels."""
        classes = self.classes()
        if classes is None:
            return None
        names = classes.labels.to_pylist()
        labels = self.entity_labels_of(entities)
        members = [
            (label, names[kind])
            for label, entity in zip(labels, entities, strict=True)
            for kind in classes.members[classes.offsets[entity] : classes.offsets[entity + 1]]
        ]
        range_of, domain_of = np.split(classes.required, 2)
        names_or_dash = [*names, "-"]  # index -1 means none
        kinds = [
            (label.as_py(), names_or_dash[domain_of[relation]], names_or_dash[range_of[relation]])
            for label, relation in zip(self.relation_labels().take(pa.array(relations)), relations, strict=True)
        ]
        return Declared(members, kinds)

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compare files with their checksums in the manifest: all files, or those named.

        Raises:
            StoreError: names the file that is missing or differs.
        """
        for name in self.manifest.files if names is None else names:
            if self._sha256(name) != self.manifest.files[name].sha256:
                raise StoreError(
                    f"{name} of store {self.shown} differs from its checksum in {MANIFEST}. "
                    "Copy it again from where it came, or make the store again with `distkg prepare`"
                )

    @cached_property
    def _entities(self) -> pa.Array:
        return self._labels("entities.parquet")

    @cached_property
    def _relations(self) -> pa.Array:
        return self._labels("relations.parquet")

    def _count(self, split: str) -> int:
        if split not in self.manifest.triples:
            raise StoreError(f"there is no split {split!r}. Known: {', '.join(self.manifest.triples)}")
        return self.manifest.triples[split]

    @contextmanager
    def _parquet(self, name: str, rows: int, columns: Mapping[str, pa.DataType]) -> Iterator[pq.ParquetFile]:
        """Open a Parquet file and check its header against the manifest.

        Raises:
            StoreError: the file cannot be read, or has other rows or columns.
        """
        try:
            file = self._location.file_within(name)
            with file.filesystem.open_input_file(file.path) as source, pq.ParquetFile(source) as parquet:
                self._check_header(name, parquet, rows, columns)
                yield parquet
        except StoreError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: column names that are not UTF-8
            raise self._unreadable(name, redact(str(error))) from None

    def _check_header(self, name: str, parquet: pq.ParquetFile, rows: int, columns: Mapping[str, pa.DataType]) -> None:
        if parquet.metadata.num_rows != rows:
            raise StoreError(f"{name} of store {self.shown} does not hold the rows of its {MANIFEST}")
        schema = parquet.schema_arrow
        if dict(zip(schema.names, schema.types, strict=True)) != columns or len(schema.names) != len(columns):
            raise self._unreadable(
                name, f"its columns are not {', '.join(f'{key} ({columns[key]})' for key in columns)}"
            )

    def _rows(self, name: str, rows: int) -> int:
        """Return ``rows``, the row count in the manifest, after checking it against the file."""
        columns = LABEL_COLUMNS if name in LABELS else TRIPLE_COLUMNS
        with self._parquet(name, rows, columns):
            return rows

    def _unreadable(self, name: str, reason: str) -> StoreError:
        return StoreError(
            f"{name} of store {self.shown} cannot be read ({reason}). Make the store again with `distkg prepare`"
        )

    def _columns(self, name: str, rows: int, limits: Mapping[str, int], least: int = 0) -> list[NDArray[np.int32]]:
        with self._parquet(name, rows, dict.fromkeys(limits, pa.int32())) as parquet:
            table = parquet.read()
        chunks = (column.combine_chunks() for column in table.columns)
        return [self._ids(name, column, most, least) for column, most in zip(chunks, limits.values(), strict=True)]

    def _ids(self, name: str, column: pa.Array, most: int, least: int = 0) -> NDArray[np.int32]:
        """Convert a column of ids in [least, most): int32 [n].

        Raises:
            StoreError: a null, or an id out of range.
        """
        if column.null_count:
            raise self._unreadable(name, "a row lacks a value")
        ids: NDArray[np.int32] = np.from_dlpack(column).astype(np.int32, copy=False)
        if len(ids) and (int(ids.min()) < least or int(ids.max()) >= most):
            wrong = ids[(ids < least) | (ids >= most)][0]
            raise self._unreadable(name, f"it holds id {wrong}, and ids go from {least} to {most - 1}")
        return ids

    def _labels(self, name: str) -> pa.Array:
        with self._parquet(name, self.manifest.files[name].rows, LABEL_COLUMNS) as parquet:
            column = parquet.read(columns=["label"]).column("label")
            column.validate(full=True)
        if column.null_count:
            raise self._unreadable(name, "a row lacks its label")
        if column.nbytes >= 2**31:
            column = column.cast(pa.large_utf8())
        return column.combine_chunks()

    def _id(self, label: str, labels: pa.Array, kind: str) -> int:
        for candidate in dict.fromkeys((label, from_printable(label))):
            index: int = pc.index(labels, pa.scalar(candidate, labels.type)).as_py()
            if index >= 0:
                return index
        close = ", ".join(repr(other) for other in _close_labels(label, labels))
        hint = f" Close: {close}." if close else ""
        raise StoreError(f"store {self.shown} has no {kind} labelled {label!r}.{hint}")

    def _sha256(self, name: str) -> str:
        try:
            return self._location.child(name).sha256()
        except OSError as error:
            raise self._unreadable(name, redact(str(error))) from None


def _check_files(manifest: Manifest, shown: str) -> None:
    """Raise StoreError if the manifest lacks a file of the store, or its counts contradict each other."""
    rows = {"entities.parquet": manifest.entities, "relations.parquet": manifest.relations}
    rows |= {f"{split}.parquet": count for split, count in manifest.triples.items()}
    rows |= dict.fromkeys(CLASS_FILES, -1) if CLASS_FILES[0] in manifest.files else {}
    if "train" not in manifest.triples:
        raise damaged(shown, "triples: the split train is missing")
    for name, count in rows.items():
        if name not in manifest.files:
            raise damaged(shown, f"files: {name} is missing")
        if count not in (-1, manifest.files[name].rows):
            raise damaged(
                shown,
                f"{name} has {manifest.files[name].rows} rows by its list of files and {count} by its counts; it"
                " does not hold the rows of its manifest",
            )


def _how_to_sign_in(address: str) -> str:
    """Hint for a remote store that refuses access; empty for a local one."""
    if not is_remote(address):
        return ""
    return (
        ". Credentials are taken from the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or from "
        "the address; a run records the address without them"
    )


def _close_labels(label: str, labels: pa.Array) -> list[str]:
    """Return up to three similar labels, ignoring case.

    Among more than ``MOST_COMPARED``, compare only labels that contain ``label`` or share its first three characters.
    """
    if len(labels) > MOST_COMPARED:
        contains = pc.match_substring(labels, label, ignore_case=True)
        begins = pc.starts_with(labels, label[:3], ignore_case=True)
        labels = pc.filter(labels, pc.or_(contains, begins)).slice(0, MOST_COMPARED)
    lowered = {other.lower(): other for other in labels.to_pylist()}
    return [lowered[close] for close in get_close_matches(label.lower(), lowered, n=3)]
