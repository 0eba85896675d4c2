"""Tables for the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distkg.printable import printable
from distkg.reporting.quantities import compact, duration, score, size

if TYPE_CHECKING:
    from distkg.inference.predict import Prediction
    from distkg.negatives.source_report import Examination
    from distkg.planning.plan import GraphSize, Plan

HITS = ("hits@1", "hits@3", "hits@10")
METRIC_COLUMNS = ("MRR", "Hits@1", "Hits@3", "Hits@10", "mean\nrank", "MRR\noptim.", "MRR\npessim.", "queries")
LOG_WIDTH = 160
MOST_RELATIONS = 20


def make_console() -> Console:
    """Return a console for standard output; if it is no terminal, lines are wide, because a table folded at 80
    columns is unreadable in a log."""
    return Console(width=None if sys.stdout is not None and sys.stdout.isatty() else LOG_WIDTH)


def metrics_table(metrics: Mapping[str, Mapping[str, Any]], title: str = "") -> Table:
    """Return a table with one row for each named set of metrics, such as a split or a side."""
    table = _table(title)
    table.add_column("", overflow="fold")
    for name in METRIC_COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for name, values in metrics.items():
        table.add_row(_text(name), *_cells(values))
    return table


def relations_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the relations with most queries; the title says how many relations there are and how to
    print all."""
    most = sorted(rows, key=lambda row: -row["queries"])[:MOST_RELATIONS]
    cut = f": the {len(most)} of {len(rows):,} with most queries; --json prints all" if len(most) < len(rows) else ""
    return metrics_table({row["relation"]: row for row in most}, f"By relation{cut}")


def plan_table(plan: Plan) -> Table:
    """Return a table of a worker's memory by use, largest first, with the total and the available memory; uses that
    take nothing are left out."""
    held = f" × {plan.rows_per_worker:,} entity rows" if plan.rows_per_worker else ""
    table = _table(f"Memory per worker ({plan.workers}{held})")
    table.add_column("use")
    table.add_column("bytes", justify="right")
    _add_uses(table, "", plan.memory, plan.available)
    if plan.gpu_memory:
        _add_uses(table, "GPU: ", plan.gpu_memory, plan.gpu_available)
    if plan.actor_memory:
        table.title = f"{table.title}, and per actor ({plan.actors})"
        _add_uses(table, "actor: ", plan.actor_memory)
    if plan.disk:
        _add_uses(table, "disk: ", plan.disk, plan.disk_available)
    return table


def graphs_table(graphs: Sequence[GraphSize], reads: Sequence[str] = ()) -> Table:
    """Return a table of a foundation model's training graphs with their share of the steps and their memory on a
    node; for a model that reads tokens also the modalities of each."""
    table, steps = _table("Graphs, once on each node"), _shares_of_steps(graphs)
    table.add_column("store", overflow="fold")
    for name in ("entities", "relations", "facts", "of steps", "bytes"):
        table.add_column(name, justify="right")
    if reads:
        table.add_column("tokens")
    for graph, share in zip(graphs, steps, strict=True):
        counts = (f"{count:,}" for count in (graph.entities, graph.relations, graph.facts))
        tokens = [", ".join(graph.tokens) or "none"] if reads else []
        table.add_row(_text(graph.address), *counts, f"{share:.1%}", size(graph.bytes), *map(_text, tokens))
    return table


def _shares_of_steps(graphs: Sequence[GraphSize]) -> list[float]:
    """Return the share of the steps that learn from each graph: stores by their facts, in what generated ones leave."""
    stored = 1 - sum(graph.generated_share or 0.0 for graph in graphs)
    facts = sum(graph.facts for graph in graphs if graph.generated_share is None)
    return [
        stored * graph.facts / max(facts, 1) if graph.generated_share is None else graph.generated_share
        for graph in graphs
    ]


def plan_summary(plan: Plan) -> str:
    """Return a line with parameters, steps, estimated time and time limit, and a line for each warning."""
    learning = f" ({compact(plan.parameters - plan.kept)} of them learn)" if plan.kept else ""
    text = f"{compact(plan.parameters)} parameters{learning}, {plan.steps:,} steps per epoch{_times(plan)}"
    if plan.time_limit is not None:
        text += f"; stopped after {duration(plan.time_limit)} (train.time_limit_seconds)"
    return "\n".join([text, *(f"warning: {warning}" for warning in (*plan.warnings, *plan.notes))])


def _times(plan: Plan) -> str:
    if plan.seconds is None or plan.seconds_per_epoch is None:
        return ""
    uses = ", ".join(f"{use} {duration(value)}" for use, value in plan.seconds.items() if value >= 0.001)
    text = f", about {duration(plan.seconds_per_epoch)} per epoch ({uses})"
    if plan.epochs is None:
        return text
    epochs = "1 epoch" if plan.epochs == 1 else f"{plan.epochs:,} epochs"
    return f"{text}, {duration(plan.epochs * plan.seconds_per_epoch)} for {epochs}"


def counts_table(rows: Iterable[tuple[str, int]], title: str = "") -> Table:
    """Return a table of names and counts."""
    table = _table(title)
    table.add_column("")
    table.add_column("count", justify="right")
    for name, count in rows:
        table.add_row(_text(name), f"{count:,}")
    return table


def predictions_table(predictions: Sequence[Prediction], title: str = "", right: int | None = None) -> Table:
    """Return a table of answers, best first; ``right`` is the entity id of the answer to mark."""
    header = ["rank", "answer", "score"]
    rows = []
    for answer in predictions:
        note = "  ← the fact held out" if answer.entity == right else "  (known)" if answer.known else ""
        rows.append([str(answer.rank), answer.label + note, f"{answer.score:.4f}"])
    return text_table(header, rows, title)


def examples_table(found: Examination) -> Table:
    """Return a table of queries with their answers and negatives."""
    header = [f"{found.source}: query", "answer", "negatives"]
    rows = [(f"{e.anchor}  {e.relation}", e.answer, "  ".join(e.negatives) or "none") for e in found.examples]
    return text_table(header, rows)


def examination_table(found: Examination) -> Table:
    """Return a table of the statistics of a negative source on a sample of queries."""
    small = ", ".join(f"{share:.1%} with {size} or fewer" for size, share in found.small_pools.items())
    rows = [
        ("pool: entities to draw from", f"mean {found.mean_pool:,.1f}, median {found.median_pool:,.0f}; {small}"),
        ("masked negatives", f"{found.left_out:.2%} (empty pools, sides with fewer negatives)"),
        ("known in training", f"{found.known:.2%} of the other negatives; negatives.filter removes them"),
        ("facts of valid and test", f"{found.false:.3%} of the other negatives: false negatives"),
        ("time", f"{found.nanoseconds:.1f} ns per negative, {found.cost:.1f} × uniform draws for each query"),
    ]
    title = f"{found.queries:,} training queries, {found.negatives} negatives each"
    return text_table(["", ""], rows, title)


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> Table:
    """Return a table of plain text; labels are shown unchanged, without markup."""
    table = _table(title)
    for name in header:
        table.add_column(_text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _add_uses(table: Table, where: str, uses: Mapping[str, int], *available: int | None) -> None:
    for use, count in sorted(uses.items(), key=lambda item: -item[1]):
        if count:
            table.add_row(where + use, size(count))
    table.add_section()
    table.add_row(f"{where}total", size(sum(uses.values())), style="bold")
    for limit in available:
        table.add_row(f"{where}available", "not known" if limit is None else size(limit))
    table.add_section()


def _text(text: str) -> Text:
    """Return a label, a path or a title for a terminal: without markup and without unprintable characters."""
    return Text(printable(text))


def _table(title: str) -> Table:
    # A title may be wider than its table and must stay on one line.
    heading = Text(printable(title), style="bold", no_wrap=True, overflow="ignore") if title else None
    return Table(title=heading, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1), collapse_padding=True)


def _cells(values: Mapping[str, Any]) -> list[str]:
    shares = [score(values[key]) if key in values else "" for key in ("mrr", *HITS)]
    ties = [score(values[key]) if key in values else "" for key in ("mrr_optimistic", "mrr_pessimistic")]
    mean_rank = f"{values['mean_rank']:,.1f}" if "mean_rank" in values else ""
    queries = f"{int(values['queries']):,}" if "queries" in values else ""
    return [*shares, mean_rank, *ties, queries]
