"""Checkpoints in an object store, where the single write of the manifest commits.

``checkpoints/NAME/manifest.json`` names the files of a checkpoint, each under the name of the attempt that wrote it, so
that an attempt never touches what another has committed, and a second checkpoint of one name replaces the first at
once. Files that no manifest names are remains of an interruption: they are never read, and the next writer deletes
them. Because some stores list late, no listing is trusted: a checkpoint is there if its manifest can be read, also if
only ``checkpoints.jsonl`` names it, and a file is deleted only when the manifest of its checkpoint has been read.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from distkg.data.storage.working_copy import WorkingCopy, alone
from distkg.sharding.checkpoint.files import sha256_of, write_file
from distkg.sharding.checkpoint.manifest import (
    MANIFEST,
    CheckpointError,
    CheckpointManifest,
    ShardFile,
    attempt_name,
    file_name,
    manifest_text,
    read_manifest,
)
from distkg.sharding.checkpoint.storage import Manifests

COMMITTED = "checkpoints.jsonl"
"""Log of commits beside the folder of checkpoints."""

_RECENT = 8
_TRANSFERS = 2


class ObjectStorage:
    """Checkpoints of a run in an object store."""

    def __init__(self, copy: WorkingCopy, folder: Path) -> None:
        """Use the store of a working copy.

        Args:
            folder: folder of the checkpoints in the copy.
        """
        self._copy, self._objects = copy, copy.objects
        self._place = folder.relative_to(copy.path).as_posix()
        self._local, self._shared = folder, copy.shared / self._place
        self._committed: set[str] = set()
        self._fetched: set[Path] = set()
        self._is_tidy = False

    def manifests(self) -> Manifests:
        listed = {_checkpoint_of(name) for name in self._entries() if name.endswith(f"/{MANIFEST}")}
        readable, unreadable = {}, {}
        for name in sorted(listed | self._recent() | self._committed):
            try:
                if self._refresh(name):
                    readable[name] = read_manifest(self._local / name)
            except CheckpointError as error:
                unreadable[name] = error
        return readable, unreadable

    def prepare(self, name: str) -> str:
        if not self._is_tidy:
            self._delete_remains()
            self._is_tidy = True
        return attempt_name(uuid.uuid4().hex)

    def write_own(
        self, name: str, attempt: str, tensors: Mapping[str, Tensor], rows: tuple[int, int], rank: int, size: int
    ) -> ShardFile:
        path = self._local / name / attempt / file_name(rank, size)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = write_file(path, tensors, *rows)
            file = file.model_copy(update={"name": f"{attempt}/{file.name}"})
            self._objects.upload(self._key(name, file.name), path)
        finally:
            path.unlink(missing_ok=True)
            path.parent.rmdir()
        return file

    def commit(self, name: str, attempt: str, manifest: CheckpointManifest) -> None:
        self._copy.flush()  # the metrics up to this step
        before = self._files_before(name)
        text = manifest_text(manifest)
        self._objects.write(self._key(name, MANIFEST), text.encode())
        self._committed.add(name)
        self._keep(name, text.encode())
        self._objects.delete(self._key(name, file) for file in before)

    def superseded(self, attempt: str) -> set[str]:
        return set()

    def remove(self, name: str) -> None:
        files = self._files_before(name)
        self._objects.delete([self._key(name, MANIFEST)])
        self._objects.delete(self._key(name, file) for file in files)
        self._committed.discard(name)
        (self._local / name / MANIFEST).unlink(missing_ok=True)

    def describe(self, name: str) -> CheckpointManifest:
        self._refresh(name)
        return read_manifest(self._local / name)

    def data(self, name: str) -> Path:
        return self._local / name

    def fetch(self, name: str, manifest: CheckpointManifest, index: int) -> None:
        """Link the file that this process or another of the machine has fetched; each drops its own link."""
        file = manifest.files[index]
        path, shared = self._local / name / file.name, self._shared / name / file.name
        if path.exists():
            return
        for folder in (path.parent, shared.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with alone(shared):
            self._fetch_shared(self._key(name, file.name), file, shared)
            with suppress(FileNotFoundError):  # lost in the store
                os.link(shared, path)
                self._fetched |= {path, shared}

    def _fetch_shared(self, key: str, file: ShardFile, path: Path) -> None:
        if path.is_file() and path.stat().st_size == file.bytes:
            return
        unfinished = path.with_name(f".{path.name}.fetched")
        for _ in range(_TRANSFERS):  # what is wrong in the store is wrong again
            try:
                self._objects.download(key, unfinished)
            except FileNotFoundError:
                unfinished.unlink(missing_ok=True)
                return
            if sha256_of(unfinished) == file.sha256:
                break
        os.replace(unfinished, path)

    def drop_fetched(self) -> None:
        for path in self._fetched:
            path.unlink(missing_ok=True)
        self._fetched.clear()

    def _key(self, name: str, file: str) -> str:
        return f"{self._place}/{name}/{file}"

    def _entries(self) -> list[str]:
        """Return the names of the objects of all checkpoints, within the folder of checkpoints."""
        start = len(self._place) + 1
        return [entry.name[start:] for entry in self._objects.entries(f"{self._place}/")]

    def _recent(self) -> set[str]:
        """Return the names in the last lines of the log of commits, whatever a listing says."""
        content = self._objects.read(COMMITTED) if self._place == "checkpoints" else None
        names = set()
        for line in (content or b"").decode("utf-8", "replace").splitlines()[-_RECENT:]:
            with suppress(ValueError, KeyError, TypeError):
                names.add(str(json.loads(line)["checkpoint"]))
        return {name for name in names if name.replace("-", "").replace("_", "").isalnum()}

    def _refresh(self, name: str) -> bool:
        """Fetch a manifest, and return whether there is one."""
        content = self._objects.read(self._key(name, MANIFEST))
        if content is None:
            (self._local / name / MANIFEST).unlink(missing_ok=True)
            return False
        self._keep(name, content)
        return True

    def _keep(self, name: str, manifest: bytes) -> None:
        path = self._local / name / MANIFEST
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{MANIFEST}.fetched")
        unfinished.write_bytes(manifest)
        os.replace(unfinished, path)

    def _files_before(self, name: str) -> list[str]:
        """Return the files of a committed checkpoint; none if its manifest is missing or damaged."""
        try:
            return [file.name for file in self.describe(name).files]
        except CheckpointError:
            return []

    def _delete_remains(self) -> None:
        """Delete files that no manifest names, and parts of uploads that never ended."""
        self._objects.drop_unfinished(f"{self._place}/")
        files = [name for name in self._entries() if not name.endswith(f"/{MANIFEST}")]
        for checkpoint in {_checkpoint_of(name) for name in files}:
            try:
                named = {f"{checkpoint}/{file.name}" for file in self.describe(checkpoint).files}
            except CheckpointError:
                if self._objects.read(self._key(checkpoint, MANIFEST)) is not None:
                    continue  # a damaged manifest may be mended by hand
                named = set()
            remains = [name for name in files if _checkpoint_of(name) == checkpoint and name not in named]
            self._objects.delete(f"{self._place}/{name}" for name in remains)


def _checkpoint_of(name: str) -> str:
    return name.partition("/")[0]
