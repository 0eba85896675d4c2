"""The folder of a search: records of trials, the best one, and what a search that goes on finds."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distkg.config import RunConfig, load_config
from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.data.store.identity import StoreMismatchError
from distkg.search.rungs import Started
from distkg.search.search_folder import SearchFolder, budget_share, differences, validations
from distkg.search.space import parse_space
from distkg.search.trials import SearchError, Trial, best_trial
from distkg.training.provenance import provenance_of

SPACE = parse_space({"model.dim": {"choice": [32, 64]}, "optimizer.learning_rate": {"uniform": [0.01, 1]}}, "s")


def trial(number: int, state: Any, mrr: float | None, rate: float = 0.5) -> Trial:
    return Trial(number, {"model.dim": 64, "optimizer.learning_rate": rate}, state, mrr, 3.0, 12.5)


def search(tmp_path: Path, **train: Any) -> SearchFolder:
    folder = SearchFolder(tmp_path / "search")
    folder.path.mkdir()
    folder.start(RunConfig.model_validate({"data": {"store": "/stores/x"}, "train": train}), SPACE)
    return folder


def run_of(folder: SearchFolder, mrrs: list[float | None], *, result: bool = False) -> int:
    """A trial's run with a line for each epoch, validated where there is an MRR."""
    number = folder.begin({"model.dim": 32, "optimizer.learning_rate": 0.1})
    lines = [
        {"time": 10.0 * epoch, "epoch": epoch, "step": epoch} | ({} if mrr is None else {"valid": {"mrr": mrr}})
        for epoch, mrr in enumerate(mrrs, 1)
    ]
    path = folder.trial(number)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"time": 9')
    if result:
        (path / "result.json").write_text("{}")
    return number


def test_the_best_is_the_finished_trial_with_the_highest_mrr_and_the_earlier_of_equals() -> None:
    ended = [trial(1, "finished", 0.3), trial(2, "pruned", 0.9), trial(3, "failed", 0.8), trial(5, "finished", 0.4)]
    best = best_trial([*ended, trial(4, "finished", 0.4), trial(6, "finished", None)])
    assert best is not None
    assert best.number == 4
    assert best_trial([trial(1, "pruned", 0.9)]) is None
    assert best_trial([]) is None


def test_a_failed_trial_counts_as_nought() -> None:
    assert [trial(1, "failed", 0.8).value, trial(1, "pruned", 0.2).value, trial(1, "failed", None).value] == [0, 0.2, 0]


def test_the_best_configuration_is_ready_to_train(tmp_path: Path) -> None:
    folder = search(tmp_path, epochs=7)
    folder.append(trial(1, "finished", 0.25, rate=0.3))
    folder.append(trial(2, "finished", 0.3125, rate=0.7))
    folder.append(trial(3, "finished", 0.28, rate=0.9))
    assert folder.best.read_text().startswith("# Trial 2 of the search: validation MRR 0.3125.\n")
    best = load_config(str(folder.best))
    assert (best.model.dim, best.optimizer.learning_rate, best.train.epochs) == (64, 0.7, 7)
    assert best.data.store == "/stores/x"
    changes = [("model.dim", 256, 64), ("optimizer.learning_rate", 0.1, 0.7)]
    assert differences(folder.read_config(), best) == changes


def test_without_a_finished_trial_there_is_no_best_configuration(tmp_path: Path) -> None:
    folder = search(tmp_path)
    folder.append(trial(1, "failed", None))
    assert not folder.best.exists()


def test_a_line_torn_by_a_crash_is_left_out_and_not_written_into(tmp_path: Path) -> None:
    folder = search(tmp_path)
    folder.append(trial(1, "finished", 0.25))
    with folder.log.open("a") as file:
        file.write('{"number": 2, "param')
    assert [each.number for each in folder.ended()] == [1]
    folder.append(trial(2, "pruned", 0.125))
    assert [(each.number, each.valid_mrr) for each in folder.ended()] == [(1, 0.25), (2, 0.125)]
    assert len(folder.log.read_text().splitlines()) == 2


def test_a_trial_that_was_started_and_is_not_in_the_log_was_interrupted(tmp_path: Path) -> None:
    folder = search(tmp_path)
    numbers = [folder.begin({"model.dim": dim, "optimizer.learning_rate": 0.25}) for dim in (32, 64, 32)]
    assert numbers == [1, 2, 3]
    assert folder.interrupted() == [1, 2, 3]
    folder.append(trial(2, "finished", 0.5))
    assert folder.interrupted() == [1, 3]
    assert folder.parameters(2) == {"model.dim": 64, "optimizer.learning_rate": 0.25}
    assert folder.begin({"model.dim": 64, "optimizer.learning_rate": 0.5}) == 4
    assert folder.trial(4) == folder.path / "trials" / "0004"


def test_an_outcome_is_read_from_what_the_run_left(tmp_path: Path) -> None:
    folder = search(tmp_path)
    parameters = {"model.dim": 32, "optimizer.learning_rate": 0.1}
    done = run_of(folder, [0.125, None, 0.5, 0.25], result=True)
    stopped, died = run_of(folder, [0.0625]), run_of(folder, [None])
    diverged, never = run_of(folder, [0.75]), folder.begin(parameters)
    folder.note_failure(diverged, ValueError("the loss is nan\nmore"))
    assert [folder.outcome(done, "pruned"), folder.outcome(stopped, "pruned")] == [
        Trial(1, parameters, "finished", 0.5, 4.0, 40.0),
        Trial(2, parameters, "pruned", 0.0625, 1.0, 10.0),
    ]
    assert folder.outcome(died, "failed") == Trial(3, parameters, "failed", None, 1.0, 10.0, "its process died")
    error = "ValueError: the loss is nan"
    assert folder.outcome(diverged, "pruned") == Trial(4, parameters, "failed", 0.75, 1.0, 10.0, error)
    assert folder.outcome(never, "failed") == Trial(5, parameters, "failed", None, 0.0, 0.0, "its process died")


def test_only_the_best_trial_keeps_its_checkpoints(tmp_path: Path) -> None:
    folder = search(tmp_path)
    for number in (1, 2, 3, 4):
        folder.begin({})
        (folder.trial(number) / "checkpoints").mkdir()
    folder.append(trial(1, "finished", 0.25))
    folder.append(trial(2, "finished", 0.5))
    folder.append(trial(3, "pruned", 0.75))
    folder.drop_checkpoints()
    # 4 is under way.
    assert [n for n in (1, 2, 3, 4) if (folder.trial(n) / "checkpoints").exists()] == [2, 4]


def test_another_space_or_configuration_is_refused_and_another_cluster_is_not(tmp_path: Path) -> None:
    folder = search(tmp_path)
    config = folder.read_config()
    folder.start(config.model_copy(update={"cluster": config.cluster.model_copy(update={"max_failures": 9})}), SPACE)
    assert folder.read_config().cluster.max_failures == 9
    with pytest.raises(SearchError, match="has another space than this one"):
        folder.start(config, {"model.dim": SPACE["model.dim"]})
    other = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 9, "seed": 3})})
    with pytest.raises(SearchError, match=r"another configuration than this one: train\.epochs, train\.seed differ"):
        folder.start(other, SPACE)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(SearchError, match=r"is no search: it holds no space\.yaml"):
        SearchFolder(tmp_path).start(RunConfig(), SPACE)


def test_the_share_of_the_budget_is_that_of_the_epochs_or_of_the_time() -> None:
    config = RunConfig.model_validate({"train": {"epochs": 10}})
    timed = RunConfig.model_validate({"train": {"epochs": 10, "time_limit_seconds": 60}})
    line = {"epoch": 2.5, "time": 30.0}
    assert [budget_share(config, line), budget_share(timed, line)] == [0.25, 0.5]
    assert budget_share(timed, {"epoch": 9, "time": 1}) == 0.9


def test_validations_give_the_best_mrr_so_far() -> None:
    lines = [{"epoch": 1, "valid": {"mrr": m}} for m in (0.25, 0.5, float("nan"), 0.125)]
    assert [best for _, best in validations([{"epoch": 0.5}, *lines])] == [0.25, 0.5, 0.5]


def started(folder: Path, store: str) -> SearchFolder:
    folder.mkdir(exist_ok=True)
    found = SearchFolder(folder)
    config = RunConfig.model_validate({"data": {"store": store}})
    found.start(config, SPACE, provenance_of(config, [Store.open(store)]))
    return found


def test_a_search_goes_on_where_its_store_is_now(tmp_path: Path) -> None:
    generate(str(tmp_path / "store"), entities=40, relations=3, triples=300, seed=1)
    folder = started(tmp_path / "search", str(tmp_path / "store"))
    folder.append(trial(folder.begin({"model.dim": 64}), "finished", 0.5))
    checksum = Store.open(str(tmp_path / "store")).manifest.files["entities.parquet"].sha256
    assert f"# Searched on the store whose entities.parquet has SHA-256 {checksum}.\n" in folder.best.read_text()
    shutil.move(tmp_path / "store", tmp_path / "moved")
    started(tmp_path / "search", str(tmp_path / "moved"))
    assert folder.read_config().data.store == str(tmp_path / "moved")
    assert load_config(str(folder.best)).data.store == str(tmp_path / "moved")


def test_a_search_on_another_store_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    for name, seed in (("store", 1), ("again", 2)):
        generate(str(tmp_path / name), entities=40, relations=3, triples=300, seed=seed)
    started(tmp_path / "search", str(tmp_path / "store"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "search").iterdir()}
    with pytest.raises(StoreMismatchError, match=r"again differs from the one that the search in .* was trained on"):
        started(tmp_path / "search", str(tmp_path / "again"))
    shutil.rmtree(tmp_path / "store")
    shutil.move(tmp_path / "again", tmp_path / "store")
    with pytest.raises(StoreMismatchError):
        started(tmp_path / "search", str(tmp_path / "store"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "search").iterdir()} == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rung": "first", "promoted_from": null}', '{"rung": 1}'])
def test_a_damaged_file_of_a_rung_is_named(tmp_path: Path, text: str) -> None:
    folder = SearchFolder(tmp_path)
    number = folder.begin({"model.dim": 16}, rung=1)
    assert folder.started(number) == Started(number, 1, None)
    (folder.trial(number) / "rung.json").write_text(text)
    with pytest.raises(SearchError, match=r"0001/rung\.json does not name a rung\. Remove the folder of this trial"):
        folder.started(number)
