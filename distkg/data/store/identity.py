"""Which graph a store holds: the checksums of its files, by which a model finds the store that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from distkg.data.errors import StoreError
from distkg.data.storage.location import Location, without_secrets
from distkg.data.store.graph_store import Store

LABELS = ("entities.parquet", "relations.parquet")
"""What gives ids their meaning."""

UNREAD = ("rejects.tsv",)

Scope = Literal["labels", "graph", "everything"]
"""Files that must agree: those of labels (vectors keep their meaning), of labels and triples (metrics and known facts
do too), or everything that training reads (training goes on as it would have gone)."""


class StoreMismatchError(StoreError):
    """A store is not the one that a model was trained on; the message names the file that differs."""


class StoreIdentity(BaseModel):
    """Sizes and checksums of a store.

    Attributes:
        address: where the store lay, without user, password and query.
        files: name in the store's folder → SHA-256; files that were added to the store later, such as tokens, are
            here where training reads them.
    """

    model_config = ConfigDict(frozen=True)

    address: str
    entities: int = Field(ge=0)
    relations: int = Field(ge=0)
    files: dict[str, str]

    @classmethod
    def of(cls, store: Store, beside: Iterable[str] = ()) -> StoreIdentity:
        """Identity of a store by its manifest, and of files ``beside`` those of the manifest, where they are there."""
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
        """Name of the first file that is not the same in both; None where all files of the scope are."""
        names = dict.fromkeys([*LABELS, *sorted(self.files), *sorted(other.files)])
        return next((name for name in names if in_scope(name, scope) and self._differs(other, name)), None)

    def only_differs_beside(self, other: StoreIdentity) -> list[str]:
        """Files that are not the same in both and hold neither labels nor triples: classes, tokens, texts."""
        names = sorted({*self.files, *other.files})
        return [name for name in names if not in_scope(name, "graph") and self._differs(other, name)]

    def _differs(self, other: StoreIdentity, name: str) -> bool:
        return self.files.get(name) != other.files.get(name)


def in_scope(name: str, scope: Scope) -> bool:
    """Whether a file of a store belongs to a scope."""
    if scope == "everything" or name in LABELS:
        return True
    return scope == "graph" and name in ("train.parquet", "valid.parquet", "test.parquet")


def check_store(recorded: StoreIdentity, store: Store, scope: Scope, owner: str) -> None:
    """Refuse a store that is not the recorded one, or whose labels are no longer those of its own manifest.

    Of the other files the checksums in the manifest are believed, as to compute them would read the whole store.

    Args:
        owner: names the run or model in the error.

    Raises:
        StoreMismatchError: names the file that differs, and what to do.
        StoreError: a file of labels was replaced.
    """
    store.verify(LABELS)
    name = recorded.difference(StoreIdentity.of(store), scope)
    if name is not None:
        raise mismatch(recorded, store.address, name, owner)


def mismatch(recorded: StoreIdentity, address: str, name: str, owner: str) -> StoreMismatchError:
    """The error of a store whose file ``name`` is not the recorded one."""
    what = (
        "its ids stand for other labels, or for the same labels in another order"
        if name in LABELS
        else "it is not the file that the run was made from"
    )
    return StoreMismatchError(
        f"{name} of store {without_secrets(address)} differs from the one that {owner} was trained on (then at "
        f"{recorded.address}): {what}. If that store has moved, name its new place (--store; --set data.store=… to "
        "resume). If it is gone, make it again from the same files with the same options and --seed, or train anew"
    )
