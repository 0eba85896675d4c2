import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from run_pages import RESULT, Page, make_run, metric_lines

from distkg.reporting.comparison import differences, distinct_names, flatten, write_comparison
from distkg.reporting.run_record import RunError, RunRecord

COLUMNS = ["Run", "MRR", "Hits@1", "Hits@3", "Hits@10", "Mean rank", "Training", "To best validation"]


def result(**changes: float) -> dict[str, Any]:
    """``RESULT`` with test metrics changed; ``hits@k`` is written ``hits_k``, and ``seconds`` is that of training."""
    changed = deepcopy(RESULT)
    for key, value in changes.items():
        part = changed["train"] if key in ("seconds", "workers") else changed["metrics"]["test"]
        part[key.replace("hits_", "hits@")] = value
    return changed


def lines_with(mrrs: list[float], seconds: float) -> list[dict[str, Any]]:
    """A validation every ``seconds``, one an epoch."""
    return [
        {"time": seconds * i, "epoch": i, "step": 10 * i, "loss": 5.0 - i, "valid": {"mrr": mrr, "hits@10": mrr}}
        for i, mrr in enumerate(mrrs, 1)
    ]


def compared(*runs: Path) -> str:
    to = runs[0].parent / "page.html"
    assert write_comparison(runs, to) == to
    text = to.read_text(encoding="utf-8")
    Page(text)
    return text


def rows_of(page: str, title: str) -> list[list[str]]:
    """Cells of the table below a title, the best ones with a star, without marks of style."""
    card = page[page.index(f"<h2>{title}</h2>") :]
    table = card[: card.index("</table>")].replace("<strong>", "*")
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in rows]


def metrics_of(page: str) -> list[list[str]]:
    return rows_of(page, "Test metrics, time and memory")


def card_of(page: str, title: str) -> str:
    card = page[page.index(f"<h2>{title}</h2>") :]
    return card[: card.index("</section>")]


def test_test_metrics_stand_side_by_side_with_the_best_marked(tmp_path: Path) -> None:
    first = make_run(tmp_path / "one", lines=lines_with([0.2, 0.4, 0.3], 40.0), result=RESULT)
    second = make_run(
        tmp_path / "two",
        lines=lines_with([0.1, 0.2, 0.3, 0.35], 30.0),
        result=result(mrr=0.4, hits_1=0.2, mean_rank=99.25, seconds=125.0, workers=4),
    )
    header, one, two = metrics_of(compared(first, second))
    assert header == [*COLUMNS, "Peak memory", "Workers"]
    # The first was best after 80 s, the second after 120 s; figures that are equal are not marked.
    assert one == [
        *("one", "0.3613", "*0.2661", "0.3982", "0.5532", "171.4", "22 min 00 s", "*1 min 20 s", "1.04 GB", "2")
    ]
    assert two == [
        *("two", "*0.4000", "0.2000", "0.3982", "0.5532", "*99.2", "*2 min 05 s", "2 min 00 s", "1.04 GB", "4")
    ]


def test_figures_that_read_the_same_share_the_mark(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(mrr), result=result(mrr=mrr)) for mrr in (0.40001, 0.40002, 0.3)]
    assert [row[1] for row in metrics_of(compared(*runs))[1:]] == ["*0.4000", "*0.4000", "0.3000"]


def test_a_run_that_is_not_finished_is_warned_of_and_never_best(tmp_path: Path) -> None:
    done = make_run(tmp_path / "done", lines=lines_with([0.2, 0.3], 60.0), result=RESULT)
    also = make_run(tmp_path / "also", lines=lines_with([0.2, 0.3], 90.0), result=result(mrr=0.1, seconds=2000.0))
    going = make_run(tmp_path / "going", lines=[{**line, "peak_rss_mb": 5.0} for line in lines_with([0.9, 0.8], 20.0)])
    page = compared(done, going, also)
    assert page.count('class="warning"') == 1
    assert "going: not finished" in page
    _, done_row, going_row, _ = metrics_of(page)
    # Its configuration does not say on how many workers it runs.
    assert going_row == ["goingnot finished", "–", "–", "–", "–", "–", "40 s", "20 s", "5 MB", "–"]
    assert (done_row[1], done_row[6], done_row[7]) == ("*0.3613", "*22 min 00 s", "*2 min 00 s")


def test_curves_of_all_runs_lie_in_one_chart(tmp_path: Path) -> None:
    long = make_run(tmp_path / "long", lines=lines_with([0.1, 0.2, 0.3, 0.4], 60.0), result=RESULT)
    short = make_run(tmp_path / "short", lines=lines_with([0.2, 0.4], 60.0), result=RESULT)
    page = compared(long, short)
    for title in (
        *("Validation MRR by wall time", "Validation MRR by epoch", "Validation Hits@10 by wall time"),
        *("Validation Hits@10 by epoch", "Loss by wall time", "Loss by epoch"),
    ):
        card = card_of(page, title)
        assert re.findall(r'<polyline class="line ([^"]*)"', card) == ["s0", "s1 d1"], title
        assert re.findall(r"<span>(\w+)</span>", card) == ["long", "short"], title
    # Four minutes span x from 64 to 426, MRR from 0.1 to 0.4 spans y from 206 to 14.
    assert re.findall(r'points="([^"]*)"', card_of(page, "Validation MRR by wall time")) == [
        "154.5,206.0 245.0,142.0 335.5,78.0 426.0,14.0",
        "154.5,142.0 245.0,14.0",
    ]
    assert "short: 0.4 at minutes 2<" in page


def test_a_run_without_validation_leaves_the_styles_of_others_alone(tmp_path: Path) -> None:
    bare = make_run(tmp_path / "bare", lines=[{"time": 1.0, "epoch": 1.0, "step": 1, "loss": 2.0}])
    full = make_run(tmp_path / "full", lines=metric_lines(), result=RESULT)
    card = card_of(compared(bare, full), "Validation MRR by epoch")
    assert re.findall(r'<polyline class="line ([^"]*)"', card) == ["s1 d1"]
    assert re.findall(r"<span>(\w+)</span>", card) == ["full"]


def test_runs_without_a_line_still_have_a_page(tmp_path: Path) -> None:
    page = compared(make_run(tmp_path / "a"), make_run(tmp_path / "b"))
    assert "polyline" not in page
    assert page.count("not finished, as there is no result.json") == 2


def test_only_keys_that_differ_are_listed(tmp_path: Path) -> None:
    shared = {"data": {"store": "stores/umls"}, "train": {"seed": 0}}
    configs = [
        {**shared, "model": {"name": "transe", "dim": 64, "options": {"norm": "l1"}}},
        {**shared, "model": {"name": "complex", "dim": 64, "options": {}}},
    ]
    runs = [make_run(tmp_path / f"run{i}", config=config, result=RESULT) for i, config in enumerate(configs)]
    page = compared(*runs)
    assert rows_of(page, "Configuration: what differs") == [
        ["Key", "run0", "run1"],
        ["model.name", "transe", "complex"],
        ["model.options.norm", "l1", "–"],
        ["model.options", "–", "{}"],
    ]
    # What they share stands below the heading.
    assert "<p>64 dimensions · stores/umls</p>" in page


def test_equal_configurations_are_said_to_be_equal(tmp_path: Path) -> None:
    page = compared(make_run(tmp_path / "a", result=RESULT), make_run(tmp_path / "b", result=RESULT))
    assert "The configurations are equal." in page
    assert "Keys with equal values" not in page


def test_a_run_without_a_configuration_is_left_out_of_the_differences(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, result=RESULT, config={"model": {"dim": dim}}) for name, dim in ("a1", "b2", "c3")
    ]
    (runs[1] / "config.yaml").unlink()
    page = compared(*runs)
    assert "b: there is no config.yaml" in page
    assert rows_of(page, "Configuration: what differs") == [["Key", "a", "c"], ["model.dim", "1", "3"]]
    assert differences([("a", RunRecord(runs[0])), ("b", RunRecord(runs[1]))]) == ""


def test_losses_of_different_objectives_come_with_a_note(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, lines=metric_lines(), config={"objective": {"name": name, "margin": 9.0}})
        for name in ("margin", "logistic")
    ]
    assert "different objectives" in card_of(compared(*runs), "Loss by epoch")
    same = [make_run(tmp_path / n, lines=metric_lines(), config={"objective": {"name": "margin"}}) for n in "ab"]
    assert "different objectives" not in compared(*same)


def test_runs_on_different_graphs_are_warned_of_and_none_is_best(tmp_path: Path) -> None:
    other = result(mrr=0.9)
    other["graph"]["entities"] = 135
    page = compared(make_run(tmp_path / "a", result=RESULT), make_run(tmp_path / "b", result=other))
    assert "different graphs" in page
    assert "14,541 entities, 237 relations; triples: 272,115 train / 135 entities" in page
    assert "<strong>" not in page


def test_damaged_lines_are_told_with_the_run(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, lines=metric_lines(2), result=RESULT) for name in ("whole", "torn")]
    with (runs[1] / "metrics.jsonl").open("a") as file:
        file.write('{"time": 2')
    page = compared(*runs)
    assert page.count("could not be read") == 1
    assert "torn: 1 line(s) of metrics.jsonl could not be read" in page


def test_labels_cannot_inject_markup(tmp_path: Path) -> None:
    attack = "<script>alert(1)<img src=x onerror=alert(2)>\"'"
    config = {attack: {attack: attack}, "model": {"name": attack, "dim": attack}, "data": {"store": attack}}
    first = make_run(tmp_path / attack, lines=metric_lines(), result=RESULT, config=config)
    second = make_run(tmp_path / "plain", lines=metric_lines(), config=config | {"model": {"name": attack + "2"}})
    page = Page(compared(first, second))
    assert (page.count("script"), page.count("img")) == (1, 0)
    assert not any(key.startswith("on") for _, attrs in page.elements for key in attrs)
    assert page.words.count(attack) >= 7  # the table, six legends


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = compared(*(make_run(tmp_path / name, lines=metric_lines(), result=RESULT) for name in "ab"))
    assert not any(key in attrs for _, attrs in Page(text).elements for key in ("src", "href"))
    assert "url(" not in text


def test_equal_folder_names_take_parents_with_them() -> None:
    folders = ["/x/a/umls", "/x/b/umls", "/y/b/umls", "/x/kinship"]
    assert distinct_names([Path(folder) for folder in folders]) == ["a/umls", "x/b/umls", "y/b/umls", "kinship"]
    assert distinct_names([Path("/umls"), Path("/a/umls")]) == ["/umls", "a/umls"]


def test_names_are_those_of_the_folders_however_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert distinct_names([Path("."), Path("../there/")]) == ["here", "there"]


def test_equal_folder_names_are_told_apart_on_the_page(tmp_path: Path) -> None:
    page = compared(
        *(make_run(tmp_path / name / "run", lines=metric_lines(), result=RESULT) for name in ("old", "new"))
    )
    assert [row[0] for row in metrics_of(page)[1:]] == ["old/run", "new/run"]


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"/run' is given 2 times; give each run once"):
        write_comparison([run, tmp_path / "other" / ".." / "run"])


@pytest.mark.parametrize(("name", "message"), [("none", "there is no run folder"), ("empty", "not a run folder")])
def test_a_folder_that_is_no_run_is_named_and_nothing_is_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError, match=rf"{name}.*distkg train --run") as caught:
        write_comparison([run, tmp_path / name], tmp_path / "page.html")
    assert message in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_the_page_goes_to_the_current_folder_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(tmp_path / "runs" / name) for name in "ab"]
    monkeypatch.chdir(tmp_path)
    assert write_comparison(runs) == Path("comparison.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.html", "runs"]


def test_nested_keys_are_dotted() -> None:
    tree = {"model": {"options": {"norm": "l1"}, "dim": 4}, "train": {"time_limit": None, "list": [1, 2]}, "x": {}}
    assert flatten(tree) == {
        "model.options.norm": "l1",
        "model.dim": "4",
        "train.time_limit": "null",
        "train.list": "[1, 2]",
        "x": "{}",
    }
