"""Settings of training on a grown store: which facts are learned from, and which rows stay as they are."""

from __future__ import annotations

from distkg.config import ConfigError, RunConfig
from distkg.data.store.graph_store import Store
from distkg.data.store.manifest import Grown, Manifest


def check_growth(store: Store, config: RunConfig) -> None:
    """Check the settings of a run on a grown store.

    Raises:
        ConfigError: as ``first_trained_fact`` and ``frozen_counts``.
    """
    first_trained_fact(config, store.manifest)
    frozen_counts(config, store)


def first_trained_fact(config: RunConfig, manifest: Manifest) -> int:
    """Return the first row of train that is learned from: that of the first new fact, or 0.

    Raises:
        ConfigError: ``train.facts: new`` for a store without new training facts.
    """
    if config.train.facts == "all":
        return 0
    first = _grown(manifest, "train.facts: new").triples.get("train", 0)
    if first == manifest.triples.get("train", 0):
        raise ConfigError("train.facts: new, but the new facts of data.store are not in train. Set it to all")
    return first


def frozen_counts(config: RunConfig, store: Store) -> tuple[int, int]:
    """Return the number of entities and of relations, from id 0 on, whose rows are not trained.

    Raises:
        ConfigError: ``train.old_rows: frozen`` for a store without new entities and relations.
    """
    if config.train.old_rows == "free":
        return 0, 0
    grown = _grown(store.manifest, "train.old_rows: frozen")
    if (grown.entities, grown.relations) == (store.num_entities, store.num_relations):
        raise ConfigError(
            "train.old_rows: frozen leaves nothing to train, as data.store has no new entity or relation. Set it to "
            "free"
        )
    return grown.entities, grown.relations


def _grown(manifest: Manifest, key: str) -> Grown:
    if manifest.grown is None:
        raise ConfigError(f"{key} is for a store that `distkg extend` made; the one in data.store was not extended")
    return manifest.grown
