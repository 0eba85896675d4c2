"""Places where the checkpoints of a run lie: a folder that all ranks share, or an object store."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from distkg.data.storage.working_copy import copy_of
from distkg.sharding.checkpoint.files import begin, remove, write_file, write_manifest
from distkg.sharding.checkpoint.manifest import (
    CheckpointError,
    CheckpointManifest,
    ShardFile,
    file_name,
    is_committed,
    is_unfinished,
    read_manifest,
)

_SET_ASIDE = ".replaced"

Manifests = tuple[dict[str, CheckpointManifest], dict[str, CheckpointError]]
"""Manifests of committed checkpoints by name, and errors of those that cannot be read."""


class CheckpointStorage(Protocol):
    """Checkpoints by name; ``write_own``, ``describe``, ``data``, ``fetch`` and ``drop_fetched`` are for every rank,
    all else for the first."""

    def manifests(self) -> Manifests:
        """Read the manifests of all committed checkpoints."""
        ...

    def prepare(self, name: str) -> str:
        """Make ready for writing a checkpoint, remove unfinished ones, and return the name of this attempt."""
        ...

    def write_own(
        self, name: str, attempt: str, tensors: Mapping[str, Tensor], rows: tuple[int, int], rank: int, size: int
    ) -> ShardFile:
        """Write the file of a rank, and return when it is stored."""
        ...

    def commit(self, name: str, attempt: str, manifest: CheckpointManifest) -> None:
        """Commit a checkpoint whose files are stored."""
        ...

    def superseded(self, attempt: str) -> set[str]:
        """Return the names of checkpoints that a committed attempt has replaced."""
        ...

    def remove(self, name: str) -> None:
        """Delete a checkpoint; what an interruption leaves is not taken for one."""
        ...

    def describe(self, name: str) -> CheckpointManifest:
        """Read the manifest of a checkpoint.

        Raises:
            CheckpointError: there is no such checkpoint, or its manifest is damaged.
        """
        ...

    def data(self, name: str) -> Path:
        """Return the local folder that holds the fetched files of a checkpoint."""
        ...

    def fetch(self, name: str, manifest: CheckpointManifest, index: int) -> None:
        """Make the file of a rank readable in ``data(name)``; one that is lost stays absent."""
        ...

    def drop_fetched(self) -> None:
        """Delete files that were fetched; those that are open stay readable."""
        ...


def storage_of(folder: Path) -> CheckpointStorage:
    """Return the storage of the checkpoints of a folder; for the copy of a folder in a store, that store."""
    copy = copy_of(folder)
    if copy is None:
        return FolderStorage(folder)
    from distkg.sharding.checkpoint.object_storage import ObjectStorage

    return ObjectStorage(copy, folder)


class FolderStorage:
    """Checkpoints in a folder on a file system that all ranks share; a manifest that is renamed to its name commits."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def manifests(self) -> Manifests:
        readable, unreadable = {}, {}
        for folder in filter(is_committed, self._folders()):
            try:
                if folder.is_symlink():
                    raise CheckpointError(f"{folder} is a link; replace it by the folder itself")
                readable[folder.name] = read_manifest(folder)
            except CheckpointError as error:
                unreadable[folder.name] = error
        return readable, unreadable

    def prepare(self, name: str) -> str:
        """Return the new name of a checkpoint that will be replaced; empty if there is none of that name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for other in self._folders():
            if is_unfinished(other):
                remove(other)
        folder = self._folder / name
        replaced = _unused_path(folder) if is_committed(folder) or folder.is_symlink() else None
        if replaced is not None:
            folder.rename(replaced)
        begin(folder)
        return replaced.name if replaced is not None else ""

    def write_own(
        self, name: str, attempt: str, tensors: Mapping[str, Tensor], rows: tuple[int, int], rank: int, size: int
    ) -> ShardFile:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return write_file(folder / file_name(rank, size), tensors, *rows)

    def commit(self, name: str, attempt: str, manifest: CheckpointManifest) -> None:
        write_manifest(self._folder / name, manifest)

    def superseded(self, attempt: str) -> set[str]:
        return {attempt} if attempt else set()

    def remove(self, name: str) -> None:
        remove(self._folder / name)

    def describe(self, name: str) -> CheckpointManifest:
        return read_manifest(self._folder / name)

    def data(self, name: str) -> Path:
        return self._folder / name

    def fetch(self, name: str, manifest: CheckpointManifest, index: int) -> None:
        """Do nothing: every rank sees the folder."""

    def drop_fetched(self) -> None:
        """Do nothing: nothing was fetched."""

    def _folders(self) -> list[Path]:
        """Return the folders of checkpoints, finished or not."""
        if not self._folder.is_dir():
            return []
        folders = sorted(path for path in self._folder.iterdir() if path.is_dir())
        return [path for path in folders if is_committed(path) or is_unfinished(path)]


def _unused_path(folder: Path) -> Path:
    """Return an unused path next to a checkpoint; an existing one may hold the only undamaged copy."""
    names = (f"{folder.name}{_SET_ASIDE}{number or ''}" for number in itertools.count())
    return next(path for path in map(folder.with_name, names) if not os.path.lexists(path))
