"""The decisions of a search; Ray itself is not started here."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune as ray_tune

from distkg.cluster import tune
from distkg.cluster.search.study import importances
from distkg.config import ConfigError, RunConfig
from distkg.data.generate import generate
from distkg.data.prepare import prepare
from distkg.planning.plan import PlanError
from distkg.search.search_folder import SearchError, SearchFolder, Trial
from distkg.search.space import SpaceError, parse_space

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


def proposals(folder: SearchFolder, left: int, ended: Any = None, scheduler: Any = None) -> tune.Proposals:
    scheduler = scheduler or tune.Scheduler()
    return tune.Proposals(folder.read_config(), SPACE, folder, scheduler, left, 1, ended or (lambda trial: None))


def propose(source: tune.Proposals, folder: SearchFolder, count: int, mrr: float = 0.25) -> list[dict[str, Any]]:
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
    folder, scheduler = search(tmp_path), tune.Scheduler()
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


def decide(scheduler: tune.Scheduler, name: str, share: float, mrr: float) -> str:
    trial = SimpleNamespace(trial_id=name)
    if name not in scheduler._trial_info:
        scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"budget_share": share, "valid_mrr": mrr})


def test_a_trial_that_falls_behind_is_stopped_at_an_eighth_or_at_three_of_its_budget() -> None:
    scheduler = tune.Scheduler()
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
    scheduler = tune.Scheduler()
    scheduler.remember(folder)
    assert decide(scheduler, "new", 0.125, 0.2) == "STOP"
    assert decide(tune.Scheduler(), "new", 0.125, 0.2) == "CONTINUE"


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(ray_tune, "report", heard.append)
    return heard


def test_a_trial_reports_its_validations_and_the_last_with_its_result(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
) -> None:
    folder = search(tmp_path, config(store))
    number = folder.begin({"optimizer.learning_rate": 0.5, "model.dim": 16})

    def launch(train: Any, config: RunConfig, run: Path, *, resume: bool, listener: Any) -> None:
        assert (config.model.dim, config.optimizer.learning_rate, resume) == (16, 0.5, True)
        write_run(run, [0.25, 0.125, 0.375, 0.5, 0.5, 0.5, 0.5, 0.75], result=True)
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
            listener(line)

    monkeypatch.setattr(tune, "run_on_workers", launch)
    tune.run_trial(folder, number)
    figures = [0.25, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.75]
    assert reported == [{"valid_mrr": mrr, "budget_share": i / 8} for i, mrr in enumerate(figures, 1)]


def test_a_trial_that_fails_is_reported_as_nought_and_says_why(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
) -> None:
    folder = search(tmp_path, config(store))
    number = folder.begin({"optimizer.learning_rate": 0.5, "model.dim": 16})

    def launch(train: Any, config: RunConfig, run: Path, *, resume: bool, listener: Any) -> None:
        raise ValueError("the loss is nan in epoch 3: lower optimizer.learning_rate")

    monkeypatch.setattr(tune, "run_on_workers", launch)
    tune.run_trial(folder, number)
    assert reported == [{"valid_mrr": 0.0, "budget_share": 1.0}]
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
