"""Token store: discrete tokens of entities by modality, such as text or image, in the folder ``tokens`` of a store.

``NAME.safetensors`` holds the tokens of all entities, int32 [N, n] in the order of ids, so that a rank reads only its
own rows. An entity with fewer than n tokens is padded with -1, which readers must mask. ``codebooks/HASH.safetensors``
holds a frozen vector per token, float16 [V, d]. Modalities with equal codebooks refer to the same file name, also in
other stores, so a reader can skip a hash that it knows. ``NAME.json`` names the codebook, the number of entities with
tokens, and the checksum of the entity order. It is written last, so a modality that has it is complete.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from distkg.data.errors import StoreError
from distkg.data.storage.location import Location
from distkg.data.storage.row_files import RowFile, write_rows
from distkg.data.store.graph_store import Store
from distkg.data.store.manifest import FileEntry
from distkg.printable import printable
from distkg.strict_json import MAX_BYTES, JsonError, parse_json

FOLDER, CODEBOOKS = "tokens", "codebooks"
FORMAT_VERSION = 1
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


class ModalityDescription(BaseModel):
    """Contents of ``NAME.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: int = FORMAT_VERSION
    source: str = Field(description="Origin of the tokens, and how they were made.")
    tokens: int = Field(ge=1, description="Largest number of tokens of an entity: n.")
    covered: int = Field(ge=0, description="Number of entities that have a token.")
    entities: str = Field(description="SHA-256 of the store's entities.parquet, which gives the order of rows.")
    ids: FileEntry
    codebook: FileEntry
    width: int = Field(ge=1, description="Width of the codebook's vectors: d.")


@dataclass(frozen=True)
class Modality:
    """Tokens of one modality for the entities of a store.

    Attributes:
        name: name of the modality, such as ``text`` or ``image``.
        description: contents of ``NAME.json``.
    """

    name: str
    description: ModalityDescription
    _folder: Location

    @property
    def entities(self) -> int:
        """Number of entities N."""
        return self.description.ids.rows

    @property
    def tokens(self) -> int:
        """Largest number of tokens of an entity, n."""
        return self.description.tokens

    @property
    def vocabulary(self) -> int:
        """Number of tokens in the codebook, V."""
        return self.description.codebook.rows

    @property
    def width(self) -> int:
        """Width of the codebook's vectors, d."""
        return self.description.width

    @property
    def covered(self) -> int:
        """Number of entities that have a token."""
        return self.description.covered

    @property
    def codebook_id(self) -> str:
        """Hash of the codebook; equal for equal codebooks."""
        return self.description.codebook.sha256

    def rows(self, low: int = 0, high: int | None = None) -> NDArray[np.int32]:
        """Read the tokens of entities [low, high), by default all: int32 [high - low, n], ascending, padded with -1.

        Raises:
            StoreError: a missing or damaged file.
        """
        file = RowFile.open(self._folder.file_within(f"{self.name}.safetensors"))
        if (file.rows, file.width) != (self.entities, self.tokens):
            raise self._damaged(file.file, f"{file.rows} × {file.width} instead of {self.entities} × {self.tokens}")
        tokens = file.read(low, self.entities if high is None else high)
        if tokens.size and not -1 <= int(tokens.min()) <= int(tokens.max()) < self.vocabulary:
            raise self._damaged(file.file, f"it holds tokens that are not from -1 to {self.vocabulary - 1}")
        return tokens

    def codebook(self) -> NDArray[np.float16]:
        """Read the vectors of tokens: float16 [V, d].

        Raises:
            StoreError: a missing or damaged file.
        """
        file = self._codebook_file
        try:
            content = file.read_bytes(self.description.codebook.bytes + 1)
            if len(content) != self.description.codebook.bytes:
                raise self._damaged(file, f"its size is not that of {self.name}.json")
            vectors: NDArray[np.float16] = load(content)["codebook"]
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise self._damaged(file, str(error)) from None
        if vectors.shape != (self.vocabulary, self.width) or vectors.dtype != np.float16:
            actual = f"{vectors.dtype} {list(vectors.shape)}"
            raise self._damaged(file, f"{actual} instead of float16 {[self.vocabulary, self.width]}")
        if not np.isfinite(vectors).all():
            raise self._damaged(file, "it holds a number that is not finite")
        return vectors

    def verify(self) -> None:
        """Compare the files with their checksums.

        Raises:
            StoreError: a file is missing or differs; the message names it.
        """
        ids = self._folder.file_within(f"{self.name}.safetensors")
        for file, entry in ((ids, self.description.ids), (self._codebook_file, self.description.codebook)):
            try:
                checksum = file.sha256()
            except OSError as error:
                raise self._damaged(file, str(error)) from None
            if checksum != entry.sha256:
                raise self._damaged(file, f"it differs from its checksum in {self.name}.json")

    @property
    def _codebook_file(self) -> Location:
        return _codebook_file(self._folder, self.codebook_id)

    def _damaged(self, file: Location, why: str) -> StoreError:
        return StoreError(f"{file.path} cannot be used: {why}. Make it again with `distkg tokens`")


def read_modalities(store: Store) -> dict[str, Modality]:
    """Open all modalities of a store: name → modality, sorted by name.

    Raises:
        StoreError: an unreadable description, or tokens made for another order of entities.
    """
    folder = Location.of(store.address).within(FOLDER)
    names = sorted(name.removesuffix(".json") for name in folder.names() if name.endswith(".json"))
    return {name: _read(store, folder, name) for name in names if _NAME.fullmatch(name)}


def read_modality(store: Store, name: str) -> Modality:
    """Open a modality of a store by its name.

    Raises:
        StoreError: as ``read_modalities``, or the store has no such modality.
    """
    modalities = read_modalities(store)
    if name not in modalities:
        known = f"it has {', '.join(modalities)}" if modalities else "it has none"
        raise StoreError(f"store {store.shown} has no tokens {name!r}; {known}. Make them with `distkg tokens`")
    return modalities[name]


def write_modality(
    store: Store, name: str, blocks: Iterable[NDArray[np.int32]], tokens: int, codebook: np.ndarray, source: str
) -> Modality:
    """Write a modality into a store's folder, replacing one of the same name.

    Args:
        name: lower-case letters, digits, ``-`` and ``_``, a letter first.
        blocks: tokens of consecutive entities, int32 [b, tokens] each, padded with -1; together of all entities.
        codebook: [V, d]; stored as float16.
        source: origin of the tokens, and how they were made.

    Raises:
        StoreError: an invalid name or codebook, or a failed write.
    """
    if not _NAME.fullmatch(name):
        raise StoreError(f"{name!r} cannot name tokens: use lower-case letters, digits, - and _, with a letter first")
    content = save({"codebook": _half(codebook)})
    checksum = hashlib.sha256(content).hexdigest()
    folder = Location.of(store.address).child(FOLDER)
    covered = _CoverageCounter(len(codebook))
    try:
        folder.filesystem.create_dir(folder.child(CODEBOOKS).path, recursive=True)
        described = folder.child(f"{name}.json")
        with folder.child(f"{name}.safetensors").replaced() as unfinished:
            ids = write_rows(unfinished, covered.counting(blocks), store.num_entities, tokens)
            if described.is_file():
                described.filesystem.delete_file(described.path)
        if not (file := _codebook_file(folder, checksum)).is_file():
            file.write_bytes(content)
        description = ModalityDescription(
            source=source,
            tokens=tokens,
            covered=covered.count,
            entities=store.manifest.files["entities.parquet"].sha256,
            ids=ids,
            codebook=FileEntry(sha256=checksum, bytes=len(content), rows=len(codebook)),
            width=codebook.shape[1],
        )
        described.write_bytes((description.model_dump_json(indent=1) + "\n").encode())
    except OSError as error:
        raise StoreError(f"tokens could not be written to {folder.path}: {error}") from error
    return Modality(name, description, folder)


class _CoverageCounter:
    """Check of the token rows that are written; counts the entities that have a token."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.count = 0

    def counting(self, blocks: Iterable[NDArray[np.int32]]) -> Iterator[NDArray[np.int32]]:
        for block in blocks:
            if block.size and int(block.max()) >= self.vocabulary:
                raise StoreError(
                    f"token {block.max()} is not in the codebook, whose tokens are 0 to {self.vocabulary - 1}"
                )
            self.count += int((block >= 0).any(axis=1).sum())
            yield block


def _read(store: Store, folder: Location, name: str) -> Modality:
    file = folder.file_within(f"{name}.json")
    try:
        description = _described(parse_json(file.read_bytes(MAX_BYTES + 1)), file)
    except (OSError, JsonError) as error:
        raise _not_described(file, str(error)) from None
    if description.entities != store.manifest.files["entities.parquet"].sha256:
        raise StoreError(
            f"tokens {name!r} of store {store.shown} were made for other entities, or for another order of them: "
            "the store has been made again since. Make them again with `distkg tokens`"
        )
    if description.ids.rows != store.num_entities:
        raise _not_described(file, f"it covers {description.ids.rows:,} entities; the store has {store.num_entities:,}")
    return Modality(name, description, folder)


def _described(tree: Any, file: Location) -> ModalityDescription:
    version = tree.get("format_version", FORMAT_VERSION) if isinstance(tree, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise StoreError(f"{file.path} has format version {version}. Upgrade distkg")
    try:
        return ModalityDescription.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        raise _not_described(file, f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def _not_described(file: Location, why: str) -> StoreError:
    return StoreError(f"{file.path} cannot be read: {printable(why)}. Make it again with `distkg tokens`")


def _half(codebook: np.ndarray) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = codebook.astype(np.float16)
    broken = np.flatnonzero(~np.isfinite(half).all(axis=1))
    if len(broken):
        raise StoreError(f"the codebook's vector of token {broken[0]} is not finite, or too large for float16")
    return np.ascontiguousarray(half)


def _codebook_file(folder: Location, checksum: str) -> Location:
    return folder.file_within(f"{CODEBOOKS}/{checksum[:32]}.safetensors")
