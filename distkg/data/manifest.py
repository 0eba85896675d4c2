"""What a store says about itself: ``manifest.json``, written last, so that a store with it is complete."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distkg.data.errors import StoreError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MARKER = ".incomplete"


class FileEntry(BaseModel):
    """One file of the store."""

    sha256: str = Field(description="Checksum of its bytes.")
    bytes: int = Field(ge=0, description="Its size.")
    rows: int = Field(ge=0, description="Triples, labels or rejects in it.")


class Manifest(BaseModel):
    """Counts, files and partition book of a store.

    ``partition_offsets`` holds P+1 entity ids: partition p is the range [offsets[p], offsets[p+1]).
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    entities: int = Field(ge=0)
    relations: int = Field(ge=0)
    triples: dict[str, int] = Field(description="Split → triples.")
    files: dict[str, FileEntry] = Field(description="File name → size and checksum.")
    partitioner: str = Field(description="random, metis or ldg (where DGL is absent).")
    partition_offsets: list[int]
    warnings: dict[str, int] = Field(default_factory=dict, description="What was counted while reading.")
    examples: dict[str, str] = Field(default_factory=dict, description="Warning → the first place, file:line.")
    source: str = Field(description="What the store was made from.")
    seed: int = Field(description="Decides the order of entity ids and, for one file, the splits.")


def parse_manifest(content: bytes, address: str) -> Manifest:
    """Read manifest.json; ``address`` names the store in errors.

    Raises:
        StoreError: not a manifest, or one of a later schema.
    """
    try:
        tree = json.loads(content)
        version = tree["schema_version"]
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise StoreError(
                f"store {address} has schema version {version}; this distkg reads up to {SCHEMA_VERSION}. "
                "Upgrade distkg, or make the store again with `distkg prepare`"
            )
        return Manifest.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        raise _damaged(address, f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise _damaged(address, f"{type(error).__name__}: {error}") from None


def _damaged(address: str, why: str) -> StoreError:
    return StoreError(f"{MANIFEST} of store {address} is damaged ({why}). Make the store again with `distkg prepare`")
