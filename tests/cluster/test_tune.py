"""The decisions of a search; Ray itself is not started here."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from distkg.cluster import tune
from distkg.cluster.search import trial as trials
from distkg.cluster.search.proposals import Proposals, RungProposals
from distkg.cluster.search.schedulers import EarlyStopping, Unstopped
from distkg.cluster.search.study import importances
from distkg.config import ConfigError, RunConfig, load_config
from distkg.data.generate import generate
from distkg.data.prepare import prepare
from distkg.planning.plan import PlanError
from distkg.search.method import Method, Options
from distkg.search.rungs import Rung
from distkg.search.search_folder import SearchFolder
from distkg.search.space import Space, SpaceError, parse_space
from distkg.search.trials import SearchError, Trial, best_trial

SPACE = parse_space({"optimizer.learning_rate": {"log_uniform": [0.001, 1]}, "model.dim": {"choice": [16, 32]}}, "s")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("tune") / "store")
    generate(path, entities=200, relations=4, triples=1500, seed=1)
    return path


def config(store: str = "", **sections: Any) -> RunConfig:
    base = {"data": {"store": store}, "model": {"name": "distmult", "dim": 32}, "train": {"epochs": 8, "seed": 5}}
    return RunConfig.model_validate(base | sections)


def search(tmp_path: Path, base: RunConfig | None = None) -> SearchFolder:
    folder = SearchFolder(tmp_path / "search")
    folder.path.mkdir(exist_ok=True)
    folder.start(base or config(), SPACE)
    return folder


def write_run(run: Path, mrrs: list[float], *, result: bool) -> None:
    lines = [{"epoch": i, "time": float(i), "step": i, "valid": {"mrr": mrr}} for i, mrr in enumerate(mrrs, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result:
        (run / "result.json").write_text("{}")


def proposals(folder: SearchFolder, left: int, ended: Any = None, scheduler: Any = None) -> Proposals:
    scheduler = scheduler or EarlyStopping()
    return Proposals(folder.read_config(), SPACE, folder, scheduler, left, 1, ended or (lambda trial: None))


def propose(source: Proposals, folder: SearchFolder, count: int, mrr: float = 0.25) -> list[dict[str, Any]]:
    """So many trials that all finish."""
    found = []
    for i in range(count):
        number = source.suggest(f"t{i}")["number"]
        write_run(folder.trial(number), [mrr], result=True)
        source.on_trial_complete(f"t{i}")
        found.append(folder.parameters(number))
    return found


def test_the_configuration_itself_is_the_first_trial(tmp_path: Path) -> None:
    folder = search(tmp_path, config(optimizer={"learning_rate": 0.0625}))
    first, second = propose(proposals(folder, 4), folder, 2)
    assert first == {"optimizer.learning_rate": 0.0625, "model.dim": 32}
    assert second != first


def test_a_configuration_outside_the_space_is_no_trial(tmp_path: Path) -> None:
    folder = search(tmp_path, config(optimizer={"learning_rate": 2.0}))
    (first,) = propose(proposals(folder, 4), folder, 1)
    assert 0.001 <= float(str(first["optimizer.learning_rate"])) <= 1


def test_equal_seeds_propose_alike(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        folder = search(tmp_path / name, config(train={"epochs": 8, "seed": seed}))
        found.append(propose(proposals(folder, 6), folder, 6))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_search_that_goes_on_knows_what_ended_and_takes_up_what_was_interrupted(tmp_path: Path) -> None:
    folder = search(tmp_path)
    before = propose(proposals(folder, 6), folder, 3)
    cut_short = {"optimizer.learning_rate": 0.125, "model.dim": 16}
    assert folder.begin(cut_short) == 4
    later = proposals(folder, 3)
    told = [(trial.params, trial.value) for trial in later._ot_study.trials if trial.value is not None]
    assert told == [(point, 0.25) for point in before]
    assert later.suggest("x") == {"number": 4}
    assert folder.parameters(4) == cut_short
    assert later._ot_trials["x"].params == cut_short
    assert later.suggest("y") == {"number": 5}
    # The random start does not draw the first points again.
    assert folder.parameters(5) not in [*before, cut_short]


def test_what_ended_is_written_with_its_state(tmp_path: Path) -> None:
    folder, scheduler = search(tmp_path), EarlyStopping()
    heard: list[Trial] = []
    source = proposals(folder, 4, heard.append, scheduler)
    numbers = [source.suggest(name)["number"] for name in ("done", "behind", "killed", "diverged")]
    write_run(folder.trial(1), [0.25, 0.5], result=True)
    write_run(folder.trial(2), [0.125], result=False)
    folder.note_failure(4, ValueError("the loss is nan"))
    scheduler.stopped.add("behind")
    source.on_trial_complete("done", {})
    source.on_trial_complete("behind", {})
    source.on_trial_complete("killed", error=True)
    source.on_trial_complete("diverged", {})
    assert numbers == [1, 2, 3, 4]
    states = [("finished", 0.5, ""), ("pruned", 0.125, ""), ("failed", None, "its process died")]
    states.append(("failed", None, "ValueError: the loss is nan"))
    assert [(trial.state, trial.valid_mrr, trial.error) for trial in heard] == states
    assert folder.ended() == heard
    assert [trial.value for trial in source._ot_study.trials] == [0.5, 0.125, 0.0, 0.0]


def decide(scheduler: EarlyStopping, name: str, share: float, mrr: float) -> str:
    trial = SimpleNamespace(trial_id=name)
    if name not in scheduler._trial_info:
        scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"budget_share": share, "valid_mrr": mrr})


def test_a_trial_that_falls_behind_is_stopped_at_an_eighth_or_at_three_of_its_budget() -> None:
    scheduler = EarlyStopping()
    for name, mrr in (("a", 0.5), ("b", 0.6), ("c", 0.7)):
        assert decide(scheduler, name, 0.13, mrr) == "CONTINUE"
    assert decide(scheduler, "d", 0.12, 0.1) == "CONTINUE"
    assert decide(scheduler, "d", 0.13, 0.1) == "STOP"
    for name, mrr in (("a", 0.8), ("b", 0.9)):
        assert decide(scheduler, name, 0.38, mrr) == "CONTINUE"
    assert decide(scheduler, "c", 0.37, 0.75) == "CONTINUE"
    assert decide(scheduler, "c", 0.38, 0.75) == "STOP"
    assert scheduler.stopped == {"d", "c"}
    # The end of the budget is no reason to stop.
    assert decide(scheduler, "a", 1.0, 0.8) == "CONTINUE"


def test_a_scheduler_that_goes_on_measures_by_the_trials_that_ended(tmp_path: Path) -> None:
    folder = search(tmp_path)
    for mrrs in ([0.5, 0.6], [0.55, 0.65]):  # epochs 1 and 2 of 8
        number = folder.begin({"optimizer.learning_rate": 0.5, "model.dim": 16})
        write_run(folder.trial(number), mrrs, result=True)
        folder.append(folder.outcome(number, "finished"))
    scheduler = EarlyStopping()
    scheduler.remember(folder)
    assert decide(scheduler, "new", 0.125, 0.2) == "STOP"
    assert decide(EarlyStopping(), "new", 0.125, 0.2) == "CONTINUE"


def test_a_trial_reports_its_validations_and_the_last_with_its_result(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, Any]] = []
    folder = search(tmp_path, config(store))
    number = folder.begin({"optimizer.learning_rate": 0.5, "model.dim": 16})

    def launch(train: Any, config: RunConfig, run: str, *, resume: bool, listener: Any, kept: Any) -> None:
        assert (config.model.dim, config.optimizer.learning_rate, resume) == (16, 0.5, True)
        write_run(Path(run), [0.25, 0.125, 0.375, 0.5, 0.5, 0.5, 0.5, 0.75], result=True)
        for line in map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines()):
            listener(line)

    monkeypatch.setattr(trials, "run_on_workers", launch)
    trials.run_trial(folder, number, reported.append)
    figures = [0.25, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.75]
    expected = [{"valid_mrr": mrr, "budget_share": i / 8} for i, mrr in enumerate(figures, 1)]
    assert reported == [*expected[:-1], {**expected[-1], "done": True}]


def test_a_trial_that_fails_is_reported_as_nought_and_says_why(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, Any]] = []
    folder = search(tmp_path, config(store))
    number = folder.begin({"optimizer.learning_rate": 0.5, "model.dim": 16})

    def launch(train: Any, config: RunConfig, run: str, *, resume: bool, listener: Any, kept: Any) -> None:
        raise ValueError("the loss is nan in epoch 3: lower optimizer.learning_rate")

    monkeypatch.setattr(trials, "run_on_workers", launch)
    trials.run_trial(folder, number, reported.append)
    assert reported == [{"valid_mrr": 0.0, "budget_share": 1.0, "done": True}]
    trial = folder.outcome(number, "pruned")
    error = "ValueError: the loss is nan in epoch 3: lower optimizer.learning_rate"
    assert (trial.state, trial.error) == ("failed", error)


def test_a_search_is_checked_before_it_starts(store: str, tmp_path: Path) -> None:
    tune.check_search(config(store), SPACE)
    with pytest.raises(ConfigError, match=r"^data\.store is empty"):
        tune.check_search(config(), SPACE)
    # RotatE needs an even dimension.
    odd = parse_space({"model.dim": {"choice": [16, 17]}}, "s")
    with pytest.raises(SpaceError, match=r"the space: model\.dim: the space offers 17, with which no run can start"):
        tune.check_search(config(store, model={"name": "rotate", "dim": 16}), odd)
    activations = parse_space({"objective.activation": {"choice": ["none", "hanon"]}}, "s")
    with pytest.raises(SpaceError, match=r"objective\.activation: the space offers hanon, .* squared L2 distances"):
        tune.check_search(config(store), activations)
    names = parse_space({"objective.name": {"choice": ["one_vs_all", "margni"]}}, "s")
    with pytest.raises(SpaceError, match=r"the space offers margni, .* there is no objective named 'margni'\. Known: "):
        tune.check_search(config(store), names)
    large = parse_space({"model.dim": {"choice": [16, 2**26]}}, "s")
    little = config(store, cluster={"memory_per_worker_gb": 4})
    with pytest.raises(SpaceError, match=r"the space offers 67108864, with which no run can start"):
        tune.check_search(little, large)
    with pytest.raises(PlanError):
        tune.check_search(config(store, cluster={"memory_per_worker_gb": 0.001}), SPACE)


def test_a_search_over_a_foundation_model_is_checked_on_all_its_graphs(store: str, tmp_path: Path) -> None:
    generate(str(tmp_path / "other"), entities=50, relations=3, triples=200, seed=2)
    (tmp_path / "facts.tsv").write_text("a\tr\tb\nb\tr\tc\nc\tr\ta\n")
    blind = prepare(str(tmp_path / "facts.tsv"), str(tmp_path / "blind"), split=(1.0, 0.0, 0.0)).store
    pretraining = {
        "data": {"graphs": [store, str(tmp_path / "other"), blind]},
        "model": {"name": "ultra", "options": {"width": 8, "layers": 2, "hidden": 8}},
        "objective": {"name": "self_adversarial", "margin": 0.0},
    }
    space = parse_space({"model.options.width": {"choice": [8, 16]}, "negatives.count": {"choice": [8, 32]}}, "s")
    tune.check_search(config(**pretraining), space)
    wrong = parse_space({"model.options.layers": {"choice": [2, 0]}}, "s")
    with pytest.raises(SpaceError, match=r"the space offers 0, with which no run can start"):
        tune.check_search(config(**pretraining), wrong)
    with pytest.raises(SearchError, match=r"there is no valid split in .*blind"):
        tune.check_search(config(**{**pretraining, "data": {"graphs": [blind]}}), space)
    with pytest.raises(ConfigError, match=r"^data\.graphs is empty"):
        tune.check_search(config(**{**pretraining, "data": {}}), space)


def test_a_store_without_a_valid_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "facts.tsv").write_text("a\tr\tb\nb\tr\tc\nc\tr\ta\n")
    prepare(str(tmp_path / "facts.tsv"), str(tmp_path / "store"), split=(1.0, 0.0, 0.0))
    with pytest.raises(SearchError, match=r"by validation MRR, and there is no valid split in .*store"):
        tune.check_search(config(str(tmp_path / "store")), SPACE)


def test_the_parameter_that_decides_is_the_important_one() -> None:
    rates = [0.001 * 10 ** (i * 0.25) for i in range(12)]
    trials = [
        Trial(i, {"optimizer.learning_rate": rate, "model.dim": 16 * (1 + i % 2)}, "finished", rate, 1, 1)
        for i, rate in enumerate(rates, 1)
    ]
    found = importances(SPACE, trials)
    assert list(found) == ["optimizer.learning_rate", "model.dim"]
    assert found["optimizer.learning_rate"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert importances(SPACE, trials[:3]) == {}
    assert importances(SPACE, [Trial(i, trials[i].parameters, "failed", None, 1, 1) for i in range(6)]) == {}


RUNGS = (Rung(3, 0.25, 3, 40, 400, 80, 0.4, 4), Rung(2, 0.5, 0, 200, 1500, 150, 1.0, 6))


def search_by(tmp_path: Path, method: Method) -> SearchFolder:
    folder = SearchFolder(tmp_path / "search")
    folder.path.mkdir(exist_ok=True)
    folder.start(config(), SPACE, method=method)
    return folder


def rung_proposals(folder: SearchFolder) -> RungProposals:
    return RungProposals(folder.read_config(), SPACE, folder, Unstopped(), 5, 2, lambda trial: None)


def end(source: Proposals, folder: SearchFolder, name: str, number: int, mrr: float | None) -> None:
    if mrr is None:
        folder.note_failure(number, ValueError("the loss is nan"))
    else:
        write_run(folder.trial(number), [mrr], result=True)
    source.on_trial_complete(name)


def test_the_best_trials_of_a_rung_are_trained_again_in_the_next(tmp_path: Path) -> None:
    folder = search_by(tmp_path, Method(budget=2.0, rungs=RUNGS))
    source = rung_proposals(folder)
    assert [source.suggest(name) for name in "abc"] == [{"number": n} for n in (1, 2, 3)]
    assert source.suggest("d") is None  # until the first rung has ended
    for name, number, mrr in (("b", 2, 0.5), ("a", 1, 0.25)):
        end(source, folder, name, number, mrr)
    assert source.suggest("d") is None
    end(source, folder, "c", 3, 0.75)
    assert [source.suggest(name) for name in "de"] == [{"number": 4}, {"number": 5}]
    assert [folder.parameters(n) for n in (4, 5)] == [folder.parameters(n) for n in (3, 2)]
    assert [(each.rung, each.promoted_from) for each in folder.all_started()][3:] == [(2, 3), (2, 2)]
    assert source.suggest("f") is None
    end(source, folder, "d", 4, 0.125)
    end(source, folder, "e", 5, 0.0625)
    assert source.suggest("f") == Searcher.FINISHED
    # Optuna has learnt of the first rung alone; the best one is that of the last rung, whatever the scores before.
    assert sorted(trial.value for trial in source._ot_study.trials if trial.value is not None) == [0.25, 0.5, 0.75]
    best = best_trial(folder.ended())
    assert best is not None
    assert (best.number, best.promoted_from) == (4, 3)
    text = folder.best.read_text()
    assert text.startswith(
        "# Trial 4 of the search: validation MRR 0.1250 in rung 2, on the whole graph after 6 epochs."
    )
    assert load_config(str(folder.best)).train.epochs == 8  # best.yaml is for a run on the whole graph


def test_a_resumed_search_goes_on_in_its_rung(tmp_path: Path) -> None:
    folder = search_by(tmp_path, Method(budget=2.0, rungs=RUNGS))
    source = rung_proposals(folder)
    for name, mrr in (("a", 0.25), ("b", None), ("c", 0.75)):
        number = source.suggest(name)["number"]  # type: ignore[index,call-overload]
        end(source, folder, name, number, mrr)
    assert source.suggest("d") == {"number": 4}
    # The driver is killed in the second rung, while its first trial trains.
    later = rung_proposals(SearchFolder(folder.path))
    assert later.suggest("x") == {"number": 4}
    assert later.suggest("y") == {"number": 5}
    assert [each.promoted_from for each in folder.all_started()] == [None, None, None, 3, 1]
    assert sorted(t.value for t in later._ot_study.trials if t.value is not None) == [0.0, 0.25, 0.75]
    end(later, folder, "y", 5, 0.5)
    assert later.suggest("z") is None
    end(later, folder, "x", 4, 0.25)
    assert later.suggest("z") == Searcher.FINISHED
    assert tune._remaining(folder.read_method(), folder, 3) == 0


def test_a_search_killed_in_its_first_rung_proposes_the_rest_of_it(tmp_path: Path) -> None:
    folder = search_by(tmp_path, Method(budget=2.0, rungs=RUNGS))
    source = rung_proposals(folder)
    assert source.suggest("a") == {"number": 1}
    end(source, folder, "a", 1, 0.5)
    assert source.suggest("b") == {"number": 2}
    later = rung_proposals(folder)
    interrupted = folder.parameters(2)
    assert [later.suggest(name) for name in "xy"] == [{"number": 2}, {"number": 3}]
    assert later._ot_trials["x"].params == interrupted
    assert folder.parameters(3) not in (interrupted, folder.parameters(1))
    assert later.suggest("z") is None


def test_a_trial_of_a_rung_trains_on_its_core(tmp_path: Path, store: str) -> None:
    folder = SearchFolder(tmp_path / "search")
    folder.path.mkdir()
    folder.start(config(store), SPACE, method=Method(budget=2.0, rungs=RUNGS))
    parameters = {"optimizer.learning_rate": 0.5, "model.dim": 16}
    first, second = folder.begin(parameters, 1), folder.begin(parameters, 2, 1)
    base = folder.read_config()
    small = trials.trial_config(base, folder, first, "s3://bucket/search")
    assert (small.data.store, small.train.epochs, small.model.dim) == ("s3://bucket/search/cores/3", 4, 16)
    whole = trials.trial_config(base, folder, second, "s3://bucket/search")
    assert (whole.data.store, whole.train.epochs) == (store, 6)


def test_two_objectives_are_told_to_optuna_and_the_front_is_written(tmp_path: Path) -> None:
    folder = search_by(tmp_path, Method(against="seconds"))
    source = Proposals(folder.read_config(), SPACE, folder, Unstopped(), 6, 1, lambda trial: None)
    for name, mrrs in (("a", [0.25]), ("b", [0.125, 0.5]), ("c", [0.125, 0.25, 0.375]), ("d", [])):
        number = source.suggest(name)["number"]  # type: ignore[index,call-overload]
        if mrrs:
            write_run(folder.trial(number), mrrs, result=True)  # a second for each validation
        else:
            folder.note_failure(number, ValueError("the loss is nan"))
        source.on_trial_complete(name)
    assert [trial.values for trial in source._ot_study.trials] == [[0.25, 1.0], [0.5, 2.0], [0.375, 3.0], [0.0, 3.0]]
    assert [direction.name for direction in source._ot_study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert sorted(path.name for path in folder.front.iterdir()) == ["0001.yaml", "0002.yaml"]
    lead = (folder.front / "0001.yaml").read_text().splitlines()[0]
    assert lead == "# Trial 1 of the search: validation MRR 0.2500, training time (s) 1."
    assert folder.best.read_text().startswith("# Trial 2 of the search")
    # A trial that dominates another takes its place; a resumed search knows the values of all.
    later = Proposals(folder.read_config(), SPACE, folder, Unstopped(), 2, 1, lambda trial: None)
    assert [trial.values for trial in later._ot_study.trials] == [[0.25, 1.0], [0.5, 2.0], [0.375, 3.0], [0.0, 3.0]]
    number = later.suggest("e")["number"]  # type: ignore[index,call-overload]
    write_run(folder.trial(number), [0.5], result=True)
    later.on_trial_complete("e")
    assert [path.name for path in folder.front.iterdir()] == ["0005.yaml"]


def test_peak_memory_is_that_of_the_largest_worker(tmp_path: Path) -> None:
    folder = search_by(tmp_path, Method(against="memory"))
    number = folder.begin({"optimizer.learning_rate": 0.5, "model.dim": 16})
    line = {"epoch": 1, "time": 1.0, "step": 1, "valid": {"mrr": 0.5}, "peak_rss_mb": 300.5}
    (folder.trial(number) / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert folder.outcome(number, "pruned").peak_mb == 300.5
    result = {"train": {"peak_rss_mb_per_worker": [310.0, 320.5]}}
    (folder.trial(number) / "result.json").write_text(json.dumps(result))
    assert folder.outcome(number, "finished").peak_mb == 320.5


def test_checkpoints_of_the_front_are_kept(tmp_path: Path) -> None:
    folder = search_by(tmp_path, Method(against="seconds"))
    for mrr, seconds in ((0.5, 2.0), (0.25, 1.0), (0.125, 3.0)):
        number = folder.begin({"optimizer.learning_rate": 0.5, "model.dim": 16})
        (folder.trial(number) / "checkpoints").mkdir()
        folder.append(Trial(number, folder.parameters(number), "finished", mrr, 1, seconds))
    folder.drop_checkpoints()
    assert sorted(path.parent.name for path in folder.path.glob("trials/*/checkpoints")) == ["0001", "0002"]


def test_rungs_are_checked_before_the_first_trial(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*arguments: Any) -> None:
        raise AssertionError("the search has started")

    monkeypatch.setattr(tune, "_search", search)
    settings = config(store, train={"epochs": 64, "batch_size": 128})

    def launch(space: Space, name: str, **options: Any) -> None:
        tune.launch_search(settings, space, tmp_path / name, trials=8, options=Options(2), **options)

    large = parse_space({"train.batch_size": {"choice": [64, 1200]}}, "s")
    with pytest.raises(SpaceError, match=r"the largest train\.batch_size is 1200, and the \d+-core of rung 1 has"):
        launch(large, "large")
    assert not (tmp_path / "large" / "space.yaml").exists()
    with pytest.raises(AssertionError, match="the search has started"):
        launch(SPACE, "small")
    # Whoever continues it must name its rungs, and may not use another store.
    with pytest.raises(SearchError, match="was started with --trials 8 --rungs 2 --budget 2"):
        tune.launch_search(settings, SPACE, tmp_path / "small", trials=8, resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("")
    with pytest.raises(SearchError, match=r"full is no search: it holds no space\.yaml"):
        launch(SPACE, "full", resume=True)
    assert not (tmp_path / "full" / "cores").exists()
