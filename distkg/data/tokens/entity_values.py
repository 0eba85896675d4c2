"""What files say of entities, such as texts, numbers and images, brought into the order of a store's ids.

Files name entities by label, or by keys of their own with a file that says whose key it is.
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
"""Key of a file → label in the store."""


@dataclass(frozen=True)
class EntityValues:
    """What each entity has, in the order of ids.

    Attributes:
        values: large_list [N] of texts, paths or token ids; empty for entities without any.
        unknown: entries of the file that are of no entity of the store.
        example: the first of them.
    """

    values: pa.LargeListArray
    unknown: int = 0
    example: str = ""


@dataclass(frozen=True)
class Numbers:
    """Values of attributes: entity int32 [m], place in ``attributes`` int32 [m], value float64 [m]; ``unknown`` and
    ``example`` as in ``EntityValues``."""

    entity: NDArray[np.int32]
    attribute: NDArray[np.int32]
    value: NDArray[np.float64]
    attributes: list[str]
    unknown: int
    example: str


def by_entity(entity: np.ndarray, values: pa.Array, entities: int) -> pa.LargeListArray:
    """Values [m] of entities integer [m] as lists by id, each in the order of the values: large_list [entities]."""
    offsets, order = grouped_by(entity, entities)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values.take(pa.array(order)))


class Known:
    """Finds the entities that a file speaks of, and counts those that the store does not have.

    Args:
        keys: what the file calls them; None where it says labels.
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
        """Ids of entities, -1 for those that are not there: int32 [n]."""
        labels = names if self._keys is None else [self._keys.get(name, "") for name in names]
        ids = self._vocabulary.encode(pa.array([label if _is_text(label) else "" for label in labels], pa.utf8()))
        ids[ids >= self.entities] = -1
        strange = np.flatnonzero(ids < 0)
        if len(strange) and not self.unknown:
            self.example = names[strange[0]]
        self.unknown += len(strange)
        return ids

    def check_any(self, found: int, name: str) -> None:
        """Raise where a file speaks of none of the entities."""
        if not found:
            label = self._store.entity_labels()[0].as_py() if self.entities else ""
            said = f"its first is {self.example!r}" if self.unknown else "it is empty"
            if self._keys is not None and self.unknown:
                stands_for = self._keys.get(self.example)
                said += " (--ids " + ("has no such key)" if stands_for is None else f"says {stands_for!r})")
            raise IngestError(f"{name} speaks of no entity of the store: {said}, and the store's first {label!r}")


def read_keys(address: str) -> Keys:
    """Of lines KEY<TAB>LABEL (or a space), such as MyGO's ``entity2id.txt``; a first line with a count is passed over.

    Raises:
        IngestError: a line of other form; names file and line.
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
        raise IngestError(f"{file.name} has no lines KEY<TAB>LABEL: what it calls the entities is not known")
    return keys


def read_texts(store: Store, address: str, keys: Keys | None = None) -> EntityValues:
    """Texts of entities, of lines LABEL<TAB>TEXT; further tabs are part of the text, and entities may have more lines.

    Raises:
        IngestError: no such file, a line without a tab (named), or no entity of the store in it.
    """
    file, known = text_file(address), Known(store, keys)
    ids: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    texts = []
    for rows in _lines(file):
        labels = []
        for line, text in rows:
            label, tab, said = text.partition("\t")
            if not tab:
                raise IngestError(f"{file.name}:{line}: a label, a tab and a text are expected: {text[:80]!r}")
            labels.append(label)
            texts.append(said.replace("\t", " "))
        ids.append(known.ids(labels))
    return _gathered(np.concatenate(ids), pa.array(texts, pa.large_utf8()), known, file.name)


def labels_as_texts(store: Store) -> EntityValues:
    """What entities are called in the store, as words."""
    words = [words_of(label) for label in store.entity_labels().to_pylist()]
    return EntityValues(by_entity(np.arange(len(words)), pa.array(words, pa.large_utf8()), len(words)))


def read_numbers(store: Store, address: str, keys: Keys | None = None) -> Numbers:
    """Attributes of entities, of lines LABEL<TAB>ATTRIBUTE<TAB>VALUE.

    Raises:
        IngestError: no such file, a line of other form or with a value that is no finite number (named), or no entity
            of the store in it.
    """
    file, known, place = text_file(address), Known(store, keys), dict[str, int]()
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
    kept = entity >= 0
    known.check_any(int(kept.sum()), file.name)
    columns_of = np.array(attributes, np.int32)[kept], np.array(values, np.float64)[kept]
    return Numbers(entity[kept], *columns_of, list(place), known.unknown, known.example)


def read_token_lists(store: Store, address: str, vocabulary: int, keys: Keys | None = None) -> EntityValues:
    """Tokens that others have made, in MyGO's form: JSON {key: [token, …]}, also gzipped, or alone in a zip file.

    Args:
        vocabulary: tokens are below this.

    Raises:
        IngestError: no such file, not of this form (names the line or the key), or no entity of the store in it.
    """
    name, tree = _json(address)
    known = Known(store, keys)
    lists = []
    for key, tokens in tree.items():
        lists.append(_token_ids(tokens, vocabulary, f"{name}: {key!r}"))
    entity = np.repeat(known.ids(list(tree)), [len(tokens) for tokens in lists])
    return _gathered(entity, pa.array(np.concatenate([np.empty(0, np.int32), *lists])), known, name)


def find_images(store: Store, folder: Path, keys: Keys | None = None) -> EntityValues:
    """Paths of images: files ``KEY.jpg`` (any ending), or folders ``KEY`` of files, KEY being a label.

    A label that cannot be a file's name is written as in a URL: ``%2Fm%2F010016`` is /m/010016.

    Raises:
        IngestError: no such folder, or no entity of the store in it.
    """
    folder = local_path(folder, "folder of images")
    if not folder.is_dir():
        raise IngestError(f"there is no folder of images {folder}")
    known = Known(store, keys)
    found: list[tuple[str, Path]] = []
    for place in _visible(folder):
        if place.is_dir():
            found += [(unquote(place.name), file) for file in _visible(place) if file.is_file()]
        else:
            found.append((unquote(place.stem), place))
    unreadable = next((path for _, path in found if not _is_text(str(path.absolute()))), None)
    if unreadable is not None:
        raise IngestError(f"{str(unreadable)!a}: the name of this image is not UTF-8; rename it")
    entity = known.ids([key for key, _ in found])
    paths = pa.array([str(path.absolute()) for _, path in found], pa.large_utf8())
    return _gathered(entity, paths, known, str(folder))


def _is_text(label: str) -> bool:
    """False for a name with a lone surrogate, which UTF-8 and so a store cannot hold."""
    return label.isascii() or not any("\ud800" <= character <= "\udfff" for character in label)


def _gathered(entity: NDArray[np.int32], values: pa.Array, known: Known, name: str) -> EntityValues:
    kept = np.flatnonzero(entity >= 0)
    known.check_any(len(kept), name)
    return EntityValues(
        by_entity(entity[kept], values.take(pa.array(kept)), known.entities), known.unknown, known.example
    )


def _lines(file: SourceFile) -> Iterator[list[tuple[int, str]]]:
    """Line numbers and texts of lines that are not blank, some at a time."""
    lines = read_lines(file)
    while rows := list(islice(lines, LINES_AT_ONCE)):
        yield rows


def _number(text: str, name: str, line: int) -> float:
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise IngestError(f"{name}:{line}: {text[:80]!r} is no finite number")
    return value


def _token_ids(tokens: object, vocabulary: int, where: str) -> NDArray[np.int32]:
    """A list of JSON as token ids below ``vocabulary``."""
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
        # RuntimeError: a password is asked for, or a way of compression that Python lacks.
        raise IngestError(f"{file.name} cannot be read ({error}). It is damaged or cut off; fetch it again") from None
    try:
        tree = parse_json(content, LARGEST_JSON)
    except JsonError as error:
        place = f"{file.name}:{error.line}" if error.line else file.name
        raise IngestError(f"{place}: this is not JSON that can be read: {error}") from None
    if not isinstance(tree, dict):
        raise IngestError(f"{file.name}: an object {{key: [token, …]}} is expected")
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
