"""Readers of texts, numbers, images and tokens of entities, which return them in the order of a store's ids.

Files name entities by label, or by their own keys together with a file that maps keys to labels.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distkg.data.errors import IngestError
from distkg.data.readers.sources import SourceFile
from distkg.data.readers.text_files import read_lines, text_file
from distkg.data.readers.text_stream import read_bytes, too_large
from distkg.data.storage.local_path import local_path
from distkg.data.store.graph_store import Store
from distkg.data.store.relation_text import words_of
from distkg.data.store.vocabulary import Vocabulary
from distkg.graph.csr import grouped_by
from distkg.strict_json import JsonError, parse_json

LABELS_AT_ONCE = 1 << 20
LINES_AT_ONCE = 1 << 17
LARGEST_JSON = 1 << 30

Keys = Mapping[str, str]
"""Key in a file → label in the store."""


@dataclass(frozen=True)
class EntityValues:
    """Lists of values per entity, in the order of ids.

    Attributes:
        values: large_list [N] of texts, paths or token ids; empty for entities without values.
        unknown: number of entries of the file whose entity is not in the store.
        example: first name or key among the unknown entries.
    """

    values: pa.LargeListArray
    unknown: int = 0
    example: str = ""


@dataclass(frozen=True)
class Numbers:
    """Numeric attribute values: entity int32 [m], index into ``attributes`` int32 [m], value float64 [m]; ``unknown``
    and ``example`` as in ``EntityValues``."""

    entity: NDArray[np.int32]
    attribute: NDArray[np.int32]
    value: NDArray[np.float64]
    attributes: list[str]
    unknown: int
    example: str


def by_entity(entity: np.ndarray, values: pa.Array, entities: int) -> pa.LargeListArray:
    """Group values [m] by their entity ids [m] into lists, keeping their order: large_list [entities]."""
    offsets, order = grouped_by(entity, entities)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values.take(pa.array(order)))


class KnownEntities:
    """Lookup of entity ids by the names in a file; counts names that are not in the store.

    Args:
        keys: the file's keys → labels; None if the file uses labels.
    """

    def __init__(self, store: Store, keys: Keys | None = None) -> None:
        self.entities = store.num_entities
        self.unknown, self.example = 0, ""
        self._store, self._keys = store, keys
        self._vocabulary = Vocabulary()
        labels = store.entity_labels()
        for start in range(0, len(labels), LABELS_AT_ONCE):
            self._vocabulary.encode(labels.slice(start, LABELS_AT_ONCE).cast(pa.utf8()))

    def ids(self, names: Sequence[str]) -> NDArray[np.int32]:
        """Return the ids of entities, -1 for those not in the store: int32 [n]."""
        labels = names if self._keys is None else [self._keys.get(name, "") for name in names]
        ids = self._vocabulary.encode(pa.array([label if _is_text(label) else "" for label in labels], pa.utf8()))
        ids[ids >= self.entities] = -1
        unknown = np.flatnonzero(ids < 0)
        if len(unknown) and not self.unknown:
            self.example = names[unknown[0]]
        self.unknown += len(unknown)
        return ids

    def check_any(self, found: int, name: str) -> None:
        """Raise IngestError if a file names no entity of the store."""
        if not found:
            label = self._store.entity_labels()[0].as_py() if self.entities else ""
            reason = f"its first is {self.example!r}" if self.unknown else "it is empty"
            if self._keys is not None and self.unknown:
                key_label = self._keys.get(self.example)
                reason += " (--ids " + ("has no such key)" if key_label is None else f"says {key_label!r})")
            raise IngestError(f"{name} names no entity of the store: {reason}, and the store's first is {label!r}")


def read_keys(address: str) -> Keys:
    """Read a map of keys to labels from lines KEY<TAB>LABEL (or a space), such as MyGO's ``entity2id.txt``.

    A first line with a count is skipped.

    Raises:
        IngestError: a line of another form; names file and line.
    """
    file = text_file(address)
    keys: dict[str, str] = {}
    for rows in _lines(file):
        for line, text in rows:
            fields = text.split("\t") if "\t" in text else text.rsplit(" ", 1)
            if line == 1 and len(fields) == 1 and text.strip().isdigit():
                continue
            if len(fields) != 2:
                raise IngestError(f"{file.name}:{line}: a key, a tab and a label are expected: {text[:80]!r}")
            key, label = fields[0], fields[1].strip()
            if keys.setdefault(key, label) != label:
                raise IngestError(
                    f"{file.name}:{line}: key {key[:80]!r} has the label {label[:80]!r}, and another one in an earlier "
                    "line; keep one"
                )
    if not keys:
        raise IngestError(f"{file.name} has no lines KEY<TAB>LABEL, so the keys of entities are unknown")
    return keys


def read_texts(store: Store, address: str, keys: Keys | None = None) -> EntityValues:
    """Read texts of entities from lines LABEL<TAB>TEXT.

    Further tabs belong to the text, and an entity may have several lines.

    Raises:
        IngestError: no such file, a line without a tab (named), or no entity of the store in it.
    """
    file, known = text_file(address), KnownEntities(store, keys)
    ids: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    texts = []
    for rows in _lines(file):
        labels = []
        for line, text in rows:
            label, tab, entity_text = text.partition("\t")
            if not tab:
                raise IngestError(f"{file.name}:{line}: a label, a tab and a text are expected: {text[:80]!r}")
            labels.append(label)
            texts.append(entity_text.replace("\t", " "))
        ids.append(known.ids(labels))
    return _entity_values(np.concatenate(ids), pa.array(texts, pa.large_utf8()), known, file.name)


def labels_as_texts(store: Store) -> EntityValues:
    """Return the labels of entities, split into words, as their texts."""
    words = [words_of(label) for label in store.entity_labels().to_pylist()]
    return EntityValues(by_entity(np.arange(len(words)), pa.array(words, pa.large_utf8()), len(words)))


def read_numbers(store: Store, address: str, keys: Keys | None = None) -> Numbers:
    """Read attributes of entities from lines LABEL<TAB>ATTRIBUTE<TAB>VALUE.

    Raises:
        IngestError: no such file, a line of another form or with a value that is not a finite number (named), or no
            entity of the store in it.
    """
    file, known, place = text_file(address), KnownEntities(store, keys), dict[str, int]()
    ids: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    attributes, values = [], []
    for rows in _lines(file):
        labels = []
        for line, text in rows:
            fields = text.split("\t")
            if len(fields) != 3:
                columns = f"{len(fields)} column{'s' * (len(fields) != 1)}"
                raise IngestError(f"{file.name}:{line}: {columns} where label, attribute and value are expected")
            labels.append(fields[0])
            attributes.append(place.setdefault(fields[1], len(place)))
            values.append(_number(fields[2], file.name, line))
        ids.append(known.ids(labels))
    entity = np.concatenate(ids)
    known_rows = entity >= 0
    known.check_any(int(known_rows.sum()), file.name)
    columns_of = np.array(attributes, np.int32)[known_rows], np.array(values, np.float64)[known_rows]
    return Numbers(entity[known_rows], *columns_of, list(place), known.unknown, known.example)


def read_token_lists(store: Store, address: str, vocabulary: int, keys: Keys | None = None) -> EntityValues:
    """Read ready-made tokens in MyGO's format: JSON {key: [token, …]}, also gzipped, or as the only JSON in a zip.

    Args:
        vocabulary: number of tokens; ids are below.

    Raises:
        IngestError: no such file, not of this form (names the line or the key), or no entity of the store in it.
    """
    name, tree = _json(address)
    known = KnownEntities(store, keys)
    lists = []
    for key, tokens in tree.items():
        lists.append(_token_ids(tokens, vocabulary, f"{name}: {key!r}"))
    entity = np.repeat(known.ids(list(tree)), [len(tokens) for tokens in lists])
    return _entity_values(entity, pa.array(np.concatenate([np.empty(0, np.int32), *lists])), known, name)


def find_images(store: Store, folder: Path, keys: Keys | None = None) -> EntityValues:
    """Find the images of entities: files ``KEY.jpg`` (any extension), or folders ``KEY`` of files.

    KEY is a label, or a key of ``keys``. Characters that a file name cannot hold are percent-encoded:
    ``%2Fm%2F010016`` is /m/010016.

    Raises:
        IngestError: no such folder, or no entity of the store in it.
    """
    folder = local_path(folder, "folder of images")
    if not folder.is_dir():
        raise IngestError(f"there is no folder of images {folder}")
    known = KnownEntities(store, keys)
    images: list[tuple[str, Path]] = []
    for place in _visible(folder):
        if place.is_dir():
            images += [(unquote(place.name), file) for file in _visible(place) if file.is_file()]
        else:
            images.append((unquote(place.stem), place))
    unreadable = next((path for _, path in images if not _is_text(str(path.absolute()))), None)
    if unreadable is not None:
        raise IngestError(f"{str(unreadable)!a}: the name of this image is not UTF-8; rename it")
    entity = known.ids([key for key, _ in images])
    paths = pa.array([str(path.absolute()) for _, path in images], pa.large_utf8())
    return _entity_values(entity, paths, known, str(folder))


def _is_text(label: str) -> bool:
    """Return False for a name with a lone surrogate, which is not encodable in UTF-8."""
    return label.isascii() or not any("\ud800" <= character <= "\udfff" for character in label)


def _entity_values(entity: NDArray[np.int32], values: pa.Array, known: KnownEntities, name: str) -> EntityValues:
    known_rows = np.flatnonzero(entity >= 0)
    known.check_any(len(known_rows), name)
    return EntityValues(
        by_entity(entity[known_rows], values.take(pa.array(known_rows)), known.entities), known.unknown, known.example
    )


def _lines(file: SourceFile) -> Iterator[list[tuple[int, str]]]:
    """Yield lists of (line number, text) of lines that are not blank."""
    lines = read_lines(file)
    while rows := list(islice(lines, LINES_AT_ONCE)):
        yield rows


def _number(text: str, name: str, line: int) -> float:
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise IngestError(f"{name}:{line}: {text[:80]!r} is not a finite number")
    return value


def _token_ids(tokens: object, vocabulary: int, where: str) -> NDArray[np.int32]:
    """Convert a JSON list to token ids below ``vocabulary``."""
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise IngestError(f"{where} needs a list of token ids: {str(tokens)[:80]}")
    wrong = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise IngestError(f"{where} has token {str(wrong)[:40]}; the codebook has 0 to {vocabulary - 1}")
    return np.array(tokens, np.int32)


def _json(address: str) -> tuple[str, dict[str, object]]:
    file = text_file(address)
    try:
        content = _zipped_json(file) if file.name.endswith(".zip") else read_bytes(file, LARGEST_JSON)
    except IngestError:
        raise
    except (OSError, pa.ArrowInvalid, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError: encrypted, or an unsupported compression method.
        raise IngestError(f"{file.name} cannot be read ({error}). It is damaged or cut off; fetch it again") from None
    try:
        tree = parse_json(content, LARGEST_JSON)
    except JsonError as error:
        place = f"{file.name}:{error.line}" if error.line else file.name
        raise IngestError(f"{place}: invalid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise IngestError(f"{file.name}: a JSON object {{key: [token, …]}} is expected")
    return file.name, tree


def _zipped_json(file: SourceFile) -> bytes:
    with (
        file.location.filesystem.open_input_file(file.location.path) as stream,
        zipfile.ZipFile(stream) as zipped,
    ):
        entries = [entry for entry in zipped.infolist() if entry.filename.endswith(".json")]
        if len(entries) != 1:
            raise IngestError(f"{file.name} holds {len(entries)} files .json where one is expected")
        if entries[0].file_size > LARGEST_JSON:
            raise too_large(file.name, LARGEST_JSON)
        return zipped.read(entries[0])


def _visible(folder: Path) -> list[Path]:
    return sorted(place for place in folder.iterdir() if not place.name.startswith("."))
