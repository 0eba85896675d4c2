"""Runs in any order of what can happen to them: they end with the metrics of one left alone, or say why not.

A lifecycle is one run folder and one store. The run is trained, killed at any point, stopped in mid-epoch, resumed with
other settings, moved, damaged, evaluated and exported in random order. Whatever happens, each checkpoint and each
validation equals, bit for bit, that of a run which took the same settings at the same steps without disturbance; or the
command is refused, names the cause, and leaves every file as it was.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from distkg.config import RunConfig, parse_config
from distkg.data.generate import generate
from distkg.data.store.identity import StoreMismatchError
from distkg.embedding.load_run import load_run
from distkg.evaluation.metrics import evaluate_triples
from distkg.inference.export import export_model
from distkg.inference.exported_rows import ExportedRows
from distkg.sharding.checkpoint import files as checkpoint_files
from distkg.sharding.checkpoint import manifest as checkpoint_manifest
from distkg.sharding.checkpoint import storage as checkpoint_storage
from distkg.sharding.checkpoint.checkpoint import CheckpointError, Checkpoints
from distkg.sharding.ranks import Ranks
from distkg.training import run as run_module
from distkg.training.resume import ResumeError
from distkg.training.run import Training, train_on_rank
from distkg.training.services import Services
from distkg.training.stopping import StopRequest
from tests.distributed import run_ranks

EPOCHS = 4
GRAPH = {"entities": 40, "relations": 3, "triples": 170}


@dataclass(frozen=True)
class Course:
    """Settings that steer the course of training."""

    learning_rate: float = 0.1
    seed: int = 5


KEYS = {"learning_rate": "optimizer.learning_rate", "seed": "train.seed"}


@dataclass(frozen=True)
class Free:
    """Settings that may differ from one process of a run to the next."""

    epochs: int = EPOCHS
    limit: int | None = None  # turns of eight steps, by the clock of these tests
    patience: int | None = None
    every_steps: int | None = 8
    keep: int = 2


History = tuple[tuple[int, Course], ...]
"""Step from which a course holds, and the course."""


def make_config(store: Path, course: Course, free: Free, **fixed: Any) -> RunConfig:
    tree = {
        "data": {"store": str(store)},
        "model": {"name": "distmult", "dim": 4, "dropout": 0.1} | fixed,
        "objective": {"name": "one_vs_all"},
        "optimizer": {"learning_rate": course.learning_rate},
        "train": {
            "batch_size": 8,
            "seed": course.seed,
            "epochs": free.epochs,
            "time_limit_seconds": free.limit,
            "patience": free.patience,
        },
        "evaluate": {"every": 1},
        "checkpoint": {"every_steps": free.every_steps, "keep": free.keep},
    }
    return parse_config(tree, "test")


class Killed(Exception):
    """Stands for the end of the process; nothing catches it as an error of the file system."""


@dataclass
class Kill:
    """Where the process dies: at the n-th time that it comes to a point."""

    point: str
    count: int
    rank: int | None = None  # that rank alone; else all

    def __call__(self, work: Callable[..., Any], half: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def killing(*args: Any, **more: Any) -> Any:
            self.count -= 1
            if self.count < 0:
                if half is not None:
                    half(*args)
                raise Killed
            return work(*args, **more)

        return killing


def half_a_file(path: Path, *_: Any) -> None:
    path.write_bytes(b"\0" * 100)


def half_removed(folder: Path) -> None:
    (folder / "manifest.json").rename(folder / "manifest.json.part")


ASKED = "asked"  # to stop, as by a signal: a checkpoint is written at once, and nothing is lost
POINTS: dict[str, tuple[Any, str, Callable[..., Any] | None]] = {
    "step": (Training, "_should_continue", None),
    "report": (Training, "_report", None),
    "begin": (checkpoint_storage, "begin", None),
    "file": (checkpoint_storage, "write_file", half_a_file),
    "manifest": (checkpoint_storage, "write_manifest", None),
    "retire": (checkpoint_storage, "remove", half_removed),
}


@contextlib.contextmanager
def process(kill: Kill | None = None, rank: int = 0) -> Iterator[None]:
    """One process of a run, which may die at a point; the time is a count of turns of eight steps."""
    alive: list[Checkpoints] = []

    class Followed(Checkpoints):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            alive.append(self)

    def seconds(training: Training) -> float:
        return training.progress.seconds + turns[0]

    def should_continue(training: Training, step: int) -> bool:
        if kill is not None and kill.point == ASKED and turns[0] >= kill.count and kill.rank in (None, rank):
            training.stop.requested = True
        found: bool = original_go_on(training, step)
        turns[0] += 1
        return found

    turns, original_go_on = [0.0], Training._should_continue
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(run_module, "Checkpoints", Followed)
        patches.setattr(Training, "_seconds", seconds)
        patches.setattr(Training, "_should_continue", should_continue)
        patches.setattr(Training, "_window", lambda training: 8)  # which else depends on the time
        patches.setattr(checkpoint_files, "_to_disk", lambda path: None)  # the machine does not die, and it takes long
        if kill is not None and kill.point != ASKED and kill.rank in (None, rank):
            owner, name, half = POINTS[kill.point]
            patches.setattr(owner, name, kill(getattr(owner, name), half))
        try:
            yield
        finally:
            for checkpoints in alive:  # what a killed process had begun to write has no effect on the next
                checkpoints._writer.shutdown(wait=True)


class References:
    """Runs that are left alone, by the settings that they take and the steps from which they take them."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.store = folder / "store"
        self._made: dict[History, Path] = {}
        if ranks.first:
            generate(str(self.store), **GRAPH, seed=3)
            generate(str(folder / "other"), **GRAPH, seed=4)
        ranks.barrier()

    def run(self, history: History) -> Path:
        """The folder of the run; it keeps every checkpoint."""
        if history not in self._made:
            folder = self.folder / f"reference-{len(self._made)}"
            self._train(folder, history)
            self._made[history] = folder
        return self._made[history]

    def _train(self, folder: Path, history: History) -> None:
        *before, (step, course) = history
        if before and self.ranks.first:
            shutil.copytree(self.run(tuple(before)), folder)
            for later in names_of(folder):
                if step_of(later) > step:
                    shutil.rmtree(folder / "checkpoints" / later)
        elif before:
            self.run(tuple(before))
        self.ranks.barrier()
        config = make_config(self.store, course, Free(keep=999))
        with process():
            train_on_rank(config, folder, self.ranks, resume=bool(before), accept_changes=True)
        self.ranks.barrier()


def names_of(run: Path) -> list[str]:
    """Checkpoints of a run by name, sound or not."""
    folder = run / "checkpoints"
    return (
        sorted(path.name for path in folder.iterdir() if checkpoint_manifest.is_committed(path))
        if folder.is_dir()
        else []
    )


def step_of(name: str) -> int:
    return int(name.removeprefix("step-").partition(".")[0])


def curve_of(run: Path) -> dict[int, float]:
    """Step → validation MRR."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["valid"]["mrr"] for line in lines if "valid" in line}


def tensors_of(run: Path, name: str) -> dict[str, torch.Tensor]:
    checkpoints = Checkpoints(run / "checkpoints", Ranks.single(), keep=2)
    found = checkpoints.describe(name).tensors
    return {
        key: checkpoints.read_rows(name, key, 0, entry.shape[0]) for key, entry in sorted(found.items()) if entry.shape
    }


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ROWS = "rank-00000-of-0000{size}.safetensors"
DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "flip": (ROWS, flip),
    "truncate": (ROWS, lambda path: path.write_bytes(path.read_bytes()[:-5])),
    "lose": (ROWS, Path.unlink),
    "brackets": ("manifest.json", lambda path: path.write_bytes(b"[" * 200_000)),
    "nan": ("manifest.json", lambda path: path.write_text(path.read_text().replace('"epoch"', '"x": NaN, "epoch"'))),
    "torn": ("manifest.json", lambda path: path.write_bytes(path.read_bytes()[:50])),
    "forget": ("manifest.json", Path.unlink),
    "folder": ("manifest.json", make_folder),
}


@dataclass
class Lifecycle:
    """One run and what it should be by now. Every rank does the same; the first one touches files."""

    folder: Path
    references: References
    run: Path = field(init=False)
    store: Path = field(init=False)
    history: History = ()
    recorded: Course | None = None
    damaged: dict[str, Callable[[], bool]] = field(default_factory=dict)
    best_was_damaged: bool = False
    refused: int = 0

    def __post_init__(self) -> None:
        self.ranks = self.references.ranks
        self.run, self.store = self.folder / "run", self.folder / "store"
        self._on_first(lambda: shutil.copytree(self.references.store, self.store))

    def _on_first(self, work: Callable[[], object]) -> None:
        self.ranks.barrier()
        if self.ranks.first:
            work()
        self.ranks.barrier()

    # ---- what is there ----

    @property
    def names(self) -> list[str]:
        return names_of(self.run)

    @property
    def broken(self) -> set[str]:
        return {name for name, still in self.damaged.items() if name in self.names and still()}

    @property
    def newest_sound(self) -> str | None:
        """By the numbers in manifests, read without the code that is tested."""
        sound = [name for name in self.names if name not in self.broken]
        return max(sound, key=lambda name: self._manifest(name)["serial"], default=None)

    def _manifest(self, name: str) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads((self.run / "checkpoints" / name / "manifest.json").read_text())
        return tree

    def _course_of(self, name: str) -> Course:
        values = self._manifest(name)["progress"]["provenance"]["config"]
        return Course(values["optimizer.learning_rate"], values["train.seed"])

    def _courses_so_far(self) -> set[Course]:
        """Those that a resumed run is held against: of the newest checkpoint with a manifest, and the newest sound."""
        readable = [name for name in self.names if self._is_readable(name)]
        newest = max(readable, key=lambda name: self._manifest(name)["serial"], default=None)
        found = {self._course_of(name) for name in (newest, self.newest_sound) if name is not None}
        return found or ({self.recorded} if self.recorded else set())

    def _is_readable(self, name: str) -> bool:
        try:
            self._manifest(name)
            checkpoint_manifest.read_manifest(self.run / "checkpoints" / name)
        except (OSError, ValueError, RecursionError):
            return False
        return True

    # ---- what can happen ----

    def train(
        self, course: Course, free: Free, *, kill: Kill | None = None, accept: bool = False, **fixed: Any
    ) -> dict[str, Any] | None:
        """A process of the run: returns its result, None where it died or was refused."""
        config = make_config(self.store, course, free, **fixed)
        cause = self._reason_to_refuse(course, accept, fixed)
        before, begun = everything(self.folder), self.newest_sound
        self.ranks.barrier()
        result, refusal = self._process(config, kill, accept)
        self.ranks.barrier()
        if refusal is not None:
            assert cause is not None, f"refused without a cause: {refusal}"
            assert cause(refusal), f"refused for another cause: {refusal}"
            assert everything(self.folder) == before, "a refused command has changed files"
            self.refused += 1
            return None
        assert cause is None, "should have been refused"
        self.ranks.barrier()
        self._remember(course, begun)
        self.check()
        if result is not None:
            self._check_result(result, free)
        return result

    def _process(self, config: RunConfig, kill: Kill | None, accept: bool) -> tuple[dict[str, Any] | None, str | None]:
        """The result, or the refusal; neither where the process died."""
        try:
            with process(kill, self.ranks.rank):
                services = Services(stop=StopRequest())
                more: dict[str, Any] = {"resume": True, "accept_changes": accept, "services": services}
                result = train_on_rank(config, self.run, self.ranks, **more)
                return (None if "stopped" in result else result), None
        except (ResumeError, CheckpointError) as error:
            return None, str(error)
        except (Killed, OSError):
            if kill is None:
                raise
            return None, None

    def _reason_to_refuse(self, course: Course, accept: bool, fixed: dict[str, Any]) -> Callable[[str], bool] | None:
        """What the message must say; None where the run may go on."""
        before = self._courses_so_far()
        if fixed and before:
            return lambda message: all(f"model.{key}" in message for key in fixed)
        if before - {course} and not accept:
            keys = {"optimizer.learning_rate": "learning_rate", "train.seed": "seed"}
            differing = [
                k for k, name in keys.items() if any(getattr(o, name) != getattr(course, name) for o in before)
            ]
            return lambda message: "--accept-changes" in message and any(key in message for key in differing)
        if self.names and self.newest_sound is None:
            names = self.names
            return lambda message: all(f"{name}: " in message for name in names) and "Nothing was deleted" in message
        return None

    def _remember(self, course: Course, begun: str | None) -> None:
        step = step_of(begun) if begun else 0
        kept = tuple(entry for entry in self.history if entry[0] < step)
        self.history = kept if kept and kept[-1][1] == course else (*kept, (step if kept else 0, course))
        self.recorded = course

    def damage(self, kind: str, place: float) -> None:
        sound = [name for name in self.names if name not in self.broken]
        if not sound:
            return
        name = sound[int(place * len(sound))]
        self.best_was_damaged |= bool(self._manifest(name)["best"])
        file, spoil = DAMAGES[kind]
        path = self.run / "checkpoints" / name / file.format(size=self._manifest(name)["world_size"])
        self._on_first(lambda: spoil(path))
        spoilt = path.read_bytes() if path.is_file() else None
        self.damaged[name] = lambda: (path.read_bytes() if path.is_file() else None) == spoilt

    def lose_checkpoints(self, course: Course) -> None:
        """They are gone, the run is refused; then they are put back."""
        if not self.names or (self.recorded is not None and self.recorded != course):
            return
        aside = self.folder / "aside"
        self._on_first(lambda: (self.run / "checkpoints").rename(aside))
        before = everything(self.folder)
        with process(), pytest.raises(CheckpointError, match="holds no checkpoint, and this run had some"):
            train_on_rank(make_config(self.store, course, Free()), self.run, self.ranks, resume=True)
        self.ranks.barrier()
        assert everything(self.folder) == before
        self._on_first(lambda: aside.rename(self.run / "checkpoints"))
        self.refused += 1

    def move_run(self, number: int) -> None:
        target = self.folder / f"run-{number}"
        if not self.run.exists() or target.exists():
            return
        where = {name: still for name, still in self.damaged.items() if name in self.broken}
        assert len(where) == len(self.broken)
        contents = {name: self._spoilt_content(name) for name in where}
        self._on_first(lambda: self.run.rename(target))
        self.run = target
        self.damaged = {name: self._still(name, content) for name, content in contents.items()}

    def _spoilt_content(self, name: str) -> dict[str, bytes]:
        return everything(self.run / "checkpoints" / name)

    def _still(self, name: str, content: dict[str, bytes]) -> Callable[[], bool]:
        return lambda: everything(self.run / "checkpoints" / name) == content

    def move_store(self, number: int) -> None:
        target = self.folder / f"store-{number}"
        if target.exists():
            return
        self._on_first(lambda: self.store.rename(target))
        self.store = target

    def meet_another_store(self) -> None:
        """Another graph at the address of the store: commands refuse it and name the file; then it is put back."""
        if self.recorded is None:
            return
        aside = self.folder / "store-aside"
        other = self.references.folder / "other"
        self._on_first(lambda: (self.store.rename(aside), shutil.copytree(other, self.store)))
        before = everything(self.run)
        config = make_config(self.store, self.recorded, Free())
        with process(), pytest.raises((StoreMismatchError, ResumeError, CheckpointError)) as caught:
            train_on_rank(config, self.run, self.ranks, resume=True)
        if not isinstance(caught.value, ResumeError | CheckpointError):
            assert ".parquet" in str(caught.value)
        self.ranks.barrier()
        assert everything(self.run) == before
        if self.newest_sound is not None:
            with pytest.raises(StoreMismatchError, match=r"\.parquet"):
                load_run(self.run, self.ranks, str(self.store))
        self._on_first(lambda: (shutil.rmtree(self.store), aside.rename(self.store)))
        self.refused += 1

    def evaluate(self) -> None:
        """Metrics of the best sound checkpoint are those that it was validated with."""
        if not self.run.exists():
            return
        if self.newest_sound is None:
            if (self.run / "config.yaml").is_file():
                with pytest.raises(CheckpointError, match=r"holds no checkpoint|every checkpoint in"):
                    load_run(self.run, self.ranks, str(self.store))
            return
        best = self._best_sound()
        model, store, _ = load_run(self.run, self.ranks, str(self.store), notice=lambda text: None)
        found = evaluate_triples(model, store, "valid")["metrics"]["mrr"]
        if best is not None:
            assert found == self._manifest(best)["progress"]["best_mrr"]

    def _best_sound(self) -> str | None:
        sound = [name for name in self.names if name not in self.broken and self._manifest(name)["best"]]
        return max(sound, key=lambda name: self._manifest(name)["serial"], default=None)

    def export(self) -> None:
        """The exported vectors are the rows of the best sound checkpoint."""
        if self.newest_sound is None:
            return
        model, store, config = load_run(self.run, self.ranks, str(self.store), notice=lambda text: None)
        to = self.folder / "export"
        export_model(model, store, config.model, to)
        self.ranks.barrier()
        rows = tensors_of(self.run, self._best_sound() or self.newest_sound)["entities"]
        exported = ExportedRows(to)
        assert torch.equal(exported.rows(0, exported.count), rows)
        self.ranks.barrier()

    # ---- what must hold ----

    def check(self) -> None:
        """Checkpoints and validations are those of the undisturbed run."""
        if not self.history:
            return
        reference = self.references.run(self.history)
        for name in self.names:
            if name not in self.broken:
                plain = f"step-{step_of(name):09d}"
                expected = tensors_of(reference, plain)
                for key, tensor in tensors_of(self.run, name).items():
                    assert torch.equal(tensor, expected[key]), f"{key} of {name} is not as undisturbed"
        if (self.run / "metrics.jsonl").is_file():
            undisturbed = curve_of(reference)
            for step, mrr in curve_of(self.run).items():
                assert mrr == undisturbed.get(step, mrr), f"validation at step {step}"

    def _check_result(self, result: dict[str, Any], free: Free) -> None:
        assert result == json.loads((self.run / "result.json").read_text())
        curve = curve_of(self.run)
        if not self.best_was_damaged:
            assert result["metrics"]["valid"]["mrr"] == max(curve.values())
        if free.limit is None and free.patience is None:
            assert result["train"]["epochs"] >= free.epochs
        assert self._told_by(result["accepted_changes"]) == self.history

    def _told_by(self, changes: list[dict[str, Any]]) -> History:
        """The course of the run by the changes that its result lists; those that undo each other leave none."""
        courses = {0: self.history[0][1]}
        for change in changes:
            name = {key: name for name, key in KEYS.items()}[change["key"]]
            before = courses[max(step for step in courses if step <= change["step"])]
            assert change["before"] == getattr(before, name)
            courses[change["step"]] = replace(before, **{name: change["after"]})
        steps = sorted(courses)
        kept = [
            step
            for last, step in zip([None, *steps], steps, strict=False)
            if last is None or courses[last] != courses[step]
        ]
        return tuple((step, courses[step]) for step in kept)


frees = st.builds(
    Free,
    epochs=st.integers(1, EPOCHS),
    limit=st.none() | st.integers(1, 14),
    patience=st.none() | st.integers(1, 2),
    every_steps=st.sampled_from([None, 8, 16]),
    keep=st.integers(2, 3),
)
kills = st.none() | st.builds(Kill, st.sampled_from([ASKED, *sorted(POINTS)]), st.integers(0, 7))
courses = st.sampled_from([Course(), Course(learning_rate=0.03), Course(seed=6), Course(learning_rate=0.03, seed=6)])
places = st.floats(0, 1, exclude_max=True)


class RunMachine(RuleBasedStateMachine):
    """Hypothesis chooses what happens next; ``Lifecycle`` does it and looks at what follows."""

    references: References
    scratch: Path
    sequences = refusals = 0

    @initialize()
    def begin(self) -> None:
        cls = type(self)
        cls.sequences += 1
        self.folder = cls.scratch / f"{cls.sequences}"
        self.folder.mkdir()
        self.cycle = Lifecycle(self.folder, cls.references)
        self.moves = 0

    @property
    def course(self) -> Course:
        return self.cycle.recorded or Course()

    @property
    def begun(self) -> bool:
        return self.cycle.recorded is not None

    @rule(free=frees, kill=kills)
    def train(self, free: Free, kill: Kill | None) -> None:
        self.cycle.train(self.course, free, kill=kill)

    @rule(course=courses, free=frees, kill=kills, accept=st.booleans())
    def train_on_another_course(self, course: Course, free: Free, kill: Kill | None, accept: bool) -> None:
        self.cycle.train(course, free, kill=kill, accept=accept)

    @precondition(lambda self: self.begun)
    @rule(accept=st.booleans(), fixed=st.sampled_from([{"dim": 6}, {"name": "complex"}, {"inverse": "tied"}]))
    def train_something_else(self, accept: bool, fixed: dict[str, Any]) -> None:
        self.cycle.train(self.course, Free(), accept=accept, **fixed)

    @precondition(lambda self: self.begun)
    @rule(kind=st.sampled_from(sorted(DAMAGES)), place=places)
    def damage(self, kind: str, place: float) -> None:
        self.cycle.damage(kind, place)

    @precondition(lambda self: self.begun)
    @rule()
    def lose_checkpoints(self) -> None:
        self.cycle.lose_checkpoints(self.course)

    @rule(what=st.sampled_from(["run", "store"]))
    def move(self, what: str) -> None:
        self.moves += 1
        (self.cycle.move_run if what == "run" else self.cycle.move_store)(self.moves)

    @rule()
    def meet_another_store(self) -> None:
        self.cycle.meet_another_store()

    @rule()
    def evaluate(self) -> None:
        self.cycle.evaluate()

    @rule()
    def export(self) -> None:
        self.cycle.export()

    def teardown(self) -> None:
        if hasattr(self, "cycle"):
            type(self).refusals += self.cycle.refused
            shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> type[RunMachine]:
    RunMachine.scratch = tmp_path_factory.mktemp("lifecycles")
    folder = tmp_path_factory.mktemp("references")
    RunMachine.references = References(folder, Ranks.single())
    return RunMachine


def run_sequences(machine: type[RunMachine], sequences: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.generate],  # a sequence takes a second: to shrink one would take minutes
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_run_ends_as_if_undisturbed_or_says_why_not(machine: type[RunMachine]) -> None:
    run_sequences(machine, 12, 8)
    assert machine.sequences >= 12


@pytest.mark.slow
def test_long_sequences(machine: type[RunMachine]) -> None:
    run_sequences(machine, 60, 14)
    assert machine.refusals > 8


# ---- two ranks, which must do the same ----


def random_sequences(ranks: Ranks, folder: str, seed: int, sequences: int, steps: int) -> tuple[int, int]:
    """Sequences drawn alike on every rank; returns how many processes were refused, and how many died."""
    references = References(Path(folder), ranks)
    draw, refused, died = random.Random(seed), 0, 0
    for number in range(sequences):
        place = Path(folder) / f"lifecycle-{number}"
        place.mkdir(exist_ok=True)
        cycle = Lifecycle(place, references)
        for move in range(steps):
            what = draw.choice(["train", "train", "train", "course", "damage", "lose", "move", "evaluate", "export"])
            course = cycle.recorded or Course()
            free = Free(draw.randint(1, EPOCHS), draw.choice([None, 3, 9]), None, draw.choice([None, 8, 16]))
            kill = draw.choice(
                [
                    None,
                    Kill("step", draw.randint(1, 9)),
                    Kill("file", draw.randint(0, 3), rank=1),
                    Kill(ASKED, draw.randint(0, 9), rank=draw.randint(0, 1)),
                ]
            )
            if what == "train":
                died += cycle.train(course, free, kill=kill) is None
            elif what == "course":
                cycle.train(Course(learning_rate=0.03), free, accept=draw.random() < 0.5)
            elif what == "damage":
                cycle.damage(draw.choice(sorted(DAMAGES)), draw.random())
            elif what == "lose":
                cycle.lose_checkpoints(course)
            elif what == "move":
                (cycle.move_run if draw.random() < 0.5 else cycle.move_store)(move)
            else:
                (cycle.evaluate if what == "evaluate" else cycle.export)()
        refused += cycle.refused
    return refused, died


@pytest.mark.slow
def test_two_ranks_agree_whatever_happens(tmp_path: Path) -> None:
    first, second = run_ranks(2, random_sequences, str(tmp_path), 7, 12, 9, timeout=300)
    assert first == second
    assert min(first) > 0
