import io
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from distkg.inference.predict import Prediction
from distkg.planning.plan import GraphSize, Plan
from distkg.reporting.tables import (
    counts_table,
    graphs_table,
    metrics_table,
    plan_summary,
    plan_table,
    predictions_table,
    relations_table,
    text_table,
)

PLAN = Plan(
    workers=2,
    rows_per_worker=7271,
    memory={"entity table": 3 << 20, "base process": 700 << 20},
    gpu_memory={},
    available=2 << 30,
    gpu_available=None,
    steps=1200,
    seconds={"compute": 62.0, "exchange": 8.5, "overhead": 0.0},
    parameters=3_800_000,
)


def shown(table: Table) -> list[list[str]]:
    console = Console(width=160, file=io.StringIO(), color_system=None)
    console.print(table)
    output = console.file
    assert isinstance(output, io.StringIO)
    return [line.split() for line in output.getvalue().splitlines() if line.strip() and "─" not in line]


def test_metrics_are_shown_with_four_digits() -> None:
    metrics = {"mrr": 0.3613, "hits@1": 0.25, "hits@3": 0.4, "hits@10": 0.5532, "mean_rank": 1171.42}
    rows = shown(metrics_table({"test": {**metrics, "mrr_optimistic": 0.4, "mrr_pessimistic": 0.3, "queries": 40932}}))
    assert rows[2] == ["test", "0.3613", "0.2500", "0.4000", "0.5532", "1,171.4", "0.4000", "0.3000", "40,932"]


def test_metrics_that_are_missing_leave_a_gap() -> None:
    assert shown(metrics_table({"x": {"mrr": 0.5}}))[2] == ["x", "0.5000"]


def test_a_plan_lists_the_largest_use_first() -> None:
    rows = shown(plan_table(replace(PLAN, memory={**PLAN.memory, "vectors for actors": 0})))
    assert rows[0] == ["Memory", "per", "worker", "(2", "×", "7,271", "entity", "rows)"]
    assert rows[2:] == [
        ["base", "process", "700.0", "MiB"],
        ["entity", "table", "3.0", "MiB"],
        ["total", "703.0", "MiB"],
        ["available", "2.0", "GiB"],
    ]


def test_a_plan_for_a_gpu_lists_both_memories() -> None:
    rows = shown(plan_table(replace(PLAN, gpu_memory={"entity table": 8 << 30}, gpu_available=None)))
    assert rows[-3:] == [
        ["GPU:", "entity", "table", "8.0", "GiB"],
        ["GPU:", "total", "8.0", "GiB"],
        ["GPU:", "available", "not", "known"],
    ]


def test_a_plan_in_one_line() -> None:
    expected = (
        "3.8 M parameters, 1,200 steps per epoch, about 1 min 10 s per epoch (compute 1 min 02 s, exchange 8.5 s)"
    )
    assert plan_summary(PLAN) == expected
    limited = replace(PLAN, epochs=100, time_limit=600.0)
    end = ", 1 h 57 min for 100 epochs; stopped after 10 min 00 s (train.time_limit_seconds)"
    assert plan_summary(limited) == expected + end
    untimed = replace(limited, seconds=None)
    assert plan_summary(untimed) == (
        "3.8 M parameters, 1,200 steps per epoch; stopped after 10 min 00 s (train.time_limit_seconds)"
    )


def test_a_plan_says_how_many_parameters_learn() -> None:
    found = plan_summary(replace(PLAN, parameters=231_577, kept=168_705, seconds=None))
    assert found == "232 k parameters (62.9 k of them learn), 1,200 steps per epoch"


def test_a_plan_of_a_foundation_model_lists_its_graphs() -> None:
    graphs = (GraphSize("stores/umls", 135, 46, 5216, 3 << 20), GraphSize("stores/fb", 14541, 237, 15648, 5 << 20))
    assert shown(graphs_table(graphs))[2:] == [
        ["stores/umls", "135", "46", "5,216", "25.0%", "3.0", "MiB"],
        ["stores/fb", "14,541", "237", "15,648", "75.0%", "5.0", "MiB"],
    ]
    generated = GraphSize("generated", 500, 30, 4000, 1 << 20, generated_share=0.2)
    assert [row[4] for row in shown(graphs_table((*graphs, generated)))[2:]] == ["20.0%", "60.0%", "20.0%"]
    rows = shown(plan_table(replace(PLAN, rows_per_worker=0, graphs=graphs)))
    assert rows[0] == ["Memory", "per", "worker", "(2)"]


def test_a_plan_of_a_model_that_reads_tokens_says_which_graphs_have_them() -> None:
    graphs = (GraphSize("a", 9, 2, 50, 1 << 20, ("text", "numeric")), GraphSize("b", 9, 2, 50, 1 << 20))
    reads = ("text", "numeric")
    assert [row[7:] for row in shown(graphs_table(graphs, reads))[2:]] == [["text,", "numeric"], ["none"]]
    found = replace(PLAN, graphs=graphs, reads=reads)
    assert "\n" not in plan_summary(found)
    assert plan_summary(replace(found, warnings=("one", "two"))).splitlines()[1:] == ["warning: one", "warning: two"]


def test_predictions_point_at_the_answer_that_was_held_out() -> None:
    answers = [Prediction(1, 7, "Rome", 2.5, False), Prediction(2, 8, "Oslo", 1.25, True)]
    rows = shown(predictions_table(answers, "(x, born_in, ?)", right=7))
    assert rows[2] == ["1", "Rome", "←", "the", "fact", "held", "out", "2.5000"]
    assert rows[3] == ["2", "Oslo", "(known)", "1.2500"]


def test_labels_are_shown_as_they_are() -> None:
    assert shown(text_table(["label"], [["[bold]x[/bold]"]]))[1] == ["[bold]x[/bold]"]
    assert shown(metrics_table({"[red]rel[/]": {"mrr": 0.5}}))[2] == ["[red]rel[/]", "0.5000"]
    assert shown(predictions_table([Prediction(1, 0, "[/]", 0.0, None)], "([i]a[/i], r, ?)"))[0] == [
        "([i]a[/i],",
        "r,",
        "?)",
    ]


def test_metrics_fit_a_terminal_of_eighty_columns() -> None:
    metrics = dict.fromkeys(("mrr", "hits@1", "hits@3", "hits@10", "mrr_optimistic", "mrr_pessimistic"), 0.25)
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(metrics_table({"valid": {**metrics, "mean_rank": 12345.6, "queries": 123456}}))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("0.2500") == 6
    assert "123,456" in console.file.getvalue()
    assert "…" not in console.file.getvalue()


def test_counts_have_separators() -> None:
    assert shown(counts_table([("entities", 14541)]))[1] == ["entities", "14,541"]


def test_the_twenty_relations_with_most_queries_are_shown() -> None:
    rows = [{"relation": f"r{i}", "mrr": 0.5, "queries": i} for i in range(1, 23)]
    table = relations_table(rows)
    names = [line[0] for line in shown(table) if line[0].startswith("r")]
    assert names == [f"r{i}" for i in range(22, 2, -1)]
    assert str(table.title) == "By relation: the 20 of 22 with most queries; --json prints all"
    few = relations_table(rows[:20])
    assert (str(few.title), few.row_count) == ("By relation", 20)
