"""Growth of the graph of a run: a new run on a grown store, which starts with all that the old one has learned."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import urlsplit

from distkg.config import RunConfig, change_config
from distkg.data.assemble import PrepareReport
from distkg.data.errors import StoreError
from distkg.data.storage.local_path import local_path
from distkg.data.storage.location import Location, make_folder, without_secrets
from distkg.data.storage.objects import StoreUnavailableError, is_address, objects_at
from distkg.data.storage.working_copy import flush, folder_at, shown
from distkg.data.store.graph_store import Store
from distkg.sharding.checkpoint.manifest import MANIFEST
from distkg.training.family import Extensible, FirstRows, family_of_folder
from distkg.training.learner import Division
from distkg.training.progress import Progress
from distkg.training.provenance import KEY, GrownFrom, provenance_of, recorded_config, write_provenance
from distkg.training.resume import refuse_fixed
from distkg.training.run_dir import RunFolder

FIRST = "step-000000000"


class ExtendError(ValueError):
    """Error of a run that cannot be extended; the message says what to do."""


@dataclass(frozen=True)
class GrownRun:
    """Report of ``grow_run``.

    Attributes:
        run: path or address of the new run, without secrets.
        entities, relations: number of new ones.
        from_neighbours: number of new entities whose first rows are made from their neighbours; the others start as in
            a new run.
    """

    run: str
    entities: int
    relations: int
    from_neighbours: int


def check_new_run(run: str | Path) -> str | Path:
    """Return the absolute path of a run folder that is to be made, or its address.

    Raises:
        ExtendError: it exists, and is not an empty folder.
        StoreError, StoreUnavailableError: the object store cannot be used.
    """
    if is_address(run):
        objects = objects_at(str(run))
        if objects.entries():
            raise ExtendError(f"{objects.address} holds files. Name a new folder for the run on the grown graph")
        return run
    path = local_path(run, "run folder").expanduser().absolute()
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise ExtendError(f"{path} exists already. Name a new folder for the run on the grown graph")
    return path


def changed_config(config: RunConfig, store: str, changes: Sequence[str], run: Path) -> RunConfig:
    """Return the configuration of a run on a grown store: that of the old run, with changes ``section.key=value``.

    Raises:
        ConfigError: a change is not valid.
        ResumeError: a change would give stored vectors another meaning.
    """
    address = store if "://" in store else str(Path(store).expanduser().absolute())
    changed = change_config(config, changes, f"the configuration of run {run}")
    changed = changed.model_copy(update={"data": changed.data.model_copy(update={"store": address})})
    refuse_fixed(recorded_config(config), recorded_config(changed), RunFolder(run))
    return changed


def grow_run(source: Extensible, store: Store, config: RunConfig, run: str | Path, first_rows: FirstRows) -> GrownRun:
    """Make a run on a grown store whose first checkpoint has what the old run learned.

    A folder appears when it is complete. In an object store ``config.yaml`` is written last; a failure deletes all.

    Args:
        source: checkpoint of the old run.
        store: store that ``distkg.data.extend.extend_store`` made of the store of the old run.
        config: configuration of the new run, by ``changed_config``.
        run: new folder, or its address.
        first_rows: first rows of new entities.

    Raises:
        ExtendError: the folder exists, or the store was not made from the store of the old run.
        CheckpointError: the checkpoint is damaged.
    """
    run = check_new_run(run)
    grown = store.manifest.grown
    old = source.store
    if grown is None or (grown.entities, grown.relations) != (old.num_entities, old.num_relations):
        raise ExtendError(
            f"store {store.shown} was not made from {old.shown}, the store of the run, by `distkg extend`"
        )
    origin = GrownFrom(
        run=shown(source.checkpoint.parents[1].absolute()),
        checkpoint=source.checkpoint.name,
        sha256=Location.of(str(source.checkpoint / MANIFEST)).sha256(),
        rows=first_rows,
    )
    record = provenance_of(config, [store]).model_copy(update={"grown_from": origin})
    with _in_store(str(run)) if is_address(run) else _on_this_machine(Path(run), private=config.private) as path:
        folder = RunFolder(path)
        progress = Progress().saved(0.0, 0, Division(1, 1, 0, 0)) | {"steps_per_epoch": None, KEY: record.to_json()}
        made = source.write(store, config, first_rows, folder.checkpoints / FIRST, progress)
        folder.note_checkpoint(FIRST)  # without it, a run that lost this checkpoint would start from nothing
        write_provenance(folder.path, record)
        folder.write_config(config)
    new_entities, new_relations = store.num_entities - grown.entities, store.num_relations - grown.relations
    return GrownRun(without_secrets(str(run)), new_entities, new_relations, made)


@contextmanager
def _on_this_machine(run: Path, *, private: bool) -> Iterator[Path]:
    """Yield a folder that gets the name of the run when the context ends without an error."""
    run.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=run.parent, prefix=f".{run.name}-"))
    try:
        make_folder(staged / run.name, private=private)
        yield staged / run.name
        os.rename(staged / run.name, run)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def _in_store(run: str) -> Iterator[Path]:
    """Yield the copy of an empty folder in an object store, whose files are sent as they are written."""
    with folder_at(run, fetch=False) as path:
        try:
            yield path
            flush(path)
        except BaseException:
            with suppress(StoreError, StoreUnavailableError):  # the first error is the one to report
                flush(path)  # so that nothing is sent after the deletion
                objects = objects_at(run)
                objects.delete([entry.name for entry in objects.entries()])
            raise


def _refuse_nested(store: str, run: str | Path) -> None:
    """Refuse a new store and a new run of which one lies in the other."""
    if is_address(store) != is_address(run):
        return
    own, other = _path_of(store), _path_of(run)
    if own == other or own in other.parents or other in own.parents:
        shown_store, shown_run = (without_secrets(str(place)) for place in (store, run))
        raise ExtendError(f"the new store {shown_store} and the new run {shown_run} must not lie in each other")


def _path_of(place: str | Path) -> PurePath:
    if is_address(place):
        return PurePosixPath(urlsplit(str(place))._replace(query="").geturl())
    return Path(place).expanduser().absolute()


def extend_run(
    run: Path,
    to: str | Path,
    make_store: Callable[[Store], PrepareReport],
    address: str,
    *,
    first_rows: FirstRows = "neighbours",
    changes: Sequence[str] = (),
    old_store: str = "",
) -> tuple[PrepareReport, GrownRun]:
    """Extend the store of a run, and make a run on the new store; a failure leaves neither.

    Args:
        run: run folder of a model with rows of entities.
        to: new run folder, or its address.
        make_store: function of the store of the run that makes the new store at ``address``.
        first_rows: first rows of new entities.
        changes: changes of the configuration, ``section.key=value``.
        old_store: address of the store of the run, if it has moved.

    Raises:
        QuestionError: the model has no rows of entities.
        ExtendError, ResumeError, ConfigError, CheckpointError, StoreError, IngestError: as ``changed_config``,
            ``Family.open_to_extend``, ``extend_store`` and ``grow_run``.
    """
    place = check_new_run(to)
    _refuse_nested(address, place)
    source = family_of_folder(run).open_to_extend(run, old_store)
    config = changed_config(source.config, address, changes, run)
    report = make_store(source.store)
    try:
        store = Store.open(address)
        source.check(store, config)
        return report, grow_run(source, store, config, to, first_rows)
    except BaseException:
        # The store is new, so nobody else reads it; left behind, it would be in the way of the same command.
        location = Location.of(address)
        location.filesystem.delete_dir(location.path)
        raise
