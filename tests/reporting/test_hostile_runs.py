"""Pages of run folders that somebody else made: whatever they hold becomes text of the page, or one error."""

import copy
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from run_pages import METRICS, RESULT, Page, make_run, metric_lines
from unsafe_text import LABELS, unsafe_characters

from distkg.reporting.comparison import write_comparison
from distkg.reporting.report import write_report
from distkg.reporting.run_record import RunError
from distkg.reporting.search import write_search_report
from distkg.search.search_folder import SearchFolder
from distkg.search.trials import Trial

CONFIG: dict[str, Any] = {
    "data": {"store": "stores/umls", "graphs": []},
    "model": {"name": "complex", "dim": 32, "options": {"norm": "l1"}},
    "objective": {"name": "one_vs_all"},
}
NASTY = ("<script", "<img", "onerror=alert", "href")


def check_page(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert unsafe_characters(text) == set()
    scripts = re.findall(r"<script>", text)
    assert len(scripts) == 1
    assert not any(tag in ("img", "a", "iframe", "object") for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    return page.text


@pytest.mark.parametrize("label", LABELS[-13:])
def test_every_text_of_a_run_is_escaped(tmp_path: Path, label: str) -> None:
    result = copy.deepcopy(RESULT)
    result["metrics"][label] = METRICS
    result["versions"][label] = label
    result["by_relation"].append({"relation": label, "category": label, "queries": 3})
    result["by_category"][label] = {"mrr": 0.5}
    result["by_graph"] = [{"graph": label, "mrr": 0.5}]
    result["graph"]["triples"][label] = label
    result["config_sha256"] = label
    config = {**CONFIG, "model": {"name": label, "dim": label, "options": {label: label}}, label: {label: label}}
    run = make_run(tmp_path / "run", lines=metric_lines(), result=result)
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    check_page(write_report(run))
    other = make_run(tmp_path / "other", lines=metric_lines(), result=RESULT)
    (other / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    check_page(write_comparison([run, other], tmp_path / "comparison.html"))


def test_the_names_of_folders_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<img src=x>\u202e\x1b[2J\nb", lines=metric_lines(), result=RESULT)
    assert "<img src=x>\\u202e\\x1b[2J\\x0ab" in check_page(write_report(run))


def test_what_a_search_holds_is_escaped(tmp_path: Path) -> None:
    bad = LABELS[-5] + LABELS[-9]
    folder = SearchFolder(tmp_path)
    folder.config.write_text("model: {name: complex}\n")
    folder.space.write_text("model.name: {choice: [complex, distmult]}\n")
    trials = [
        Trial(1, {"model.name": bad, bad: bad}, "finished", 0.5, 1e308, 1e308, bad),
        Trial(2, {"model.name": "distmult"}, "failed", None, -1.0, 0.0, bad),
    ]
    records = [json.dumps(vars(trial)) for trial in trials]
    broken = ['{"number": []}', "[" * 10_000, '{"number": 3, "parameters": 1, "state": "x"}', "null"]
    folder.log.write_text("\n".join([*broken, *records[1:]]) + "\n")
    check_page(write_search_report(tmp_path))


# Values of any type in the place of any value of a record.
scalars = st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.sampled_from(LABELS)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(LABELS), v, max_size=3)
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in children:
        yield (*path, key)
        yield from places(value, (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(tree)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


WHOLE = {"config": CONFIG, "result": RESULT, "line": metric_lines()[0]}


def report_or_refuse(run: Path) -> str | None:
    """The message of the error, where the page is not written."""
    try:
        check_page(write_report(run))
    except RunError as error:
        message = str(error)
    else:
        return None
    assert unsafe_characters(message) == set()
    return message


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(places(WHOLE))), values), min_size=1, max_size=3))
def test_a_value_of_any_type_is_shown_or_left_out(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    tree: Any = WHOLE
    for path, value in changes:
        try:
            tree = replaced(tree, path, value)
        except (TypeError, KeyError, IndexError):
            continue  # an earlier change took its place away
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        (run / "config.yaml").write_text(yaml.safe_dump(tree["config"]), encoding="utf-8")
        (run / "result.json").write_text(json.dumps(tree["result"]), encoding="utf-8")
        lines = [json.dumps(line) for line in (*metric_lines()[:3], tree["line"])]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        refused = report_or_refuse(run)
        assert refused is None or "config.yaml" in refused or "result.json" in refused


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["config.yaml", "result.json", "metrics.jsonl"]),
    st.binary(max_size=40) | st.sampled_from([b"[" * 200_000, b'{"a":' * 200_000, b"2020-99-99", b"9" * 5000]),
)
def test_bytes_of_any_kind_are_read_or_refused(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        (run / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        (run / name).write_bytes(content)
        refused = report_or_refuse(run)
        assert refused is None or name in refused


def test_aliases_that_expand_without_end_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(RunError, match=r"config\.yaml is not valid YAML: an alias"):
        write_report(tmp_path)


def test_a_pipe_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(RunError, match=r"metrics\.jsonl is not a plain file"):
        write_report(tmp_path)
