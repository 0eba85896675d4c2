"""Manifest of a store: ``manifest.json``. It is written last, so a store that has one is complete."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distkg.data.errors import StoreError
from distkg.printable import printable
from distkg.strict_json import JsonError, parse_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MARKER = ".incomplete"
MOST_IDS = 2**31 - 1
"""Ids are int32."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
"""Name of a file or a split: a single path component, so that it cannot lead out of the store."""


class FileEntry(BaseModel):
    """Entry of a store's file in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{2,64}$", description="Checksum of the file.")
    bytes: int = Field(ge=0, description="Size of the file in bytes.")
    rows: int = Field(ge=0, description="Triples, labels or rejected lines in the file.")


class Grown(BaseModel):
    """Part of a grown store that it has from the store it was extended from; ids below these counts are that store's.

    The facts of that store come first in each split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    store: str = Field(description="Address of the store that was extended, without secrets.")
    entities: int = Field(ge=0, description="Number of its entities; later ids are new.")
    relations: int = Field(ge=0, description="Number of its relations; later ids are new.")
    triples: dict[Name, Annotated[int, Field(ge=0)]] = Field(description="Split → its triples; later rows are new.")


class Manifest(BaseModel):
    """Counts, files and partition book of a store.

    ``partition_offsets`` holds P + 1 entity ids: partition p is the range [offsets[p], offsets[p + 1]).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: int = Field(SCHEMA_VERSION, ge=1)
    entities: int = Field(ge=0, le=MOST_IDS)
    relations: int = Field(ge=0, le=MOST_IDS // 2, description="Without inverses, which have ids of their own.")
    triples: dict[Name, Annotated[int, Field(ge=0)]] = Field(description="Split → triples.")
    files: dict[Name, FileEntry] = Field(description="File name → size and checksum.")
    partitioner: str = Field(description="random, metis or ldg (metis without DGL).")
    partition_offsets: list[int]
    warnings: dict[str, int] = Field(default_factory=dict, description="Warning → its count while reading.")
    examples: dict[str, str] = Field(default_factory=dict, description="Warning → its first occurrence, file:line.")
    source: str = Field(description="Address of the files from which the store was made.")
    seed: int = Field(description="Decides the order of entity ids and, for one file, the splits.")
    grown: Grown | None = Field(None, description="Part that is from another store, if `distkg extend` made this one.")


def parse_manifest(content: bytes, address: str) -> Manifest:
    """Parse manifest.json; ``address`` names the store in errors.

    Raises:
        StoreError: not a manifest, or a manifest of a later schema.
    """
    try:
        tree = parse_json(content)
        version = tree["schema_version"]
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise StoreError(
                f"store {address} has schema version {version}; this distkg reads up to {SCHEMA_VERSION}. "
                "Upgrade distkg, or make the store again with `distkg prepare`"
            )
        manifest = Manifest.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        raise damaged(address, printable(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}")) from None
    except JsonError as error:
        raise damaged(address, str(error)) from None
    except (KeyError, TypeError):
        raise damaged(address, "it is not a JSON object with a schema_version") from None
    offsets = manifest.partition_offsets
    if len(offsets) < 2 or offsets != sorted(offsets) or (offsets[0], offsets[-1]) != (0, manifest.entities):
        raise damaged(address, f"partition_offsets do not rise from 0 to {manifest.entities}, its entities")
    _check_grown(manifest, address)
    return manifest


def _check_grown(manifest: Manifest, address: str) -> None:
    """Raise StoreError if a grown store has more of the store that it was extended from than it has in all."""
    grown = manifest.grown
    if grown is None:
        return
    parts = {split: (count, manifest.triples.get(split, 0)) for split, count in grown.triples.items()}
    parts |= {"entities": (grown.entities, manifest.entities), "relations": (grown.relations, manifest.relations)}
    for name, (old, count) in parts.items():
        if old > count:
            raise damaged(address, f"grown.{name} is {old}, and the store has {count}")


def damaged(address: str, why: str) -> StoreError:
    """Build the error for a manifest that cannot be used."""
    return StoreError(f"{MANIFEST} of store {address} is damaged ({why}). Make the store again with `distkg prepare`")
