"""Run folder before a launch: its path, whether it can be used, and its recorded failures."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from distkg.config import RunConfig
from distkg.data.errors import StoreError
from distkg.data.storage.local_path import NotLocalError, local_path
from distkg.data.storage.location import make_folder
from distkg.data.storage.working_copy import refresh, shown
from distkg.redaction import redact
from distkg.training.run_dir import LEASE, Record

METRICS = "metrics.jsonl"
FAILURES = "failures.jsonl"
NOTICES = "notices.jsonl"
LAUNCH = ".launch"
"""Folder of Ray Train's own files, which a run does not need."""


class RunFolderError(ValueError):
    """Error of a run folder that cannot be used; the message says what to do."""


def absolute_run(run: str | Path) -> Path:
    """Return the run folder as a path that is the same for every worker.

    Raises:
        RunFolderError: it is a relative path inside a Ray job, or an address that has become a path.
    """
    try:
        path = local_path(run, "run folder")
    except NotLocalError as error:
        raise RunFolderError(str(error)) from None
    return _absolute(path, f"run folder {str(run)!r}", "--run")


def absolute_store(config: RunConfig) -> RunConfig:
    """Return the configuration with addresses of graphs and models that do not depend on the working directory."""

    def absolute(address: str, what: str, key: str) -> str:
        return address if not address or "://" in address else str(_absolute(Path(address), f"{what} {address!r}", key))

    graphs = [absolute(address, "store", "data.graphs") for address in config.data.graphs]
    data = {"store": absolute(config.data.store, "store", "data.store"), "graphs": graphs}
    model = {"start": absolute(config.model.start, "model", "model.start")}
    negatives = {"vectors": absolute(config.negatives.vectors, "run", "negatives.vectors")}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "model": config.model.model_copy(update=model),
            "negatives": config.negatives.model_copy(update=negatives),
        }
    )


def _absolute(path: Path, what: str, where: str) -> Path:
    path = path.expanduser()
    if not path.is_absolute() and in_uploaded_folder(Path.cwd()):
        raise RunFolderError(
            f"{what} is relative, but this job runs in an uploaded copy of the working directory, which Ray "
            f"deletes. Give {where} an absolute path on storage that every node sees."
        )
    return path.absolute()


def in_uploaded_folder(folder: Path) -> bool:
    """Return whether a folder is a working directory that Ray unpacked for a job."""
    return "working_dir_files" in folder.parts


def claim(run: Path, *, resume: bool, private: bool = False) -> None:
    """Create the run folder, or accept an existing one that may be written to; only its owner may read a ``private``
    one.

    With ``resume`` an empty or missing folder is a fresh start, so one command can be repeated until it finishes.

    Raises:
        RunFolderError: the path is a file, or the folder is not empty and ``resume`` is False.
    """
    if run.exists() and not run.is_dir():
        raise RunFolderError(f"run folder {run} is a file. Use a folder that is new or empty.")
    make_folder(run, private=private)
    names = (entry.name for entry in run.iterdir())
    contents = sorted(name for name in names if name not in (LAUNCH, FAILURES) and LEASE not in name)
    if contents and not resume:
        listed = ", ".join(contents[:4]) + (", …" if len(contents) > 4 else "")
        raise RunFolderError(
            f"run folder {shown(run)} is not empty (it holds {listed}). "
            "Continue that run with --resume, or name another folder."
        )


def newest_step(run: Path) -> int | None:
    """Return the number of steps at the newest checkpoint of a run; None if there is none."""
    with suppress(StoreError, OSError):  # a store that does not answer now does not hide what was seen before
        refresh(run)
    names = [manifest.parent.name for manifest in run.glob("checkpoints/step-*/manifest.json")]
    return max((int(name[5:]) for name in names if name[5:].isdecimal()), default=None)


def in_one_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:500].rstrip(".")


def append_failure(run: Path, rank: int, error: str, *, restart: bool) -> None:
    """Record a lost worker in failures.jsonl: time (Unix), rank, error, and whether the run continues."""
    record = {"time": round(time.time(), 3), "rank": rank, "error": redact(error), "restart": restart}
    with (run / FAILURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def describe_failure(record: Record) -> str:
    """Format a line of failures.jsonl as a sentence.

    >>> describe_failure({"time": 0.0, "rank": 1, "error": "its node was lost", "restart": True})
    'worker 1 failed: its node was lost. Restarting from the newest checkpoint.'
    """
    outcome = "Restarting from the newest checkpoint." if record["restart"] else "The run ends here."
    return f"worker {record['rank']} failed: {record['error']}. {outcome}"


def note_hung(run: Path, rank: int, reason: str) -> None:
    """Record that a worker is killed because it hangs, for the process that records its death."""
    folder = run / LAUNCH
    folder.mkdir(exist_ok=True)
    (folder / f"hung-{rank}").write_text(reason, encoding="utf-8")


def take_hung(run: Path, rank: int) -> str | None:
    """Return and delete the reason why a worker was killed; None if it was not."""
    note = run / LAUNCH / f"hung-{rank}"
    try:
        reason = note.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    note.unlink()
    return reason
