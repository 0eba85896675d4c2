import re
import shutil
import subprocess
from pathlib import Path

import pytest
from run_pages import METRICS, RESULT, Page, make_run, metric_lines

from distkg.data.storage.atomic_file import NotAFileError
from distkg.reporting.report import write_report


def page_of(run: Path) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_a_finished_run_shows_every_part(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "umls-complex", lines=metric_lines(), result=RESULT))
    titles = [
        *("Metrics", "Loss by epoch", "Loss by wall time", "Validation MRR by epoch", "Validation Hits@k"),
        *("MRR by category, side and what was seen", "answer seen", "By relation", "Throughput", "Where the time goes"),
        *("Memory per worker", "Degrees", "Partitions", "Rows per worker", "Configuration", "Versions"),
    ]
    assert [title for title in titles if title not in page.words] == []
    for number in ("0.3613", "0.2661", "0.3614", "0.3612", "40,932", "8.6 k", "22 min 00 s", "171.4"):
        assert number in page.text
    assert "umls-complex" in page.text
    assert "the largest holds 1.500 × the mean" in page.text


def test_accepted_changes_have_a_row_each(tmp_path: Path) -> None:
    changes = [{"step": 321, "epoch": 4.5, "key": "train.seed", "before": 7, "after": 8}]
    text = page_of(make_run(tmp_path / "a", lines=metric_lines(), result={**RESULT, "accepted_changes": changes})).text
    row = text[text.index("Accepted changes") :]
    assert [part for part in ("321", "4.5", "train.seed", "7", "8", "--accept-changes") if part not in row] == []
    for result in (RESULT, {**RESULT, "accepted_changes": []}):
        page = page_of(make_run(tmp_path / f"b{len(result)}", lines=metric_lines(), result=result))
        assert "Accepted changes" not in page.text


def test_a_grown_run_names_the_checkpoint_that_it_started_from(tmp_path: Path) -> None:
    origin = {"run": "runs/old", "checkpoint": "step-000000820", "sha256": "93608c", "rows": "neighbours"}
    text = page_of(make_run(tmp_path / "a", lines=metric_lines(), result={**RESULT, "grown_from": origin})).text
    card = text[text.index("Grown from") :]
    assert [part for part in origin.values() if part not in card] == []
    assert "Grown from" not in page_of(make_run(tmp_path / "b", lines=metric_lines(), result=RESULT)).text


def test_where_the_time_goes_adds_up(tmp_path: Path) -> None:
    # 20 reports of 1 + 2 + 6 + 1 seconds.
    page = page_of(make_run(tmp_path, lines=metric_lines(), result=RESULT))
    for share in ("10%  (20 s)", "20%  (40 s)", "60%  (2 min 00 s)"):
        assert share in page.text


def test_relations_come_most_frequent_first(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path, lines=metric_lines(), result=RESULT)).text
    assert text.index("parent_of") < text.index("born_in")


def test_relations_show_both_sides_where_they_are_known(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path, lines=metric_lines(), result=RESULT)).text
    assert text.index("0.6250") < text.index("0.3750")


def test_graphs_of_a_foundation_model_have_a_row_each(tmp_path: Path) -> None:
    rows = [
        {"graph": "stores/umls", "mrr": 0.625, "hits@1": 0.5, "hits@3": 0.75, "hits@10": 0.875, "queries": 1322},
        {"graph": "stores/family", "mrr": 0.25, "hits@1": 0.125, "hits@3": 0.375, "hits@10": 0.5, "queries": 5670},
    ]
    sizes = [
        {"graph": "stores/umls", "entities": 135, "relations": 46, "facts": 5216},
        {"graph": "stores/family", "entities": 3007, "relations": 12, "facts": 23483},
    ]
    graph = {"entities": 3142, "relations": 58, "triples": {"train": 28699}, "graphs": sizes}
    result = {key: RESULT[key] for key in ("metrics", "train", "versions")} | {"by_graph": rows, "graph": graph}
    config = {"data": {"graphs": ["stores/umls", "stores/family"]}, "model": {"name": "ultra", "dim": 256}}
    page = page_of(make_run(tmp_path, lines=metric_lines(), result=result, config=config))
    assert "By graph" in page.words
    assert "ultra · umls, family" in page.text
    assert "dimensions" not in page.text
    assert "3,142 entities, 58 relations; triples: 28,699 train." in page.text
    shown = page.text[page.text.index("stores/umls") :]
    assert shown.startswith("stores/umls 135 46 5,216 1,322 0.6250 0.5000 0.7500 0.8750")
    assert "stores/family 3,007 12 23,483 5,670 0.2500 0.1250 0.3750 0.5000" in shown
    assert "Loss by epoch" in page.words
    assert "By relation" not in page.words
    # A split without test triples leaves sizes alone.
    bare = {key: value for key, value in result.items() if key != "by_graph"}
    assert "stores/umls 135 46 5,216" in page_of(make_run(tmp_path / "bare", lines=[], result=bare)).text


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, lines=metric_lines(), result=RESULT))
    addresses = [attrs[key] for _, attrs in page.elements for key in ("src", "href") if key in attrs]
    assert addresses == []
    assert "url(" not in (tmp_path / "report.html").read_text()
    assert "@import" not in (tmp_path / "report.html").read_text()


def test_labels_cannot_inject_markup(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'"
    result = {
        **RESULT,
        "by_relation": [{"relation": attack, "mrr": 0.5, "hits@10": 0.5, "queries": 1, "category": attack}],
        "by_category": {attack: {"mrr": 0.5, "queries": 1}},
        "versions": {attack: attack},
        "metrics": {attack: METRICS},
    }
    config = {"data": {"store": attack}, attack: {attack: attack}, "model": {"name": attack, "dim": attack}}
    page = page_of(make_run(tmp_path, lines=metric_lines(), result=result, config=config))
    assert (page.count("script"), page.count("img")) == (1, 0)
    assert not any(key.startswith("on") for _, attrs in page.elements for key in attrs)
    assert attack in page.text


def test_a_run_that_stopped_early_shows_what_it_has(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, lines=metric_lines(6)))
    assert "not finished" in page.text
    assert "--resume" in page.text
    assert "latest validation" in page.text
    assert "Loss by epoch" in page.words
    assert "By relation" not in page.words


def test_a_run_without_a_line_still_has_a_page(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path))
    assert page.count("svg") == 0
    assert "complex · 512 dimensions" in page.text


def test_a_result_without_optional_parts(tmp_path: Path) -> None:
    result = {"metrics": {"test": METRICS}, "train": {"peak_rss_mb_per_worker": 700.0}}
    page = page_of(make_run(tmp_path, result=result))
    assert "largest worker" in page.text
    assert "Degrees" not in page.words


def test_numbers_that_are_not_finite_do_not_reach_the_pictures(tmp_path: Path) -> None:
    lines = [*metric_lines(4), {"time": 200.0, "epoch": 1.0, "step": 99, "loss": float("nan")}]
    page = page_of(make_run(tmp_path, lines=lines))
    drawn = " ".join(value for _, attrs in page.elements for value in attrs.values() if value)
    assert re.findall(r"\b(nan|inf)\b", drawn, re.IGNORECASE) == []


def test_writing_again_replaces_the_page(tmp_path: Path) -> None:
    make_run(tmp_path, lines=metric_lines(3))
    write_report(tmp_path)
    make_run(tmp_path, lines=metric_lines(), result=RESULT)
    assert "not finished" not in page_of(tmp_path).text
    assert [path.name for path in tmp_path.glob("report*")] == ["report.html"]


def test_the_table_sorts_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium on this machine: the sorting script is not run")
    path = write_report(make_run(tmp_path, lines=metric_lines(), result=RESULT))
    # Queries is the third column; the first click sorts ascending: born_in (8) before parent_of (90).
    click = "<script>document.querySelectorAll('table.sortable th button')[2].click()</script>"
    clicked = tmp_path / "clicked.html"
    clicked.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{click}</body>"), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", clicked.as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert page.index(">born_in<") < page.index(">parent_of<")
    assert 'aria-sort="ascending"' in page


def test_validation_is_drawn_against_wall_time_in_a_unit_that_fits(tmp_path: Path) -> None:
    # 20 reports, 30 s apart, each fifth with a validation: 2.5, 5, 7.5 and 10 minutes.
    page = page_of(make_run(tmp_path, lines=metric_lines()))
    assert "Validation MRR by wall time" in page.words
    assert [words for words in page.words if words.startswith("MRR: 0.3613 at minutes")] == [
        *(
            "MRR: 0.3613 at minutes 2.5",
            "MRR: 0.3613 at minutes 5",
            "MRR: 0.3613 at minutes 7.5",
            "MRR: 0.3613 at minutes 10",
        )
    ]
    quick = page_of(make_run(tmp_path, lines=[{**line, "time": line["time"] / 10} for line in metric_lines()]))
    assert "MRR: 0.3613 at seconds 60" in quick.words
    slow = page_of(make_run(tmp_path, lines=[{**line, "time": line["time"] * 36} for line in metric_lines()]))
    assert "MRR: 0.3613 at hours 6" in slow.words


def test_the_page_can_be_written_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", lines=metric_lines(3))
    to = tmp_path / "pages" / "run.html"
    assert write_report(run, to) == to
    assert "Loss by epoch" in to.read_text(encoding="utf-8")
    assert not (run / "report.html").exists()


def test_a_folder_is_no_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", lines=metric_lines(3))
    with pytest.raises(NotAFileError, match="is a folder: name a file to write"):
        write_report(run, tmp_path)


def test_negatives_are_shown_with_what_became_of_them(tmp_path: Path) -> None:
    came = {"delivered": 0.75, "late": 20, "old": 0, "broken": 3, "refused": 2, "age_median": 8, "age_max": 30}
    reported = {"score": -1.5, "uniform_score": -4.0, "false_negatives_removed": 1000, "restarts": 1, **came}
    lines = [{**line, "negatives": reported} for line in metric_lines(4)]
    page = page_of(make_run(tmp_path / "pool", lines=lines))
    assert {"Mean score of negatives", "Delivered by actors", "Age of what was delivered"} <= set(page.words)
    assert "4,000 negatives that are known facts" in page.text
    assert "80 late, 0 old, 12 broken, 8 refused. Actors restarted: 1." in page.text
    assert "Delivered by actors" not in page_of(make_run(tmp_path / "plain", lines=metric_lines(4))).words
    assert "Hard negatives by relations" not in page.words


def test_failures_of_actors_are_shown_with_their_warnings(tmp_path: Path) -> None:
    came = {"delivered": 0.5, "late": 1, "old": 0, "broken": 0, "refused": 0, "failed": 700, "lost": 4}
    reported = {**came, "restarts": 3, "hung": 2, "warnings": ["source <b>cached</b>: no luck"]}
    page = page_of(make_run(tmp_path / "pool", lines=[{**line, "negatives": reported} for line in metric_lines(2)]))
    assert (
        "2 late, 0 old, 0 broken, 0 refused, 1,400 failed in an actor, 8 lost with an actor. Actors restarted: 3, of "
        "these killed because they did not answer: 2."
    ) in page.text
    assert "Warnings of the negative pool" in page.words
    assert page.text.count("source <b>cached</b>: no luck") == 1


def test_hard_negatives_of_kmas_are_shown(tmp_path: Path) -> None:
    shares = {"hard_share": 0.25, "rejected": 0.125, "hard_among_top": None}
    reported = {"score": 1.5, "uniform_score": -4.0, "delivered": None, **shares}
    lines = [{**line, "negatives": reported} for line in metric_lines(4)]
    page = page_of(make_run(tmp_path, lines=lines))
    assert {"Hard negatives by relations", "hard", "rejected"} <= set(page.words)
    assert "among the ten" not in page.words
    assert "known facts" not in page.text
