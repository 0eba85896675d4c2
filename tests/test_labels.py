"""Labels with every character that may not reach a terminal, a TSV file or a page raw, through every command."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result
from unsafe_text import LABELS, unsafe_characters

from distkg.cli import app
from distkg.cli.app import PrintableFormatter
from distkg.config import load_config
from distkg.data.store.graph_store import Store
from distkg.printable import printable
from distkg.reporting.stages import show_stages
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

COUNT = len(LABELS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file in which every label is an entity and a relation."""
    triples = [(LABELS[i], LABELS[i], LABELS[(step * i + 1) % COUNT]) for step in (1, 3, 5, 7) for i in range(COUNT)]
    head, relation, tail = (pa.array(column) for column in zip(*triples, strict=True))
    path = tmp_path_factory.mktemp("labels") / "graph.parquet"
    pq.write_table(pa.table({"head": head, "relation": relation, "tail": tail}), path)
    return path


@pytest.fixture(scope="module")
def store(source: Path) -> Path:
    path = source.parent / "store"
    assert run_cli("prepare", source, "--store", path).exit_code == 0
    return path


@pytest.fixture(scope="module")
def trained(store: Path) -> Path:
    settings = [f"data.store={store}", "train.epochs=1", "model.dim=8", "objective.name=one_vs_all", "train.workers=1"]
    run = store.parent / "run"
    train_on_rank(load_config("preset:demo", settings), run, Ranks.single())
    return run


def run_cli(*arguments: str | Path) -> Result:
    """Run a command; its streams hold no character that could not be printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert unsafe_characters(result.stdout) == set()
    assert unsafe_characters(result.stderr) == set()
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def typed(label: str) -> str:
    """A label as a command line can hold it: an argument of a process has no null byte, so its escape stands there."""
    return printable(label) if "\0" in label else label


def assert_printable(file: Path, allowed: str = "\n") -> str:
    text = file.read_text(encoding="utf-8")
    assert unsafe_characters(text, allowed) == set()
    return text


def test_the_labels_are_kept_as_they_are(store: Path) -> None:
    assert sorted(Store.open(str(store)).entity_labels().to_pylist()) == sorted(LABELS)


def test_negatives_are_shown_with_their_labels_escaped(store: Path) -> None:
    shown = run_cli("negatives", store, "--show", "60", "--count", "10")
    assert shown.exit_code == 0
    assert r"\x1b[31mred\x1b[0m" in shown.output.replace("\n", "").replace(" ", "")
    assert "[red]markup[/red]" in shown.output
    printed = run_cli("negatives", store, "--show", "60", "--count", "10", "--json")
    examples = json.loads(printed.stdout)["examples"]
    assert {label for example in examples for label in example["negatives"]} <= set(LABELS)


def test_a_run_is_evaluated_and_reported(trained: Path, tmp_path: Path) -> None:
    for arguments in (["--split", "train"], ["--split", "train", "--json"]):
        assert run_cli("evaluate", trained, *arguments).exit_code == 0
    assert run_cli("report", trained, "--to", tmp_path / "report.html").exit_code == 0
    assert assert_printable(tmp_path / "report.html").count("<script>") == 1


@pytest.mark.parametrize("label", LABELS[:3] + LABELS[-14:])
def test_answers_to_a_label_are_shown_and_written(trained: Path, label: str) -> None:
    given = typed(label)
    shown = run_cli("predict", trained, "--anchor", given, "--relation", given, "--known", "keep", "--top", str(COUNT))
    assert shown.exit_code == 0, shown.output
    written = run_cli("predict", trained, "--anchor", given, "--relation", given, "--top", str(COUNT), "--json")
    assert {answer["label"] for answer in json.loads(written.stdout)} <= set(LABELS)


def test_a_label_is_found_as_it_is_shown(trained: Path) -> None:
    shown = run_cli(
        "predict", trained, "--anchor", r"line\x0aerror: forged\x0d\x0a\x09tab", "--relation", typed(LABELS[0])
    )
    assert shown.exit_code == 0, shown.output


def test_answers_in_a_tsv_file_are_read_back_as_queries(trained: Path, tmp_path: Path) -> None:
    asked = [(LABELS[i], LABELS[(i + 1) % COUNT]) for i in range(COUNT)]
    (tmp_path / "queries.tsv").write_text("".join(f"{printable(a)}\t{printable(r)}\n" for a, r in asked), "utf-8")
    made = run_cli("predict", trained, "--queries", tmp_path / "queries.tsv", "--output", tmp_path / "a.tsv")
    assert made.exit_code == 0, made.output
    lines = assert_printable(tmp_path / "a.tsv", "\n\t").splitlines()[1:]
    (tmp_path / "again.tsv").write_text("".join("\t".join(line.split("\t")[:3]) + "\n" for line in lines), "utf-8")
    again = run_cli("predict", trained, "--queries", tmp_path / "again.tsv", "--output", tmp_path / "a.parquet")
    assert again.exit_code == 0, again.output
    assert set(pq.read_table(tmp_path / "a.parquet").column("anchor").to_pylist()) == set(LABELS)


@pytest.mark.parametrize("label", LABELS[-14:])
def test_an_unknown_label_is_named_in_one_line(trained: Path, label: str) -> None:
    for option in ("--anchor", "--relation"):
        others = {"--anchor": typed(LABELS[0]), "--relation": typed(LABELS[0]), option: label + "?"}
        refused = run_cli("predict", trained, *(part for pair in others.items() for part in pair))
        assert refused.exit_code == 2
        assert len(refused.stderr.splitlines()) == 1


def test_two_graphs_tokens_and_an_export_are_made(store: Path, trained: Path, tmp_path: Path) -> None:
    split = ("inductive-split", store, "--to", tmp_path / "two", "--kind", "entities", "--seed", "1")
    run_cli(*split)
    values = "".join(
        f"{label}\tage{label}\t{i}\n" for i, label in enumerate(LABELS) if "\n" not in label and "\t" not in label
    )
    (tmp_path / "numbers.tsv").write_bytes(values.replace("\r", "").encode())
    for extra in ([], ["--json"]):
        run_cli("tokens", store, "--numeric", tmp_path / "numbers.tsv", *extra)
    assert run_cli("export", trained, "--to", tmp_path / "\u202eexport\x1b[2J").exit_code == 0


@pytest.mark.parametrize("label", ["\x1b[2J", "\u202eevil", "\x9bm", "a\nb"])
def test_paths_and_options_are_escaped_in_errors(label: str, tmp_path: Path) -> None:
    for arguments in (
        ("prepare", tmp_path / label, "--store", tmp_path / "s"),
        ("generate", "--store", label + "://x", "--entities", "9", "--relations", "1", "--triples", "9", "--seed", "1"),
        ("plan", "preset:demo", "--set", f"data.store={tmp_path / label}"),
        ("config", label),
        ("config", "preset:demo", "--set", f"{label}.x=1"),
        ("config", "preset:demo", "--set", f"model.dim={label}"),
        ("evaluate", tmp_path / label),
        ("report", tmp_path / label),
        (label,),
        ("config", f"--{label}"),
        (f"--{label}",),
        ("evaluate", "x", "--split", label),
        ("predict", tmp_path, "--anchor", label, "--relation", label),
    ):
        assert run_cli(*arguments).exit_code != 0


def test_warnings_of_libraries_are_escaped() -> None:
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "%s at s3://k:s@b", ("\x1b[2J\u202e",), None)
    assert PrintableFormatter().format(record) == "\\x1b[2J\\u202e at s3://b"


def test_progress_shows_names_of_files_as_they_are() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with show_stages(console) as progress:
        progress("reading [red]\x1b]0;x\x07[/red]", 3)
    assert isinstance(console.file, io.StringIO)
    assert "]0;x" not in console.file.getvalue().replace("\\x1b]0;x", "")


def test_rejected_lines_are_written_and_named_escaped(tmp_path: Path) -> None:
    bad = "one column \x1b[2J\u202e\x07\x85\n" + "a\tb\tc\td\u2066\x00\n"
    (tmp_path / "graph.tsv").write_bytes(("a\tr\tb\nb\tr\ta\n" * 20 + bad).encode())
    refused = run_cli("prepare", tmp_path / "graph.tsv", "--store", tmp_path / "s")
    assert refused.exit_code == 2
    run_cli("prepare", tmp_path / "graph.tsv", "--store", tmp_path / "s", "--on-error", "skip")
    assert "\\x1b[2J" in assert_printable(tmp_path / "s" / "rejects.tsv", "\n\t")
    assert_printable(tmp_path / "s" / "manifest.json")


def test_a_configuration_is_printed_escaped(tmp_path: Path) -> None:
    shown = run_cli("config", "preset:demo", "--set", 'model.options={norm: "\u202eé"}')
    assert shown.exit_code == 0
    assert "\\u202E" in shown.stdout
