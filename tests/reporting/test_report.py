import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from distkg.reporting.report import write_report

METRICS = {
    "mrr": 0.3613,
    "hits@1": 0.2661,
    "hits@3": 0.3982,
    "hits@10": 0.5532,
    "mean_rank": 171.4,
    "mrr_optimistic": 0.3614,
    "mrr_pessimistic": 0.3612,
    "queries": 40932,
}
RESULT: dict[str, Any] = {
    "metrics": {"test": METRICS, "valid": {**METRICS, "mrr": 0.3651}},
    "train": {
        "triples_per_second": 8600.2,
        "seconds": 1320.0,
        "epochs": 4,
        "steps": 200,
        "workers": 2,
        "peak_rss_mb_per_worker": [1043.0, 1012.0],
        "bytes_exchanged_per_step": 4_500_000,
    },
    "versions": {"torch": "2.13.0"},
    "config_sha256": "ab" * 32,
    "by_relation": [
        {
            "relation": "born_in",
            "mrr": 0.5,
            "hits@10": 0.75,
            "queries": 8,
            "category": "n-1",
            "mrr_tail": 0.625,
            "mrr_head": 0.375,
        },
        {"relation": "parent_of", "mrr": 0.25, "hits@10": 0.5, "queries": 90, "category": "1-n"},
    ],
    "by_category": {"1-n": {"mrr": 0.25, "queries": 90}},
    "by_side": {"tail": {"mrr": 0.45, "queries": 49}},
    "graph": {
        "entities": 14541,
        "relations": 237,
        "triples": {"train": 272115},
        "degree_histogram": [[1, 900], [10, 90]],
        "partitions": [100, 300],
        "shards": [200, 200],
    },
}


class Page(HTMLParser):
    """Collects the text, the elements and the addresses of a page, and checks that tags close."""

    VOID = frozenset({"meta", "line", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def metric_lines(count: int = 20) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for i in range(1, count + 1):
        line = {"time": 30.0 * i, "epoch": i / 5, "step": 10 * i, "loss": 9 * math.exp(-i / 8)}
        line |= {"learning_rate": 0.1, "triples_per_second": 8000.0 + i, "peak_rss_mb": 900.0 + i}
        seconds = {"data": 1.0, "exchange": 2.0, "compute": 6.0, "optimizer": 1.0}
        lines.append({**line, "seconds": seconds, **({"valid": METRICS} if i % 5 == 0 else {})})
    return lines


def make_run(folder: Path, *, lines: Any = None, result: Any = None, config: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {"model": {"name": "complex", "dim": 512}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines or []))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def page_of(run: Path) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_a_finished_run_shows_every_part(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "umls-complex", lines=metric_lines(), result=RESULT))
    titles = [
        *("Metrics", "Loss by epoch", "Loss by wall time", "Validation MRR by epoch", "Validation Hits@k"),
        *("MRR by category and by side", "By relation", "Throughput", "Where the time goes"),
        *("Memory per worker", "Degrees", "Partitions", "Rows per worker", "Configuration", "Versions"),
    ]
    assert [title for title in titles if title not in page.words] == []
    for number in ("0.3613", "0.2661", "0.3614", "0.3612", "40,932", "8.6 k", "22 min 00 s", "171.4"):
        assert number in page.text
    assert "umls-complex" in page.text
    assert "the largest holds 1.500 × the mean" in page.text


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
