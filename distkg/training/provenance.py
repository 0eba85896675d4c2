"""Provenance of a run: the checksums of its stores, and its configuration.

The record is in the run folder (``provenance.json``), written before the first step, and in every checkpoint, so that
the inputs of a checkpoint are known even if the folder has changed since.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from distkg.config import ConfigError, RunConfig, flatten, flatten_tree, parse_config, resume_class
from distkg.data.errors import StoreError
from distkg.data.storage.atomic_file import replace_text
from distkg.data.storage.location import Location, without_secrets
from distkg.data.storage.working_copy import folder_at
from distkg.data.store.graph_store import Store
from distkg.data.store.identity import LABELS, Scope, StoreIdentity, check_store, mismatch
from distkg.redaction import redact_tree
from distkg.registry import UnknownNameError
from distkg.sharding.checkpoint.manifest import (
    MANIFEST,
    CheckpointError,
    CheckpointManifest,
    is_committed,
    read_manifest,
)
from distkg.training.family import family_of
from distkg.training.run_dir import RunFolder

FORMAT = 1
KEY = "provenance"
"""Key of the record in a checkpoint's progress."""

BY_CONTENT = ("data.store", "data.graphs")
"""Keys that are compared by the content at the address, not by the address."""

_log = logging.getLogger(__name__)


class ProvenanceError(ValueError):
    """Error of a provenance record that cannot be read; the message names the file."""


class GrownFrom(BaseModel):
    """Checkpoint of a smaller graph from which a run on a grown graph started.

    Attributes:
        run: its run folder when it was read.
        checkpoint: its name.
        sha256: checksum of its manifest, and so of all its files.
        rows: first rows of new entities, ``neighbours`` or ``random``.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    checkpoint: str
    sha256: str
    rows: str


class Provenance(BaseModel):
    """Stores, configuration and input models of a run, or of a checkpoint of it.

    Attributes:
        graphs: identities of its stores, in the order of ``data.graphs``; empty if unknown.
        config: values by dotted key, options of the model with their defaults.
        inputs: dotted key whose value is the address of a model → checksum of that model.
        grown_from: checkpoint from which the first one of this run was made by `distkg extend`; None for other runs.
    """

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    graphs: list[StoreIdentity] = Field(default_factory=list)
    config: dict[str, JsonValue] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    grown_from: GrownFrom | None = None

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(exclude=None if self.grown_from else {"grown_from"})


def provenance_of(config: RunConfig, stores: Sequence[Store], beside: Sequence[str] = ()) -> Provenance:
    """Return the record of a run on these stores; ``beside`` are files that it reads beside their manifests."""
    graphs = [StoreIdentity.of(store, beside) for store in stores]
    return Provenance(graphs=graphs, config=recorded_config(config), inputs=input_checksums(config))


def recorded_config(config: RunConfig) -> dict[str, JsonValue]:
    """Return the values by dotted key as recorded and compared: without secrets, options with their defaults."""
    values = flatten(config)
    model, negatives = config.model, config.negatives
    values |= _all_options("model.options", family_of(config).model_options, model.name, model.options)
    if "negatives.source" in values:
        values |= _all_options("negatives.options", _source_options, negatives.source, negatives.options)
    return {key: _plain(value) for key, value in values.items() if key not in BY_CONTENT}


def _source_options(name: str) -> type[BaseModel]:
    from distkg.negatives import SOURCES  # imports torch: reports, which only check stores, do without

    return SOURCES[name].Options


def _all_options(
    key: str, options: Callable[[str], type[BaseModel]], name: str, given: dict[str, Any]
) -> dict[str, Any]:
    """Return options with their defaults, so that an omitted option equals its default; empty if the options are
    invalid."""
    try:
        return flatten_tree({key: options(name).model_validate(given).model_dump()})
    except (UnknownNameError, ValidationError):
        return {}


def _plain(value: Any) -> JsonValue:
    """Return a value after a round trip through JSON, with addresses without secrets."""
    plain: JsonValue = redact_tree(json.loads(json.dumps(value, default=str)))
    return plain


def input_checksums(config: RunConfig) -> dict[str, str]:
    """Return the checksums of the models that a configuration names, if they can be read."""
    checksums = family_of(config).inputs(config)
    if config.negatives.vectors:
        checksums |= {"negatives.vectors": _best_checkpoint_sha256(config.negatives.vectors)}
    return {key: checksum for key, checksum in checksums.items() if checksum is not None}


def _best_checkpoint_sha256(run: str) -> str | None:
    """Return the checksum of the manifest, and so of all files, of the checkpoint that readers of a run use."""
    with folder_at(run) as folder:
        checkpoints = committed(RunFolder(folder).checkpoints)
        best = [pair for pair in checkpoints if pair[1].best] or checkpoints
        return Location.of(str(best[0][0] / MANIFEST)).sha256() if best else None


def committed(checkpoints: Path) -> list[tuple[Path, CheckpointManifest]]:
    """Return checkpoints whose manifest can be read, the newest first; their other files are not read."""
    checkpoints_and_manifests = []
    for folder in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else []:
        if folder.is_dir() and is_committed(folder):
            try:
                checkpoints_and_manifests.append((folder, read_manifest(folder)))
            except CheckpointError:
                continue  # reported when it is loaded
    return sorted(checkpoints_and_manifests, key=lambda pair: -pair[1].serial)


def write_provenance(folder: Path, record: Provenance) -> None:
    """Write ``provenance.json`` into the folder of a run, a model or a search."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(record.to_json(), indent=1, ensure_ascii=False) + "\n"
    replace_text(RunFolder(folder).provenance, content)


def read_provenance(folder: Path) -> Provenance | None:
    """Read the record of a folder; None if there is none, as of runs of earlier versions.

    Raises:
        ProvenanceError: it cannot be read.
    """
    file = RunFolder(folder).provenance
    if not file.is_file():
        return None
    try:
        return parse_provenance(json.loads(file.read_text(encoding="utf-8")), str(file))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ProvenanceError):
            raise
        raise ProvenanceError(f"{file} cannot be read as the provenance record of a run: {error}") from None


def parse_provenance(tree: Any, source: str) -> Provenance:
    """Return a record from ``Provenance.to_json``; ``source`` names it in errors.

    Raises:
        ProvenanceError: it is damaged, or a later version of distkg wrote it.
    """
    try:
        record = Provenance.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ProvenanceError(f"{source} is damaged: {place}: {problem['msg']}") from None
    if record.format > FORMAT:
        raise ProvenanceError(f"{source} has format {record.format}; this distkg reads up to {FORMAT}. Upgrade distkg")
    return record


def recorded_in(progress: Mapping[str, Any], source: str) -> Provenance | None:
    """Return the record in a checkpoint's progress; None in one of an earlier version.

    Raises:
        ProvenanceError: as ``parse_provenance``.
    """
    return parse_provenance(progress[KEY], source) if KEY in progress else None


def provenance_of_run(run: Path) -> Provenance | None:
    """Return the record of a run, from its newest checkpoint, else from its folder; None if there is none.

    Raises:
        ProvenanceError: the record cannot be read.
    """
    for folder, manifest in committed(RunFolder(run).checkpoints)[:1]:
        record = recorded_in(manifest.progress, str(folder / MANIFEST))
        if record is not None:
            return record
    return read_provenance(run)


def config_of_run(run: Path) -> tuple[dict[str, Any], list[str]] | None:
    """Return the configuration of a run without a record, as ``recorded_config`` of its config.yaml, and its keys that
    this version does not have; None if there is no config.yaml.

    Raises:
        ConfigError: it is not a YAML mapping.
    """
    file = RunFolder(run).config
    if not file.is_file():
        return None
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    values = flatten_tree(tree if isinstance(tree, dict) else {})
    unknown = [key for key in values if resume_class(key) is None]
    known = {key: value for key, value in values.items() if key not in unknown}
    try:
        config = recorded_config(parse_config(_nested(known), str(file), dead_keys_are="dropped"))
    except ConfigError:
        config = {key: _plain(value) for key, value in known.items() if key not in BY_CONTENT}
    return config | {key: _plain(values[key]) for key in unknown}, unknown


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for dotted, value in values.items():
        *path, last = dotted.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def open_store_of_run(run: Path, config: RunConfig, record: Provenance | None, scope: Scope, store: str = "") -> Store:
    """Open the store that an embedding run was trained on.

    Args:
        record: provenance of the run, or of the checkpoint to be read; a warning is given for None.
        store: address of the store, if it has moved.

    Raises:
        StoreError: it cannot be opened; the message says where it was expected.
        StoreMismatchError: it is another store; the message names the file that differs.
    """
    opened = Store.open(store) if store else _open_own(run, config.data.store)
    if record is None or not record.graphs:
        warn_unrecorded(run, opened.address)
    else:
        check_store(record.graphs[0], opened, scope, f"run {run}")
    return opened


def _open_own(run: Path, address: str) -> Store:
    try:
        return open_named(address)
    except StoreError as error:
        raise StoreError(
            f"the store of run {run} cannot be opened: {error}. If it has moved, name its new place with --store"
        ) from None


def open_named(address: str) -> Store:
    """Open a store that a configuration names; if a relative address does not exist, the error names the working
    directory.

    Raises:
        StoreError: as ``Store.open``.
    """
    try:
        return Store.open(address)
    except StoreError as error:
        if not address or "://" in address or Path(address).expanduser().is_absolute():
            raise
        raise StoreError(
            f"{error} (data.store is relative, and was looked for in {Path.cwd()}: use an absolute path, or run the "
            "command in the folder that the path starts from)"
        ) from None


def check_run_store(run: Path, store: str = "") -> None:
    """Refuse a run whose store was replaced by another one, for readers that need no store themselves.

    A missing store is ignored, as are runs without a record.

    Args:
        store: address of the run's store, or of one of its graphs, if it has moved.

    Raises:
        StoreMismatchError: names the file that differs.
        StoreError: ``store`` cannot be opened.
    """
    record = provenance_of_run(run)
    if record is None or not record.graphs:
        return
    if store:
        _check_one_of(record.graphs, Store.open(store), run)
        return
    try:
        addresses = _addresses_of(run)
    except ConfigError:
        return  # reported when the configuration is shown
    for identity, address in zip(record.graphs, addresses, strict=False):
        try:
            opened = Store.open(address)
        except StoreError:
            continue
        check_store(identity, opened, "graph", f"run {run}")


def _check_one_of(graphs: Sequence[StoreIdentity], store: Store, run: Path) -> None:
    here = StoreIdentity.of(store)
    if all(identity.difference(here, "graph") for identity in graphs):
        closest = min(graphs, key=lambda identity: identity.difference(here, "labels") is not None)
        raise mismatch(closest, store.address, closest.difference(here, "graph") or LABELS[0], f"run {run}")


def _addresses_of(run: Path) -> list[str]:
    data = RunFolder(run).read_config().data
    return data.graphs or [data.store]


def warn_unrecorded(run: Path, store: str) -> None:
    """Log a warning about a run without a provenance record."""
    _log.warning(
        "run %s was written by a version of distkg that did not record checksums of its store: whether %s is the "
        "store that it was trained on cannot be checked",
        run,
        without_secrets(store),
    )
