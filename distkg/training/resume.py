"""Check of a resumed run: comparison of its configuration and stores with those that it was trained with.

Keys have three classes, which ``distkg.config`` assigns: fixed keys determine the meaning of stored tensors and must
not change, keys of the course of training may change on request and are recorded, and free keys may change.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distkg.config import Resume, RunConfig, default_values, resume_class
from distkg.data.store.identity import LABELS, StoreIdentity, mismatch
from distkg.data.store.relation_text import RELATION_TEXT
from distkg.training.family import family_of
from distkg.training.provenance import (
    Provenance,
    config_of_run,
    open_named,
    provenance_of,
    provenance_of_run,
    recorded_config,
    warn_unrecorded,
)
from distkg.training.run_dir import RunFolder

SHAPED_BY_EPOCHS = ("linear", "cosine")
_log = logging.getLogger(__name__)


class ResumeError(ValueError):
    """Error of a run that cannot continue with this configuration; the message names each key with both values."""


@dataclass(frozen=True)
class Change:
    """Key whose value differs from the one that the run was trained with so far.

    Attributes:
        key: dotted key; for a file of a store, ``data.store`` with the file in parentheses.
        before, after: value so far, and now.
        kind: class of the key.
    """

    key: str
    before: Any
    after: Any
    kind: Resume

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} in the run, {_shown(self.after)} now"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def check_resume(config: RunConfig, run: RunFolder, *, accept_changes: bool) -> list[Change]:
    """Compare a configuration with the record of a run folder, before anything starts.

    A folder with neither a checkpoint nor a configuration is a fresh start.

    Returns:
        Every key that differs: accepted ones, and free ones.

    Raises:
        ResumeError: names the keys that must not differ, with both values.
        StoreMismatchError: names the file of a store that is not the one of the run.
        StoreError: a store cannot be opened.
        ConfigError, ProvenanceError: the run's own files cannot be read.
    """
    record = provenance_of_run(run.path)
    written = None if record is not None else config_of_run(run.path)
    if record is None and written is None:
        return []
    stores = [open_named(address) for address in family_of(config).addresses(config)]
    for store in stores:
        store.verify(LABELS)
    if record is not None:
        now = provenance_of(config, stores)
        return compare(record, now, run, accept_changes=accept_changes, manifests_only=True)
    assert written is not None
    values, unknown = written
    if unknown:
        _log.warning(
            "%s was written by another version of distkg and has keys that this one does not: %s",
            run.config,
            ", ".join(unknown),
        )
    for store in stores:
        warn_unrecorded(run.path, store.address)
    return _judged(_differing(values, recorded_config(config)), run, accept_changes)


def compare(
    record: Provenance, now: Provenance, run: RunFolder, *, accept_changes: bool, manifests_only: bool = False
) -> list[Change]:
    """Compare the provenance of a resumed run with its provenance so far.

    Args:
        manifests_only: ignore files beside the manifest of a store, such as tokens; which of them matter is known only
            once the model is loaded.

    Raises:
        ResumeError, StoreMismatchError: as ``check_resume``.
    """
    changes = _differing(record.config, now.config, record.inputs, now.inputs)
    # Fixed keys are checked first: a run of several graphs and one of a single graph have no stores to compare.
    _refuse([change for change in changes if change.kind == "fixed"], run)
    changes += _differing_graphs(record.graphs, now.graphs, run, manifests_only)
    return _judged(changes, run, accept_changes)


def _differing(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    inputs_before: Mapping[str, str] | None = None,
    inputs_after: Mapping[str, str] | None = None,
) -> list[Change]:
    """Return the keys whose values differ. A key that only this version knows had its default; a key unknown to this
    version is assumed to be of the course of training."""
    default = default_values()
    changes = []
    for key in dict.fromkeys([*after, *before]):
        if key not in after and key in default:
            continue  # it does not act now; where it did, the key that it belongs to differs
        old, new = before.get(key, default.get(key)), after.get(key)
        kind = resume_class(key) or "course"
        if _equal(old, new) or (resume_class(key) is None and not key_was_set(old)):
            continue
        changes.append(Change(key, old, new, kind))
    return _by_content(changes, before, after, inputs_before or {}, inputs_after or {})


def key_was_set(value: Any) -> bool:
    """Return whether an unknown key has a value that could have had an effect."""
    return value not in (None, False, "", [], {})


def _by_content(
    changes: list[Change],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    inputs_before: Mapping[str, str],
    inputs_after: Mapping[str, str],
) -> list[Change]:
    """Return the changes without models that have only moved, and with a run whose vectors differ at the same
    address."""
    same = {key for key, checksum in inputs_before.items() if inputs_after.get(key) == checksum}
    remaining = [change for change in changes if change.key not in same]
    vectors = "negatives.vectors"
    old, new = inputs_before.get(vectors), inputs_after.get(vectors)
    if old and new and old != new and all(change.key != vectors for change in remaining):
        old_text, new_text = (f"{values[vectors]} ({sha[:12]}…)" for values, sha in ((before, old), (after, new)))
        remaining.append(Change(vectors, old_text, new_text, "course"))
    return remaining


def _equal(old: Any, new: Any) -> bool:
    return old == new and isinstance(old, bool) == isinstance(new, bool)


def _differing_graphs(
    before: Sequence[StoreIdentity], after: Sequence[StoreIdentity], run: RunFolder, manifests_only: bool
) -> list[Change]:
    """Return the files of stores that differ and are neither labels nor triples.

    Raises:
        ResumeError: the number of stores differs.
        StoreMismatchError: labels or triples differ.
    """
    if not before:
        return []
    key = "data.graphs" if len(before) > 1 or len(after) > 1 else "data.store"
    if len(before) != len(after):
        _refuse([Change("data.graphs", _addresses_in(before), _addresses_in(after), "fixed")], run)
    changes = []
    for old, new in zip(before, after, strict=True):
        name = old.difference(new, "graph")
        if name is not None:
            if {graph.files.get(name) for graph in before} == {graph.files.get(name) for graph in after}:
                _refuse([Change(f"{key} (order)", _addresses_in(before), _addresses_in(after), "fixed")], run)
            raise mismatch(old, new.address, name, f"run {run.path}")
        for name in old.only_differs_beside(new):
            if not (manifests_only and _is_beside_manifest(name)):
                changes.append(Change(f"{key} ({name})", _state(old, name), _state(new, name), "course"))
    return changes


def _addresses_in(graphs: Sequence[StoreIdentity]) -> list[str]:
    return [graph.address for graph in graphs]


def _is_beside_manifest(name: str) -> bool:
    return "/" in name or name == RELATION_TEXT


def _state(graph: StoreIdentity, name: str) -> str:
    checksum = graph.files.get(name)
    return f"SHA-256 {checksum[:12]}…" if checksum else "no such file"


def _judged(changes: list[Change], run: RunFolder, accept_changes: bool) -> list[Change]:
    _refuse([change for change in changes if change.kind == "fixed"], run)
    steering = [change for change in changes if change.kind == "course"]
    if steering and not accept_changes:
        listed = "\n".join(f"  {change}" for change in steering)
        raise ResumeError(
            f"the run in {run.path} was trained with other settings, and these would change its course:\n{listed}\n"
            "Use the values of the run, or add --accept-changes to continue with the new ones; the result and the "
            "report then list each change."
        )
    return changes


def _refuse(changes: Sequence[Change], run: RunFolder) -> None:
    if changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise ResumeError(
            f"the run in {run.path} cannot go on with these settings: they would give its stored vectors another "
            f"meaning.\n{listed}\nUse the values of the run, or train into another folder."
        )


def refuse_fixed(before: Mapping[str, Any], after: Mapping[str, Any], run: RunFolder) -> None:
    """Raise ResumeError if recorded configurations differ in keys that give stored tensors their meaning."""
    _refuse([change for change in _differing(before, after) if change.kind == "fixed"], run)


def notices(changes: Sequence[Change], config: RunConfig) -> list[str]:
    """Return lines for the operator about a run that continues with changed settings."""
    accepted = [str(change) for change in changes if change.kind == "course"]
    others = [str(change) for change in changes if change.kind == "free"]
    lines = [f"continuing with changed settings: {'; '.join(accepted)}"] if accepted else []
    if others:
        lines.append(f"continuing with {'; '.join(others)}")
    shape = config.optimizer.schedule
    if shape in SHAPED_BY_EPOCHS and any(change.key == "train.epochs" for change in changes):
        lines.append(f"the {shape} schedule is that of {config.train.epochs} epochs from here on")
    return lines
