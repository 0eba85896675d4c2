"""What a run was made from: its stores, by checksum, and its configuration.

The record lies in the run folder (``provenance.json``), written before the first step, and in every checkpoint, so that
what a checkpoint was trained with can be told whatever happened to the folder since.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from distkg.config import ConfigError, RunConfig, flatten, flatten_tree, parse_config, resume_class
from distkg.data.errors import StoreError
from distkg.data.storage.atomic_file import replace_text
from distkg.data.storage.location import Location, without_secrets
from distkg.data.store.graph_store import Store
from distkg.data.store.identity import LABELS, Scope, StoreIdentity, check_store, mismatch
from distkg.data.store.relation_text import RELATION_TEXT
from distkg.data.tokens.token_store import FOLDER as TOKENS
from distkg.embedding.scorers import SCORERS
from distkg.foundation.files import weights_sha256
from distkg.foundation.graphs.training_graphs import graphs_of
from distkg.foundation.models import MODELS, FoundationModel
from distkg.negatives import SOURCES
from distkg.redaction import redact_tree
from distkg.registry import Registry, UnknownNameError
from distkg.sharding.checkpoint.files import MANIFEST, CheckpointError, Manifest, is_committed, read_manifest
from distkg.training.run_dir import RunFolder

FORMAT = 1
KEY = "provenance"
"""Of the record in a checkpoint's progress."""

BY_CONTENT = ("data.store", "data.graphs")
"""Keys that are compared by what lies at the address, not by the address."""

_log = logging.getLogger(__name__)


class ProvenanceError(ValueError):
    """The record of what a run was made from cannot be read; the message names the file."""


class Provenance(BaseModel):
    """What a run, or a checkpoint of it, was made from.

    Attributes:
        graphs: identities of its stores, in the order of ``data.graphs``; empty where they are not known.
        config: values by dotted key, options of the model with their defaults.
        inputs: dotted key whose value is the address of a model → checksum of that model.
    """

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    graphs: list[StoreIdentity] = Field(default_factory=list)
    config: dict[str, JsonValue] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump()


def provenance_of(config: RunConfig, stores: Sequence[Store], model: FoundationModel | None = None) -> Provenance:
    """The record of a run on these stores; ``model`` is that of a foundation-model run, which says what it reads."""
    beside = files_read_beside(model)
    graphs = [StoreIdentity.of(store, beside) for store in stores]
    return Provenance(graphs=graphs, config=recorded_config(config), inputs=input_checksums(config))


def recorded_config(config: RunConfig) -> dict[str, JsonValue]:
    """Values by dotted key as they are recorded and compared: without secrets, options with their defaults."""
    values = flatten(config)
    model, negatives = config.model, config.negatives
    kinds: Registry[Any] = MODELS if model.name in MODELS else SCORERS
    values |= _all_options("model.options", kinds, model.name, model.options)
    values |= _all_options("negatives.options", SOURCES, negatives.source, negatives.options)
    return {key: _plain(value) for key, value in values.items() if key not in BY_CONTENT}


def _all_options(key: str, kinds: Registry[Any], name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Options with their defaults, so that one left out equals one that is spelt out; none where they are not valid."""
    try:
        return flatten_tree({key: kinds[name].Options.model_validate(given).model_dump()})
    except (UnknownNameError, ValidationError):
        return {}


def _plain(value: Any) -> JsonValue:
    """As JSON gives it back, addresses without secrets."""
    plain: JsonValue = redact_tree(json.loads(json.dumps(value, default=str)))
    return plain


def input_checksums(config: RunConfig) -> dict[str, str]:
    """Checksums of the models that a configuration names, where they can be read."""
    found = {
        "model.start": weights_sha256(Path(config.model.start)) if config.model.start else None,
        "negatives.vectors": _best_checkpoint_sha256(config.negatives.vectors) if config.negatives.vectors else None,
    }
    return {key: checksum for key, checksum in found.items() if checksum is not None}


def _best_checkpoint_sha256(run: str) -> str | None:
    """Checksum of the manifest, and so of all files, of the checkpoint that readers of a run take."""
    found = committed(RunFolder(Path(run)).checkpoints)
    best = [pair for pair in found if pair[1].best] or found
    return Location.of(str(best[0][0] / MANIFEST)).sha256() if best else None


def committed(checkpoints: Path) -> list[tuple[Path, Manifest]]:
    """Checkpoints whose manifest can be read, the newest first; the files themselves are not looked at."""
    found = []
    for folder in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else []:
        if folder.is_dir() and is_committed(folder):
            try:
                found.append((folder, read_manifest(folder)))
            except CheckpointError:
                continue  # whoever loads it says so
    return sorted(found, key=lambda pair: -pair[1].serial)


def files_read_beside(model: FoundationModel | None) -> list[str]:
    """Files of a store's folder that are not in its manifest, and that a model reads where they are there."""
    if model is None:
        return []
    text = [RELATION_TEXT] if model.reads_relation_text else []
    return text + [f"{TOKENS}/{name}.json" for name in model.reads]


def write_provenance(folder: Path, record: Provenance) -> None:
    """Write ``provenance.json`` into a folder of a run, a model or a search."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(record.to_json(), indent=1, ensure_ascii=False) + "\n"
    replace_text(RunFolder(folder).provenance, content)


def read_provenance(folder: Path) -> Provenance | None:
    """The record of a folder; None where there is none, as of runs of earlier versions.

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
        raise ProvenanceError(f"{file} cannot be read as the record of what the run was made from: {error}") from None


def parse_provenance(tree: Any, source: str) -> Provenance:
    """A record as of ``Provenance.to_json``; ``source`` names it in errors.

    Raises:
        ProvenanceError: it is damaged, or a later distkg wrote it.
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
    """The record in a checkpoint's progress; None in one of an earlier version.

    Raises:
        ProvenanceError: as ``parse_provenance``.
    """
    return parse_provenance(progress[KEY], source) if KEY in progress else None


def provenance_of_run(run: Path) -> Provenance | None:
    """What a run was made from, by its newest checkpoint, else by its folder; None where neither says.

    Raises:
        ProvenanceError: the record cannot be read.
    """
    for folder, manifest in committed(RunFolder(run).checkpoints)[:1]:
        found = recorded_in(manifest.progress, str(folder / MANIFEST))
        if found is not None:
            return found
    return read_provenance(run)


def config_of_run(run: Path) -> tuple[dict[str, Any], list[str]] | None:
    """Configuration of a run without a record, as of ``recorded_config`` from its config.yaml, and the keys in it that
    this version does not have; None where there is no config.yaml.

    Raises:
        ConfigError: it is no YAML mapping.
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
        config = recorded_config(parse_config(_nested(known), str(file)))
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
    """The store that a run of embeddings was trained on.

    Args:
        record: what the run, or the checkpoint to be read, was made from; None where that is not known, of which a
            warning is given.
        store: address of the store now, where it has moved.

    Raises:
        StoreError: it cannot be opened; says where it was looked for.
        StoreMismatchError: it is another one; names the file that differs.
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
    """Open a store that a configuration names; where a relative address leads nowhere, say from which folder.

    Raises:
        StoreError: as ``Store.open``.
    """
    try:
        return Store.open(address)
    except StoreError as error:
        if not address or "://" in address or Path(address).expanduser().is_absolute():
            raise
        raise StoreError(
            f"{error} (data.store is relative, and was looked for in {Path.cwd()}: go there, or give an absolute path)"
        ) from None


def check_run_store(run: Path, store: str = "") -> None:
    """Refuse, for readers that need no store themselves, a run whose store was replaced by another one.

    A store that is not there is passed over, as are runs that do not say what they were made from.

    Args:
        store: address of the run's store, or of one of its graphs, where it has moved.

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
        return  # whoever shows the configuration says so
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
    config = RunFolder(run).read_config()
    return graphs_of(config) if config.model.name in MODELS else [config.data.store]


def warn_unrecorded(run: Path, store: str) -> None:
    """One line about a run that does not say what it was made from."""
    _log.warning(
        "run %s was written by a version of distkg that did not record checksums of its store: whether %s is the "
        "store that it was trained on cannot be checked",
        run,
        without_secrets(store),
    )
