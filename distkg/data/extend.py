"""Extension of a store by new facts: old entities and relations keep their ids, and new ones get the ids above them.

The new store holds the facts of the old one, first in each split, and the new facts. Files are read, and duplicates
and facts in two splits are found and counted, as in ``distkg.data.prepare``, among old and new facts together.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from distkg.data.assemble import PrepareReport, ReportProgress, StorePlan
from distkg.data.errors import IngestError
from distkg.data.prepare import Settings, check_tables, make_store, silent
from distkg.data.readers.sources import (
    DETECTED,
    SPLITS,
    ReadOptions,
    SourceFile,
    files_in_folder,
    files_left_aside,
    find_sources,
)
from distkg.data.storage.location import Location, without_secrets
from distkg.data.store.classes import Declared, read_declared
from distkg.data.store.graph_store import Store
from distkg.redaction import is_remote


def extend_store(
    base: Store,
    source: str,
    store: str,
    options: ReadOptions = DETECTED,
    *,
    valid: str | None = None,
    test: str | None = None,
    seed: int = 0,
    progress: ReportProgress | None = None,
) -> PrepareReport:
    """Make a store of the facts of another one and of new facts, in which old ids keep their meaning.

    Args:
        base: store to extend; it is not changed.
        source: a file of new training facts, or a folder with at least one of train, valid and test, and optional class
            files; formats are those of ``prepare``.
        store: new folder or address.
        options: options of reading the files.
        valid, test: files of new facts of these splits, if ``source`` does not hold them.
        seed: random seed of the order of new ids.
        progress: callback that receives a stage and the number of triples done.

    Returns:
        Counts and warnings of the whole store. A new fact that its split holds already is dropped and counted
        (``train_duplicates``). A new fact that another split holds stays in both and is counted
        (``train_test_overlap``), as in ``prepare``. New valid and test facts do not join training.

    Raises:
        IngestError: an unusable source, or no new facts; names file and line.
        StoreError: ``base`` cannot be read, the new folder is not free, or a write fails.
    """
    location = Location.of(source)
    is_folder = location.is_folder()
    if is_folder:
        files = files_in_folder(location, SPLITS, options)
        added = {split: address for split, address in (("valid", valid), ("test", test)) if address is not None}
        if not files and not added:
            shown, names = without_secrets(source), ", ".join(sorted(location.names())[:5]) or "nothing"
            raise IngestError(f"folder {shown} holds no file train, valid or test of new facts; it holds {names}")
        for split, address in added.items():
            if split in files:
                raise IngestError(f"{files[split].name} and --{split} both name the {split} split; keep one")
            files |= {split: find_sources(address, options)["train"]}
    else:
        files = find_sources(source, options, valid, test)
    check_tables(options, list(files.values()))
    declared = _declared(base, read_declared(location, options.encoding) if is_folder else None)
    unread = files_left_aside(location, {file.name for file in files.values()}) if is_folder else []
    private = source if is_remote(source) or not is_remote(base.address) else base.address
    plan = StorePlan(without_secrets(private), seed, 1, "random")
    settings = Settings(plan, options.on_error, progress or silent)
    sources: dict[str, list[SourceFile]] = {split: [file] for split, file in files.items()}
    return make_store(sources, store, settings, declared, notes=unread, base=base)


def _declared(base: Store, new: Declared | None) -> Declared | None:
    """Return the classes of the store that is extended, followed by those of the new files."""
    if "classes.parquet" not in base.manifest.files:
        return new
    old = base.declared_classes(np.arange(base.num_entities), np.arange(base.num_relations))
    if old is None or new is None:
        return old or new
    return replace(
        old,
        entity_classes=[*old.entity_classes, *new.entity_classes],
        relation_classes=[*old.relation_classes, *new.relation_classes],
    )
