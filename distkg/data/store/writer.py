"""Writer of a store: a marker first, then the files, the manifest last.

A folder without a manifest is not a store: a marker alone means that a writer was interrupted.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distkg.data.errors import StoreError
from distkg.data.storage.location import Location, make_folder, without_secrets
from distkg.data.store.classes import Classes
from distkg.data.store.manifest import MANIFEST, MARKER, FileEntry, Manifest
from distkg.graph.csr import row_of_each
from distkg.redaction import redact

ROW_GROUP = 1 << 19
TRIPLE_SCHEMA = pa.schema([("head", pa.int32()), ("relation", pa.int32()), ("tail", pa.int32())])
LABEL_SCHEMA = pa.schema([("id", pa.int32()), ("label", pa.utf8())])


class HashingFile(RawIOBase):
    """Output stream that computes the SHA-256 and the size of the bytes written."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._digest.update(view)
        self._stream.write(view)
        self.bytes += len(view)
        return len(view)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    def entry(self, rows: int) -> FileEntry:
        return FileEntry(sha256=self._digest.hexdigest(), bytes=self.bytes, rows=rows)


class StoreWriter:
    """Context manager that writes a store and makes it valid at ``commit``; an error removes the folder.

    Args:
        address: new folder, empty folder, or half-written store (it is replaced).
        private: the source is not public: create the folder readable by its owner only.

    Attributes:
        scratch: local folder for temporary files; removed at the end.

    Raises:
        StoreError: the folder holds a finished store or other files, or a write fails.
    """

    def __init__(self, address: str, *, private: bool = False) -> None:
        self.address = address
        self.private = private
        self.location = Location.of(address)
        self.files: dict[str, FileEntry] = {}
        self._open: dict[str, HashingFile] = {}

    def __enter__(self) -> StoreWriter:
        _claim(self.location, without_secrets(self.address), private=self.private)
        # In the store's own folder if that is local: /tmp may be small, or in memory.
        parent = self.location.path if self.location.local else None
        self.scratch = Path(tempfile.mkdtemp(prefix=".scratch-", dir=parent))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        if kind is not None:
            for file in self._open.values():
                file.close()
            self.location.filesystem.delete_dir(self.location.path)
        if isinstance(error, OSError):
            reason = redact(str(error))
            raise StoreError(f"store {without_secrets(self.address)} could not be written: {reason}") from error

    def open(self, name: str) -> HashingFile:
        """Open a new file of the store; ``record`` closes it and records its rows."""
        stream = self.location.filesystem.open_output_stream(self.location.child(name).path, compression=None)
        self._open[name] = HashingFile(stream)
        return self._open[name]

    def open_rejects(self) -> BinaryIO:
        return cast(BinaryIO, self.open("rejects.tsv"))

    def record(self, name: str, rows: int) -> None:
        """Close a file and list it in the manifest."""
        file = self._open.pop(name)
        file.close()
        self.files[name] = file.entry(rows)

    def write_labels(self, name: str, labels: pa.Array) -> None:
        """Write labels in id order (large_utf8 [n]) as columns id, label."""
        file = self.open(name)
        with pq.ParquetWriter(file, LABEL_SCHEMA, compression="zstd", use_dictionary=False) as parquet:
            for start in range(0, len(labels), ROW_GROUP):
                part = labels.slice(start, ROW_GROUP).cast(pa.utf8())
                ids = pa.array(np.arange(start, start + len(part), dtype=np.int32))
                parquet.write_table(pa.table([ids, part], schema=LABEL_SCHEMA))
        self.record(name, len(labels))

    def write_classes(self, classes: Classes) -> None:
        """Write the three class files that ``Store.classes`` reads."""
        entity = row_of_each(classes.offsets, np.int32)
        required_tail, required_head = np.split(classes.required, 2)
        self.write_labels("classes.parquet", classes.labels)
        self._write_table("entity_classes.parquet", {"entity": entity, "class": classes.members})
        self._write_table("relation_classes.parquet", {"head": required_head, "tail": required_tail})

    def _write_table(self, name: str, columns: dict[str, NDArray[np.int32]]) -> None:
        file = self.open(name)
        table = pa.table({column: pa.array(values) for column, values in columns.items()})
        pq.write_table(table, file, compression="zstd", row_group_size=ROW_GROUP)
        self.record(name, table.num_rows)

    def commit(self, manifest: Manifest) -> None:
        """Write the manifest and remove the marker, which makes the store valid."""
        content = manifest.model_dump_json(indent=1, exclude_none=True) + "\n"
        self.location.child(MANIFEST).write_bytes(content.encode())
        self.location.filesystem.delete_file(self.location.child(MARKER).path)


class TripleSink:
    """Context manager that writes one split of a store, batch by batch."""

    def __init__(self, writer: StoreWriter, split: str) -> None:
        self._writer = writer
        self._name = f"{split}.parquet"
        self.rows = 0

    def __enter__(self) -> TripleSink:
        file = self._writer.open(self._name)
        # Within a page entity ids rarely repeat, relation ids do: only the latter gain from a dictionary.
        self._parquet = pq.ParquetWriter(file, TRIPLE_SCHEMA, compression="zstd", use_dictionary=["relation"])
        return self

    def write(self, triples: NDArray[np.int32]) -> None:
        """Append triples int32 [n, 3]."""
        columns = [pa.array(np.ascontiguousarray(triples[:, column])) for column in range(3)]
        self._parquet.write_table(pa.table(columns, schema=TRIPLE_SCHEMA), row_group_size=ROW_GROUP)
        self.rows += len(triples)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parquet.close()
        if kind is None:
            self._writer.record(self._name, self.rows)


def _claim(location: Location, shown: str, *, private: bool) -> None:
    """Create or empty the folder and mark it as half-written; raise StoreError if it holds anything else."""
    try:
        if location.is_file():
            raise StoreError(f"{shown} is a file. Name a new or empty folder")
        names = location.names()
        if MANIFEST in names:
            raise StoreError(f"{shown} already holds a finished store. Remove the folder, or name another one")
        if names and MARKER not in names:
            some = ", ".join(sorted(names)[:3])
            raise StoreError(f"{shown} holds other files ({some}). Name a new or empty folder")
        if names:
            location.filesystem.delete_dir_contents(location.path)
        if location.local:
            make_folder(location.path, private=private)
        else:
            location.filesystem.create_dir(location.path, recursive=True)
        location.child(MARKER).write_bytes(b"a writer is at work here, or was interrupted\n")
    except OSError as error:
        raise StoreError(f"no store can be written to {shown}: {redact(str(error))}") from None
