"""The page of a search about its rungs, and about the front of two objectives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from run_pages import Page

from distkg.config import RunConfig
from distkg.reporting.search import importances, read_search, render, trial_line
from distkg.reporting.search_methods import front_table
from distkg.search.method import Method
from distkg.search.rungs import Rung
from distkg.search.search_folder import SearchFolder
from distkg.search.space import parse_space
from distkg.search.trials import Trial

SPACE = parse_space({"optimizer.learning_rate": {"log_uniform": [0.001, 1]}}, "s")
RUNGS = (
    Rung(4, 0.25, 12, 1040, 4100, 180, 0.5, 6),
    Rung(2, 0.5, 0, 2080, 32800, 1820, 1.0, 15),
)


def trial(number: int, mrr: float | None, seconds: float, **more: Any) -> Trial:
    state = "failed" if mrr is None else "finished"
    return Trial(number, {"optimizer.learning_rate": 0.001 * 2**number}, state, mrr, 12.0, seconds, **more)  # type: ignore[arg-type]


def page_of(folder: Path, method: Method, trials: list[Trial]) -> Page:
    files = SearchFolder(folder)
    folder.mkdir()
    files.start(RunConfig.model_validate({"data": {"store": "s"}, "model": {"name": "distmult"}}), SPACE, method=method)
    for each in trials:
        files.append(each)
    record = read_search(folder)
    return Page(render(record, importances(record)))


IN_RUNGS = [
    trial(1, 0.5, 10, rung=1),
    trial(2, 0.625, 11, rung=1),
    trial(3, None, 1, rung=1, error="ValueError: x"),
    trial(4, 0.25, 12, rung=1),
    trial(5, 0.375, 40, rung=2, promoted_from=2),
]


def test_a_search_by_rungs_shows_them_and_compares_scores_within_a_rung_only(tmp_path: Path) -> None:
    page = page_of(tmp_path / "search", Method(budget=2.0, rungs=RUNGS), IN_RUNGS)
    text = " ".join(page.words)
    assert "1 12-core 4,100 1,040 180 6 4 of 4 0.6250 34 s" in text
    assert "2 whole graph 32,800 2,080 1,820 15 1 of 2 0.3750 40 s" in text
    dots = [word for word in page.words if " at trial " in word]
    assert dots == [
        "rung 1: 0.5 at trial 1",
        "rung 1: 0.625 at trial 2",
        "rung 1: 0.25 at trial 4",
        "rung 2: 0.375 at trial 5",
    ]
    # The chart of a key has the first rung alone; the best is that of the last rung.
    assert len([word for word in page.words if " at optimizer.learning_rate " in word]) == 3
    assert "trial 5: 12 epochs, 40 s" in text


def test_a_line_of_progress_names_the_rung() -> None:
    line = trial_line(IN_RUNGS[-1], 6, IN_RUNGS).splitlines()[0]
    assert line == "5/6  trial 5 in rung 2 finished  valid MRR 0.3750  12 epochs, 40 s  best 0.3750 (trial 5)"


COSTS = [trial(1, 0.5, 100), trial(2, 0.25, 20), trial(3, 0.375, 150), trial(4, None, 1), trial(5, 0.125, 30)]


def test_a_search_with_two_objectives_shows_its_front_on_the_chart_and_in_a_table(tmp_path: Path) -> None:
    page = page_of(tmp_path / "search", Method(against="seconds"), COSTS)
    dots = [word for word in page.words if " at training time (s) " in word]
    assert sorted(dots) == [
        "dominated: 0.125 at training time (s) 30",
        "dominated: 0.375 at training time (s) 150",
        "on the front: 0.25 at training time (s) 20",
        "on the front: 0.5 at training time (s) 100",
    ]
    text = " ".join(page.words)
    assert "2 0.2500 20 0.004 1 0.5000 100 0.002" in text


def test_the_terminal_shows_the_front_by_rising_cost() -> None:
    console = Console(width=120, record=True)
    with console.capture() as shown:
        console.print(front_table(COSTS, "seconds"))
    lines = [line.split() for line in shown.get().splitlines()]
    rows = [line for line in lines if line and line[0].isdigit()]
    assert rows == [
        ["2", "0.2500", "20", "optimizer.learning_rate=0.004"],
        ["1", "0.5000", "100", "optimizer.learning_rate=0.002"],
    ]


def test_a_search_without_a_finished_trial_has_no_front(tmp_path: Path) -> None:
    page = page_of(tmp_path / "search", Method(against="memory"), [trial(1, None, 1)])
    assert "Validation MRR against cost" not in page.words
