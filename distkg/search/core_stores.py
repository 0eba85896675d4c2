"""k-cores of the training triples of a store, and their stores, which a search makes once in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from distkg.config import RunConfig
from distkg.data.errors import StoreError
from distkg.data.splits.induced_subgraph import count_induced, write_induced_subgraph
from distkg.data.storage.location import Location, address_within, without_secrets
from distkg.data.store.graph_store import Store
from distkg.data.store.manifest import MANIFEST
from distkg.graph.cores import core_numbers, triples_by_core
from distkg.search.rungs import CORES, Core, Rung, plan_rungs
from distkg.search.trials import SearchError


class Cores:
    """Every k-core of a store's training triples. Memory: the triples, and their adjacency while it is peeled."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _edges(self) -> NDArray[np.int32]:
        return np.ascontiguousarray(self._store.triples("train")[:, ::2])

    @cached_property
    def _numbers(self) -> NDArray[np.int32]:
        return core_numbers(self._edges, self._store.num_entities)

    def sizes(self) -> list[Core]:
        """Return the sizes of every core by rising k, from the whole graph, k = 0; validation triples not counted."""
        triples = triples_by_core(self._edges, self._numbers)
        entities = np.cumsum(np.bincount(self._numbers, minlength=len(triples))[::-1])[::-1]
        return [
            Core(k, int(n), int(m), -1) for k, (n, m) in enumerate(zip(entities, triples, strict=True))
        ]  # neighbouring ones may be equal

    def count_valid(self, k: int) -> int:
        """Return the number of validation triples whose entities are both in the k-core."""
        return count_induced(self._store, "valid", self._numbers >= k)

    def write(self, k: int, address: str) -> None:
        """Write the store of the k-core, or leave one that was written before.

        Raises:
            StoreError: the folder holds something else, or cannot be written.
        """
        name = f"{k}-core of {_checksum(self._store)}"
        location = Location.of(address)
        if location.is_folder() and MANIFEST in location.names():
            if not Store.open(address).manifest.source.startswith(f"{name} of "):
                raise StoreError(
                    f"{without_secrets(address)} holds another store than the {k}-core of {self._store.shown}. "
                    "Remove it, or use another folder for the search"
                )
            return
        write_induced_subgraph(self._store, self._numbers >= k, address, name)


def _checksum(store: Store) -> str:
    """Return the first digits of a checksum over the files of a store."""
    files = sorted((name, entry.sha256) for name, entry in store.manifest.files.items())
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def store_of_rungs(config: RunConfig) -> Store:
    """Open the store whose cores the rungs train on.

    Raises:
        SearchError: the configuration trains on several graphs, on a grown one, or reads vectors of the whole graph.
    """
    if not config.data.store:
        raise SearchError(
            f"--rungs train on k-cores of the graph in data.store, and {config.model.name} trains on data.graphs. "
            "Leave --rungs out"
        )
    store = Store.open(config.data.store)
    for key, acts in (
        ("negatives.vectors", bool(config.negatives.vectors)),
        ("train.facts: new", config.train.facts == "new"),
        ("train.old_rows: frozen", config.train.old_rows == "frozen"),
    ):
        if acts:
            raise SearchError(
                f"--rungs train on k-cores of the graph, and {key} needs the whole graph. Leave --rungs or {key} out"
            )
    return store


def plan_rungs_of(config: RunConfig, sizes: Sequence[int], budget: float) -> tuple[Rung, ...]:
    """Plan the rungs of a search on the store of ``config``; see `plan_rungs`.

    Raises:
        SearchError, StoreError: as `store_of_rungs` and `plan_rungs`.
    """
    cores = Cores(store_of_rungs(config))
    return plan_rungs(config, cores.sizes(), cores.count_valid, sizes, budget)


def write_core_stores(config: RunConfig, rungs: Sequence[Rung], search: str) -> None:
    """Write the stores of the rungs' cores into the folder of a search, or leave those that are there.

    Args:
        search: path or address of the folder.
    """
    cores = Cores(Store.open(config.data.store))
    for k in sorted({rung.core for rung in rungs} - {0}):
        cores.write(k, address_within(search, f"{CORES}/{k}"))


def core_address(config: RunConfig, rung: Rung, search: str) -> str:
    """Return the address of the store of a rung's core; for the whole graph, that of the search's own store."""
    return address_within(search, f"{CORES}/{rung.core}") if rung.core else config.data.store
