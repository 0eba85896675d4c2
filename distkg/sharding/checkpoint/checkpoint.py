"""Checkpoints by global row range: written in the background, committed atomically, read by any number of ranks.

torch's distributed checkpoint in its safetensors form re-shards correctly. But saving 512 MB on each of 2 ranks took
two further copies of the local state, and with ``async_save`` three copies and twice the time. Each rank therefore
writes its rows to its own safetensors file and reads row slices of other files. This took one copy and, including
checksums, about as long as the synchronous save.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from pydantic import JsonValue
from torch import Tensor

from distkg.data.storage.tensor_files import DTYPES
from distkg.kernels.finite import non_finite
from distkg.sharding.checkpoint.files import check_file, copy_rows, copy_whole, difference, dtype_of, open_rows
from distkg.sharding.checkpoint.manifest import (
    CheckpointError,
    CheckpointManifest,
    LaterFormatError,
    ShardFile,
    TensorEntry,
)
from distkg.sharding.checkpoint.storage import storage_of
from distkg.sharding.checkpoint.stored_table import StoredTable
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards

__all__ = ["CheckpointError", "CheckpointManifest", "Checkpoints", "NonFiniteError", "State"]

T = TypeVar("T")

_log = logging.getLogger(__name__)


class NonFiniteError(CheckpointError):
    """The state to save holds NaN or infinity; no file was written or deleted."""


@dataclass(frozen=True)
class State:
    """Tensors of a run on this rank.

    Attributes:
        sharded: name → this rank's rows [Shards(rows, size).count(rank), …], any dtype.
        replicated: name → tensor of any shape, equal on every rank; that of the first rank is saved.
        rows: number of rows of the sharded tensors over all ranks.
        on_disk: whether the sharded tensors are mapped from files, and may be larger than the memory.
    """

    sharded: dict[str, Tensor]
    replicated: dict[str, Tensor]
    rows: int
    on_disk: bool = False

    def entries(self) -> dict[str, TensorEntry]:
        """Describe each tensor by its dtype and global shape."""
        shards = {name: _entry(tensor, [self.rows, *tensor.shape[1:]], True) for name, tensor in self.sharded.items()}
        wholes = {name: _entry(tensor, [*tensor.shape], False) for name, tensor in self.replicated.items()}
        return shards | wholes


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    """Outcome of a task on one rank: a value or an error."""

    value: T | None
    error: str | None = None
    mistake: bool = False


class Checkpoints:
    """Checkpoints of a run, one sub-folder each.

    Every method except ``describe`` and ``read_rows`` is collective: all ranks call it, in the same order. A failure on
    one rank is raised on all ranks, as CheckpointError if a repetition would fail too, else as OSError. A failure in
    the background is raised by the next collective call.

    Args:
        folder: folder on storage that every rank can access, or in the copy of a folder in an object store; created by
            the first ``save``.
        ranks: ranks that write and read.
        keep: number of newest checkpoints to keep, in addition to the newest one marked best.
        notice: receives, on the first rank, a message for each damaged checkpoint that is skipped; default: log a
            warning.
        on_commit: receives, on the first rank and in the background thread, the name of each committed checkpoint.

    Attributes:
        last: name of the last checkpoint that this process committed or loaded; None before the first.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        keep: int,
        *,
        notice: Callable[[str], None] = _log.warning,
        on_commit: Callable[[str], None] = lambda name: None,
    ) -> None:
        if keep < 1:
            raise CheckpointError(f"keep is {keep}: it must be at least 1, the number of newest checkpoints to keep")
        self._folder, self._ranks, self._keep = Path(folder), ranks, keep
        self._storage = storage_of(self._folder)
        self._group = _own_group(ranks)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._notice, self._on_commit = notice, on_commit
        self._damaged: dict[str, str] = {}  # name → problem; equal on every rank
        self._unreported: list[str] = []
        self.last: str | None = None

    def save(self, name: str, state: State, progress: Mapping[str, JsonValue], *, best: bool = False) -> None:
        """Copy the tensors and write the copy in the background, after any earlier save has finished.

        The caller may change its tensors on return. Until the files are written the copy takes as much memory as the
        local state (page-locked if it comes from a GPU). A checkpoint of the same name is replaced, and stays readable
        until the new one is committed. A state with NaN or infinity on any rank is not saved: the next collective call
        raises NonFiniteError on all ranks.

        Sharded tensors on disk are not copied: they are written from their files before this returns, and an error is
        raised here.

        Args:
            name: name of the sub-folder: letters, digits, ``-`` and ``_``.
            state: state of this rank.
            progress: JSON values; those of the first rank are saved, and its ``best``.
            best: mark the checkpoint as the best so far.
        """
        if not re.fullmatch(r"[\w-]+", name):
            raise CheckpointError(f"checkpoint name {name!r} must consist of letters, digits, - and _")
        self._check_shards(state)
        draft = CheckpointManifest(
            serial=0,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            best=best,
            world_size=self._ranks.size,
            rows=state.rows,
            progress=_as_json(progress),
            tensors=state.entries(),
            files=[],
        )
        self.wait()
        sharded = dict(state.sharded) if state.on_disk else _copies(state.sharded)
        tensors = sharded | (_copies(state.replicated) if self._ranks.first else {})
        self._writing = self._writer.submit(self._write, name, tensors, draft)
        if state.on_disk:
            self.wait()  # training would change the tensors

    def wait(self) -> None:
        """Wait until the last save is committed; raise its error if it failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def newest(self) -> str | None:
        """Return the name of the newest undamaged checkpoint; None if there are no checkpoints.

        The files are read in full, each by one rank. A damaged checkpoint is skipped with a notice that names the file,
        and deleted when the next save is committed.

        Raises:
            CheckpointError: all checkpoints are damaged; names each and its problem.
        """
        name = self._newest(lambda manifest: True)
        if name is None and self._damaged:
            listed = "\n".join(f"  {one}: {problem}" for one, problem in sorted(self._damaged.items()))
            raise CheckpointError(
                f"every checkpoint in {self._folder} is damaged:\n{listed}\nNothing was deleted. Put back a sound copy "
                "of one of them, or train anew in another run folder"
            )
        self._report_skipped()
        return name

    def best(self) -> str | None:
        """Return the name of the newest undamaged checkpoint that is marked best; None if there is none."""
        name = self._newest(lambda manifest: manifest.best)
        self._report_skipped()
        return name

    def best_or_newest(self) -> str | None:
        """Return ``best()``, or ``newest()`` if no checkpoint is marked best."""
        name = self._newest(lambda manifest: manifest.best)
        if name is None:
            return self.newest()
        self._report_skipped()
        return name

    def load(self, name: str, state: State) -> dict[str, Any]:
        """Overwrite the tensors of ``state`` with those of a checkpoint written by any number of ranks.

        Tensors of the checkpoint that are not in ``state`` are ignored. Checksums are not computed here, since
        ``newest`` and ``best`` have done so.

        Returns:
            The progress that was saved with the checkpoint.

        Raises:
            CheckpointError: a tensor is missing, or has another shape or dtype; nothing was copied.
        """
        self.wait()
        self._together(lambda: self._check_fit(name, state))
        progress = self._together(lambda: self._load(name, state))[self._ranks.rank]
        self.last = name
        return progress

    def describe(self, name: str) -> CheckpointManifest:
        """Read the manifest of a checkpoint: tensors, rows and progress; local.

        Raises:
            CheckpointError: no such checkpoint, or a damaged manifest.
        """
        return self._storage.describe(name)

    def drop_fetched(self) -> None:
        """Delete files that were fetched from an object store for reading; open tables stay readable; local."""
        self._storage.drop_fetched()

    def read_rows(self, name: str, tensor: str, low: int, high: int) -> Tensor:
        """Read rows [low, high) of a tensor [rows, …] from the files that hold them; local.

        Raises:
            CheckpointError: no such checkpoint, tensor or rows, or a damaged file.
        """
        manifest = self.describe(name)
        entry = manifest.tensors.get(tensor)
        if entry is None or not entry.shape:
            with_rows = ", ".join(sorted(key for key, value in manifest.tensors.items() if value.shape))
            raise CheckpointError(f"checkpoint {name} in {self._folder} has no rows of {tensor!r}; it has {with_rows}")
        if not 0 <= low <= high <= entry.shape[0]:
            raise CheckpointError(f"rows {low} to {high} of {tensor} in checkpoint {name}: it has {entry.shape[0]}")
        self._check_files(name, manifest, low, high if entry.sharded else low)
        out = torch.empty(high - low, *entry.shape[1:], dtype=dtype_of(entry))
        copy_rows(self._storage.data(name), manifest, tensor, low, out)
        return out

    def read_replicated(self, name: str, tensor: str) -> Tensor:
        """Read a replicated tensor; local.

        Raises:
            CheckpointError: no such checkpoint or tensor, or a damaged file.
        """
        manifest = self.describe(name)
        entry = manifest.tensors.get(tensor)
        if entry is None or entry.sharded:
            raise CheckpointError(f"checkpoint {name} in {self._folder} has no replicated tensor {tensor!r}")
        self._storage.fetch(name, manifest, 0)
        check_file(self._storage.data(name), manifest, 0)
        out = torch.empty(entry.shape, dtype=dtype_of(entry))
        copy_whole(self._storage.data(name), manifest, tensor, out)
        return out

    def open_table(self, name: str, tensor: str, shape: tuple[int, int], dtype: torch.dtype) -> StoredTable:
        """Open a sharded tensor of a checkpoint as a table whose rows stay in its files; collective.

        Raises:
            CheckpointError: no such tensor, or one of another shape or dtype, or a damaged file.
        """
        opened: list[StoredTable] = []  # descriptors of files cannot be sent to other ranks
        self._together(lambda: opened.append(self._open_table(name, tensor, shape, dtype)))
        return opened[0]

    def _open_table(self, name: str, tensor: str, shape: tuple[int, int], dtype: torch.dtype) -> StoredTable:
        manifest, folder = self.describe(name), self._storage.data(name)
        self._check_entries(name, manifest, {tensor: _entry(torch.empty(0, dtype=dtype), [*shape], True)})
        for index in range(len(manifest.files)):
            self._storage.fetch(name, manifest, index)
        pieces = [open_rows(folder, manifest, index, tensor) for index in range(len(manifest.files))]
        return StoredTable(pieces, *shape, self._ranks, dtype)

    def _check_shards(self, state: State) -> None:
        count = Shards(state.rows, self._ranks.size).count(self._ranks.rank)
        for name, tensor in state.sharded.items():
            if name in state.replicated:
                raise CheckpointError(f"tensor {name} is both sharded and replicated: rename one")
            if tensor.shape[:1] != (count,):
                raise CheckpointError(
                    f"sharded tensor {name} has shape {list(tensor.shape)} on rank {self._ranks.rank}, which owns "
                    f"{count} of {state.rows} rows"
                )

    def _write(self, name: str, tensors: dict[str, Tensor], draft: CheckpointManifest) -> None:
        """Write and commit a checkpoint; runs in the background on every rank."""
        try:
            self._refuse_non_finite(name, tensors)
            attempt = self.on_first(partial(self._storage.prepare, name))
            files = self._together(partial(self._write_own, name, attempt, tensors, draft.rows))
        finally:
            tensors.clear()  # the executor may keep references to its arguments
        self.on_first(partial(self._commit, name, attempt, draft, files))
        self._damaged.pop(name, None)
        self.last = name

    def _refuse_non_finite(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Raise NonFiniteError on all ranks if any copy holds NaN or infinity; copies, so that no step waits."""
        broken = [
            f"{tensor} (rank {rank})"
            for rank, names in enumerate(self._together(partial(non_finite, tensors)))
            for tensor in names
        ]
        if broken:
            raise NonFiniteError(f"{name} is not saved: its state holds NaN or infinity in {', '.join(broken)}")

    def _write_own(self, name: str, attempt: str, tensors: dict[str, Tensor], rows: int) -> ShardFile:
        rank, size = self._ranks.rank, self._ranks.size
        return self._storage.write_own(name, attempt, tensors, Shards(rows, size).range(rank), rank, size)

    def _commit(self, name: str, attempt: str, draft: CheckpointManifest, files: list[ShardFile]) -> None:
        readable, unreadable = self._storage.manifests()
        serial = 1 + max((manifest.serial for manifest in readable.values()), default=0)
        committed = draft.model_copy(update={"serial": serial, "files": files})
        self._storage.commit(name, attempt, committed)
        self._on_commit(name)
        unreadable.pop(name, None)
        try:
            self._retire(name, self._storage.superseded(attempt), readable | {name: committed}, unreadable)
        except OSError as error:
            _log.warning("old checkpoints in %s could not be deleted: %s", self._folder, error)

    def _retire(
        self,
        newest: str,
        superseded: set[str],
        readable: Mapping[str, CheckpointManifest],
        unreadable: Mapping[str, CheckpointError],
    ) -> None:
        """Delete surplus and damaged checkpoints, but none of a later format."""
        worthless = (self._damaged.keys() - {newest}) | superseded
        sound = sorted(readable.keys() - worthless, key=lambda name: -readable[name].serial)
        names_to_keep = set(sound[: self._keep]) | set([name for name in sound if readable[name].best][:1])
        later = {name for name, error in unreadable.items() if isinstance(error, LaterFormatError)}
        for name in (readable.keys() - names_to_keep) | (worthless & unreadable.keys() - later):
            self._storage.remove(name)

    def _newest(self, wanted: Callable[[CheckpointManifest], bool]) -> str | None:
        self.wait()
        candidates, unreadable = self.on_first(partial(self._candidates, wanted))
        for name, problem in unreadable.items():
            self._skip(name, problem)
        for name in candidates:
            problems = [text for found in self._together(partial(self._problems, name)) for text in found]
            if not problems:
                return name
            self._skip(name, "; ".join(problems))
        return None

    def _skip(self, name: str, problem: str) -> None:
        if name not in self._damaged:
            self._unreported.append(f"{self._folder}: checkpoint {name} is skipped for the one before it: {problem}")
        self._damaged[name] = problem

    def _report_skipped(self) -> None:
        """Report skipped checkpoints once; if all are damaged, the error reports them."""
        texts, self._unreported = self._unreported, []
        for text in texts if self._ranks.first else []:
            self._notice(text)

    def _candidates(self, wanted: Callable[[CheckpointManifest], bool]) -> tuple[list[str], dict[str, str]]:
        """Return the names of committed checkpoints, newest first, and name → problem of unreadable manifests."""
        readable, unreadable = self._storage.manifests()
        names = sorted(readable, key=lambda name: -readable[name].serial)
        return [name for name in names if wanted(readable[name])], {name: str(e) for name, e in unreadable.items()}

    def _problems(self, name: str) -> list[str]:
        """Check this rank's part of the files of a checkpoint, and return the problems."""
        try:
            manifest = self.describe(name)
        except CheckpointError as error:
            return [f"{error} (as rank {self._ranks.rank} sees it)"]
        problems = []
        for index in range(self._ranks.rank, len(manifest.files), self._ranks.size):
            self._storage.fetch(name, manifest, index)
            problems.append(difference(self._storage.data(name), manifest, index))
        return [text for text in problems if text is not None]

    def _check_fit(self, name: str, state: State) -> None:
        manifest = self.describe(name)
        self._check_shards(state)
        self._check_entries(name, manifest, state.entries())
        self._check_files(name, manifest, *Shards(state.rows, self._ranks.size).range(self._ranks.rank))

    def _check_entries(self, name: str, manifest: CheckpointManifest, expected: Mapping[str, TensorEntry]) -> None:
        wrong = [
            f"{tensor} is {manifest.tensors.get(tensor, 'missing')} in the checkpoint, {entry} here"
            for tensor, entry in expected.items()
            if manifest.tensors.get(tensor) != entry
        ]
        if wrong:
            raise CheckpointError(
                f"checkpoint {name} in {self._folder} does not fit this model: {'; '.join(wrong)}. Use the "
                "configuration and the store that it was trained with"
            )

    def _check_files(self, name: str, manifest: CheckpointManifest, low: int, high: int) -> None:
        """Check the headers of the first file and the files with rows [low, high) against the manifest."""
        for index, file in enumerate(manifest.files):
            if index == 0 or (file.low < high and low < file.high):
                self._storage.fetch(name, manifest, index)
                check_file(self._storage.data(name), manifest, index)

    def _load(self, name: str, state: State) -> dict[str, Any]:
        manifest, folder = self.describe(name), self._storage.data(name)
        low, _ = Shards(state.rows, self._ranks.size).range(self._ranks.rank)
        for tensor, rows in state.sharded.items():
            copy_rows(folder, manifest, tensor, low, rows.detach())
        for tensor, values in state.replicated.items():
            copy_whole(folder, manifest, tensor, values.detach())
        return manifest.progress

    def on_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the first rank and return its value on every rank."""
        return self._together(lambda: work() if self._ranks.first else None)[0]  # type: ignore[return-value]

    def _together(self, work: Callable[[], T]) -> list[T]:
        """Run ``work`` on every rank and return the values in rank order. If it fails on any rank, all ranks raise."""
        cause: Exception | None = None
        try:
            outcome = _Outcome(work())
        except Exception as error:
            cause, outcome = error, _failed(error)
        outcomes: list[Any] = [outcome]
        if self._ranks.size > 1:
            outcomes = [None] * self._ranks.size
            dist.all_gather_object(outcomes, outcome, group=self._group)
        if any(one.error is not None for one in outcomes):
            raise _summary(outcomes) from cause
        return [one.value for one in outcomes]


def _failed(error: Exception) -> _Outcome[Any]:
    mistake = isinstance(error, CheckpointError)
    return _Outcome(None, str(error) if mistake else f"{type(error).__name__}: {error}", mistake)


def _summary(outcomes: list[_Outcome[Any]]) -> Exception:
    errors = [(rank, outcome) for rank, outcome in enumerate(outcomes) if outcome.error is not None]
    texts = {outcome.error for _, outcome in errors}
    alike = len(texts) == 1 and len(errors) == len(outcomes)
    text = texts.pop() if alike else "; ".join(f"rank {rank}: {outcome.error}" for rank, outcome in errors)
    # A restart may help with a full disk or a lost mount, but not with a wrong shape.
    return CheckpointError(text) if all(outcome.mistake for _, outcome in errors) else OSError(text)


def _own_group(ranks: Ranks) -> dist.ProcessGroup | None:
    """Create a gloo group for the background thread, since the main group is in use and may be NCCL."""
    if ranks.size == 1:
        return None
    return dist.new_group(dist.get_process_group_ranks(ranks.group or dist.group.WORLD), backend="gloo")


def _entry(tensor: Tensor, shape: list[int], sharded: bool) -> TensorEntry:
    if tensor.dtype not in DTYPES.values():
        raise CheckpointError(
            f"a checkpoint cannot hold {tensor.dtype}; it can hold {', '.join(map(str, DTYPES.values()))}"
        )
    return TensorEntry(dtype=str(tensor.dtype).removeprefix("torch."), shape=shape, sharded=sharded)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to contiguous CPU memory."""
    copies = {name: _copy(tensor.detach()) for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def _copy(tensor: Tensor) -> Tensor:
    if tensor.is_cpu:
        return tensor.clone(memory_format=torch.contiguous_format)
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)


def _as_json(progress: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return a copy of the values after a round trip through JSON."""
    try:
        copy: dict[str, JsonValue] = json.loads(json.dumps(dict(progress), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"progress {dict(progress)} cannot be written as JSON: {error}") from None
    return copy
