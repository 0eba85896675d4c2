"""Identity of a store: checksums of its files, by which a model recognises the store that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from distkg.data.errors import StoreError
from distkg.data.storage.location import Location, without_secrets
from distkg.data.store.graph_store import Store

LABELS = ("entities.parquet", "relations.parquet")
"""Files that give ids their meaning."""

UNREAD = ("rejects.tsv",)

Scope = Literal["labels", "graph", "everything"]
"""Files that must be equal: ``labels`` (vectors keep their meaning), ``graph`` adds the triples (metrics and known
facts stay valid), ``everything`` adds all that training reads (a resumed run equals an uninterrupted one)."""


class StoreMismatchError(StoreError):
    """The store differs from the one that a model was trained on; the message names the file that differs."""


class StoreIdentity(BaseModel):
    """Entity and relation counts and file checksums of a store.

    Attributes:
        address: address of the store when it was recorded, without user, password and query.
        files: name in the store's folder → SHA-256. Files added to the store later, such as tokens, are included if
            training reads them.
    """

    model_config = ConfigDict(frozen=True)

    address: str
    entities: int = Field(ge=0)
    relations: int = Field(ge=0)
    files: dict[str, str]

    @classmethod
    def of(cls, store: Store, beside: Iterable[str] = ()) -> StoreIdentity:
        """Identity of a store from its manifest; existing files named in ``beside``, which it omits, are hashed."""
        files = {name: entry.sha256 for name, entry in store.manifest.files.items() if name not in UNREAD}
        for name in beside:
            file = Location.of(store.address).child(name)
            if file.is_file():
                files[name] = file.sha256()
        return cls(
            address=without_secrets(store.address),
            entities=store.num_entities,
            relations=store.num_relations,
            files=files,
        )

    def difference(self, other: StoreIdentity, scope: Scope) -> str | None:
        """Name of the first file of the scope that differs between the two; None if all are equal."""
        names = dict.fromkeys([*LABELS, *sorted(self.files), *sorted(other.files)])
        return next((name for name in names if in_scope(name, scope) and self._differs(other, name)), None)

    def only_differs_beside(self, other: StoreIdentity) -> list[str]:
        """Names of differing files that hold neither labels nor triples: classes, tokens, texts."""
        names = sorted({*self.files, *other.files})
        return [name for name in names if not in_scope(name, "graph") and self._differs(other, name)]

    def _differs(self, other: StoreIdentity, name: str) -> bool:
        return self.files.get(name) != other.files.get(name)


def in_scope(name: str, scope: Scope) -> bool:
    """Return True if a file of a store belongs to a scope."""
    if scope == "everything" or name in LABELS:
        return True
    return scope == "graph" and name in ("train.parquet", "valid.parquet", "test.parquet")


def check_store(recorded: StoreIdentity, store: Store, scope: Scope, owner: str) -> None:
    """Raise if a store is not the recorded one, or its label files differ from its own manifest.

    Label files are hashed. For other files the manifest's checksums are used, since hashing would read the whole store.

    Args:
        owner: name of the run or model in the error.

    Raises:
        StoreMismatchError: a file differs from the recorded one; names the file and what to do.
        StoreError: a label file was replaced.
    """
    store.verify(LABELS)
    name = recorded.difference(StoreIdentity.of(store), scope)
    if name is not None:
        raise mismatch(recorded, store.address, name, owner)


def mismatch(recorded: StoreIdentity, address: str, name: str, owner: str) -> StoreMismatchError:
    """Build the error for a store whose file ``name`` differs from the recorded one."""
    reason = (
        "its ids stand for other labels, or for the same labels in another order"
        if name in LABELS
        else "it is not the file that the run was made from"
    )
    return StoreMismatchError(
        f"{name} of store {without_secrets(address)} differs from the one that {owner} was trained on (then at "
        f"{recorded.address}): {reason}. If that store has moved, name its new place (--store; --set data.store=… to "
        "resume). If it is gone, make it again from the same files with the same options and --seed, or train anew"
    )
