"""The page of a search."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_pages import Page
from typer.testing import CliRunner

from distkg.cli import app
from distkg.config import RunConfig
from distkg.reporting.run_record import RunError
from distkg.reporting.search import (
    changes_table,
    importances,
    is_search,
    read_search,
    render,
    trial_line,
    write_search_report,
)
from distkg.search.search_folder import SearchFolder
from distkg.search.space import parse_space
from distkg.search.trials import Trial

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'"
FORMS = {
    "optimizer.learning_rate": {"log_uniform": [0.001, 1]},
    "model.dim": {"choice": [32, 64]},
    "model.options.norm": {"choice": ["l1", ATTACK]},
}
SPACE = parse_space(FORMS, "s")


def trial(number: int, state: Any, mrr: float | None, rate: float, norm: str = "l1", error: str = "") -> Trial:
    parameters = {"optimizer.learning_rate": rate, "model.dim": 64, "model.options.norm": norm}
    return Trial(number, parameters, state, mrr, 12.0, 65.0, error)


TRIALS = [
    trial(2, "pruned", 0.125, 0.9, ATTACK),
    trial(1, "finished", 0.25, 0.1),
    trial(3, "failed", None, 1.0, error=f"ValueError: {ATTACK}"),
    trial(4, "finished", 0.3125, 0.02),
]


def search(folder: Path, trials: list[Trial]) -> Path:
    files = SearchFolder(folder)
    folder.mkdir()
    config = {"data": {"store": ATTACK}, "model": {"name": "transe", "dim": 64, "options": {"norm": "l1"}}}
    files.start(RunConfig.model_validate(config), SPACE)
    for each in trials:
        files.append(each)
        run = files.trial(each.number)
        run.mkdir(parents=True)
        lines = [{"step": i, "epoch": i, "time": 5.0 * i, "valid": {"mrr": (each.valid_mrr or 0) / i}} for i in (2, 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    return folder


def test_a_search_shows_its_history_its_parameters_and_every_trial(tmp_path: Path) -> None:
    folder = search(tmp_path / "search", TRIALS)
    assert write_search_report(folder) == folder / "report.html"
    page = Page((folder / "report.html").read_text())
    titles = ["Best configuration", "History", "Importance of parameters", "Trials", "Validation MRR by wall time"]
    assert [title for title in [*titles, *FORMS] if title not in page.words] == []
    text = " ".join(page.words)
    for shown in ("0.3125", "trial 4: 12 epochs, 1 min 05 s", "2 finished, 1 pruned, 1 failed", "4 min 20 s", "0.02"):
        assert shown in text
    # The best configuration differs from the base in the learning rate alone.
    assert text.index("optimizer.learning_rate") < text.index("0.1") < text.index("0.02")


def test_words_of_a_search_cannot_inject_markup(tmp_path: Path) -> None:
    page = Page(render(read_search(search(tmp_path / "search", TRIALS)), {ATTACK: 0.75, "model.dim": 0.25}))
    assert (page.count("script"), page.count("img")) == (1, 0)
    assert not any(key.startswith("on") for _, attrs in page.elements for key in attrs)
    assert f"ValueError: {ATTACK}" in page.words


def marks(page: Page, label: str) -> list[str]:
    """Tooltips are in the words; circles by picture."""
    names = [attrs.get("aria-label") for tag, attrs in page.elements if tag == "svg"]
    assert label in names
    return [word for word in page.words if " at " in word]


def test_the_history_has_a_dot_for_each_trial_and_the_best_of_those_that_finished(tmp_path: Path) -> None:
    page = Page(render(read_search(search(tmp_path / "search", TRIALS)), {}))
    found = marks(page, "best validation MRR by trial")
    for dot in ("finished: 0.25 at trial 1", "pruned: 0.125 at trial 2", "finished: 0.312 at trial 4"):
        assert dot in found
    assert [dot for dot in found if dot.startswith("best finished so far")] == [
        "best finished so far: 0.25 at trial 1",
        "best finished so far: 0.25 at trial 2",
        "best finished so far: 0.25 at trial 3",
        "best finished so far: 0.312 at trial 4",
    ]


def test_slices_name_their_choices(tmp_path: Path) -> None:
    page = Page(render(read_search(search(tmp_path / "search", TRIALS)), {}))
    found = marks(page, "best validation MRR by model.options.norm")
    assert f"0.125 at model.options.norm {ATTACK}" in found
    assert "0.312 at model.options.norm l1" in found
    assert "0.312 at optimizer.learning_rate 0.02" in found


def test_a_search_without_a_trial_has_a_page(tmp_path: Path) -> None:
    folder = search(tmp_path / "search", [])
    record = read_search(folder)
    page = Page(render(record, importances(record)))
    assert "No trial has ended yet." in page.words
    assert page.count("svg") == 0


def test_a_search_without_a_success_names_no_best(tmp_path: Path) -> None:
    page = Page(render(read_search(search(tmp_path / "search", TRIALS[2:3])), {}))
    assert "Best configuration" not in page.words
    assert "1 failed" in page.words


def test_the_command_for_reports_knows_a_search(tmp_path: Path) -> None:
    folder = search(tmp_path / "search", TRIALS)
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.output.strip() == str(folder / "report.html")
    assert "Importance of parameters" in (folder / "report.html").read_text()


def test_a_folder_that_is_no_search_is_refused(tmp_path: Path) -> None:
    assert not is_search(tmp_path)
    with pytest.raises(RunError, match=r"is no search: it holds no space\.yaml"):
        read_search(tmp_path)


def test_a_line_for_each_trial() -> None:
    assert trial_line(TRIALS[0], 12, TRIALS[:1]).splitlines()[0] == (
        "1/12  trial 2 pruned    valid MRR 0.1250  12 epochs, 1 min 05 s"
    )
    lines = trial_line(trial(3, "failed", None, 1.0, error="ValueError: the loss is nan"), 12, TRIALS).splitlines()
    assert lines == [
        "4/12  trial 3 failed    valid MRR –  12 epochs, 1 min 05 s  best 0.3125 (trial 4)",
        "      optimizer.learning_rate=1, model.dim=64, model.options.norm=l1",
        "      ValueError: the loss is nan",
    ]


def test_the_terminal_shows_what_the_best_changes(tmp_path: Path) -> None:
    console = Console(width=120, record=True, quiet=False)
    with console.capture() as shown:
        console.print(changes_table(read_search(search(tmp_path / "search", TRIALS))))
    lines = [line.split() for line in shown.get().splitlines()]
    assert ["Best:", "trial", "4,", "validation", "MRR", "0.3125"] in lines
    assert ["optimizer.learning_rate", "0.1", "0.02"] in lines
