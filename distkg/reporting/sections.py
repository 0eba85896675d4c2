"""Sections of a run's page: each returns HTML from a run's record, or an empty string if the run lacks the numbers."""

from __future__ import annotations

from typing import Any

from distkg.config import family_of
from distkg.redaction import redact_address
from distkg.reporting import html
from distkg.reporting.curves import EPOCH, LOSS, VALID_MRR, by_epoch, by_wall_time
from distkg.reporting.quantities import compact, decimal_size, duration, score
from distkg.reporting.run_record import RunRecord, as_text, metrics_by_split, number, reach, section
from distkg.reporting.svg import Axis, Series, column_chart, line_chart, scatter

HITS = ("hits@1", "hits@3", "hits@10")
PARTS = ("data", "exchange", "compute", "optimizer")
BANDS = ("hardest", "hard", "easy", "easiest")
KMAS_SHARES = {"hard_share": "hard", "rejected": "rejected", "hard_among_top": "among the ten"}
FILLED_IN = ("late", "old", "broken", "refused")
FAILURES = {"failed": "failed in an actor", "lost": "lost with an actor"}
SHOWN_WORKERS, SHOWN_GRAPHS = 64, 4


def subject(run: RunRecord) -> list[str]:
    """Return the model, objective and graphs that the configuration names."""
    model, data = section(run.config, "model"), section(run.config, "data")
    dim = f"{model['dim']} dimensions" if "dim" in model and family_of(str(model.get("name"))) == "embedding" else None
    graphs = graphs_named(data.get("store"), data.get("graphs"))
    parts = (model.get("name"), dim, section(run.config, "objective").get("name"), graphs)
    return [str(part) for part in parts if part]


def graphs_named(store: Any, graphs: Any) -> str:
    """Return a short name of the graphs of a configuration.

    >>> graphs_named("stores/umls", []), graphs_named("", ["stores/umls", "/data/family/"])
    ('stores/umls', 'umls, family')
    >>> graphs_named("", ["a", "b", "c", "d", "e"])
    '5 graphs'
    """
    if not isinstance(graphs, list) or not graphs:
        return redact_address(str(store or ""))
    names = [redact_address(str(address)).rstrip("/").rsplit("/", 1)[-1] for address in graphs]
    return ", ".join(names) if len(names) <= SHOWN_GRAPHS else f"{len(names)} graphs"


def damage(run: RunRecord) -> list[str]:
    """Return a warning if lines of metrics.jsonl are damaged."""
    if not run.damaged_lines:
        return []
    return [f"{run.damaged_lines} line(s) of metrics.jsonl could not be read and are left out."]


def headline(run: RunRecord) -> str:
    """Return tiles of the test metrics, or of the latest validation if the run has not finished."""
    metrics, split = _best_metrics(run)
    if not metrics:
        return ""
    values = {key: value for key in ("mrr", *HITS) if (value := number(metrics.get(key))) is not None}
    items = [("MRR", score(values["mrr"]), f"{split}, filtered")] if "mrr" in values else []
    items += [(key.capitalize(), score(values[key]), split) for key in HITS if key in values]
    rate = reach(run.result, "train.triples_per_second")
    seconds = reach(run.result, "train.seconds")
    if rate is not None:
        items.append(("Triples / s", compact(rate), f"{_workers(run)} workers"))
    if seconds is not None:
        items.append(("Training time", duration(seconds), f"{compact(reach(run.result, 'train.epochs') or 0)} epochs"))
    return f'<div class="tiles">{html.tiles(items)}</div>'


def metrics_table(run: RunRecord) -> str:
    """Return the card of all metrics of every split, with optimistic, pessimistic and realistic ranks."""
    splits = metrics_by_split(run.result)
    keys = ("mrr", *HITS, "mrr_optimistic", "mrr_pessimistic", "mean_rank", "queries")
    names = (
        "MRR",
        "Hits@1",
        "Hits@3",
        "Hits@10",
        "MRR optimistic",
        "MRR pessimistic",
        "Mean rank",
        "Queries",
    )
    rows = [[split, *(_value(values.get(key)) for key in keys)] for split, values in sorted(splits.items())]
    note = "Filtered ranks among all entities; ties count half unless a column says otherwise."
    return html.card("Metrics", html.table(["Split", *names], rows), note, wide=True)


def curves(run: RunRecord) -> str:
    """Return charts of loss and validation MRR, by epoch and by wall time."""
    return "".join(
        part([(quantity.axis.label, run)], quantity)
        for quantity in (LOSS, VALID_MRR)
        for part in (by_epoch, by_wall_time)
    )


def hits_curve(run: RunRecord) -> str:
    """Return the chart of validation Hits@k by epoch."""
    series = [Series(k.capitalize(), run.column(f"valid.{k}", "epoch")) for k in HITS]
    return html.card("Validation Hits@k", line_chart(series, EPOCH, Axis("share of queries", zero=True)))


def learning_rate(run: RunRecord) -> str:
    """Return the chart of the learning rate, if it changed."""
    points = run.column("learning_rate", "epoch")
    if len({rate for _, rate in points}) < 2:
        return ""
    return html.card("Learning rate", line_chart([Series("rate", points)], EPOCH, Axis("learning rate", zero=True)))


def throughput(run: RunRecord) -> str:
    """Return charts of triples per second and of the time of each part of a step."""
    rate = line_chart(
        [Series("rate", run.column("triples_per_second", "epoch"))], EPOCH, Axis("triples / s", zero=True)
    )
    columns, totals = _time_columns(run), _time_totals(run)
    whole = sum(totals.values()) or 1.0
    shares = [(part, spent / whole, f"{spent / whole:.0%}  ({duration(spent)})") for part, spent in totals.items()]
    split = column_chart(PARTS, columns, "epoch", Axis("seconds per report", zero=True)) if columns else ""
    moved = reach(run.result, "train.bytes_exchanged_per_step")
    note = "" if moved is None else f"{decimal_size(moved)} exchanged per step and worker."
    spent = split + html.bars(shares, 1.0, coloured=True)
    return html.card("Throughput", rate, note) + html.card("Where the time goes", spent)


def negatives(run: RunRecord) -> str:
    """Return charts of the hardness of negatives, and of the delivery of negatives that actors drew ahead of time."""
    scores = {"negatives": "negatives.score", "uniform": "negatives.uniform_score"}
    scores |= {f"{band} band": f"negatives.band_scores.{band}" for band in BANDS}
    hardness = [Series(name, run.column(key, "epoch")) for name, key in scores.items()]
    removed = _total(run, "negatives.false_negatives_removed")
    note = "Mean score of the latest negatives and of uniform ones; the gap is their hardness."
    if run.column("negatives.false_negatives_removed", "epoch"):
        note += f" {removed:,} negatives that are known facts were removed."
    share = [Series("delivered", run.column("negatives.delivered", "epoch"))]
    ages = {"median": "negatives.age_median", "oldest": "negatives.age_max"}
    age = [Series(name, run.column(key, "epoch")) for name, key in ages.items()]
    filled_in = ", ".join(f"{_total(run, f'negatives.{way}'):,} {way}" for way in FILLED_IN)
    counts = {word: _total(run, f"negatives.{way}") for way, word in FAILURES.items()}
    filled_in += "".join(f", {count:,} {word}" for word, count in counts.items() if count)
    restarts = max((count for _, count in run.column("negatives.restarts", "epoch")), default=0)
    hung = max((count for _, count in run.column("negatives.hung", "epoch")), default=0)
    delivery_note = (
        f"Queries whose negatives were drawn in the step instead: {filled_in}. Actors restarted: {restarts:.0f}"
    )
    delivery_note += f", of these killed because they did not answer: {hung:.0f}." if hung else "."
    warned = "".join(f"<p>{html.escape(text)}</p>" for text in _pool_warnings(run))
    shares = [Series(name, run.column(f"negatives.{key}", "epoch")) for key, name in KMAS_SHARES.items()]
    of_kmas = (
        "Hard: share of hard negatives among all. Rejected: share of hard negatives that were known answers and drawn "
        "again. Among the ten: share of hard negatives among the ten with the largest weight of each query; if it is "
        "above the share of hard ones, they are hard."
    )
    return (
        html.card("Warnings of the negative pool", warned, wide=True)
        + html.card("Mean score of negatives", line_chart(hardness, EPOCH, Axis("score")), note)
        + html.card("Hard negatives by relations", line_chart(shares, EPOCH, Axis("share", zero=True)), of_kmas)
        + html.card("Delivered by actors", line_chart(share, EPOCH, Axis("share of queries", zero=True)), delivery_note)
        + html.card("Age of what was delivered", line_chart(age, EPOCH, Axis("steps", zero=True)))
    )


def _pool_warnings(run: RunRecord) -> list[str]:
    """Return the distinct warnings of metrics.jsonl about actors that draw negatives."""
    warnings = [line["negatives"].get("warnings") for line in run.lines if isinstance(line.get("negatives"), dict)]
    return list(dict.fromkeys(str(text) for texts in warnings if isinstance(texts, list) for text in texts))


def _total(run: RunRecord, key: str) -> int:
    return int(sum(value for _, value in run.column(key, "epoch")))


def by_graph(run: RunRecord) -> str:
    """Return a sortable table with one row per training graph of a foundation model."""
    sizes_in_result = section(run.result, "graph")
    sizes = {row["graph"]: row for row in _rows(sizes_in_result.get("graphs"), "graph")}
    metrics = {row["graph"]: row for row in _rows(run.result.get("by_graph"), "graph")}
    counted, keys = ("entities", "relations", "facts"), ("queries", "mrr", *HITS)
    rows = [
        [name, *(_value(sizes.get(name, {}).get(key)) for key in counted)]
        + [_value(metrics.get(name, {}).get(key)) for key in keys]
        for name in {**sizes, **metrics}
    ]
    header = ["Graph", "Entities", "Relations", "Facts", "Queries", "MRR", *(key.capitalize() for key in HITS)]
    whole = counts(sizes_in_result) if sizes_in_result else ""
    note = f"Ranks on the test split, of which the metrics above are means over graphs. {whole}"
    return html.card("By graph", html.table(header, rows, sortable=True), note, wide=True)


def _rows(rows: Any, key: str) -> list[dict[str, Any]]:
    """Return the dicts of a list that have a key, which names the row."""
    named = [row for row in rows if isinstance(row, dict) and key in row] if isinstance(rows, list) else []
    return [{**row, key: str(row[key])} for row in named]


def by_relation(run: RunRecord) -> str:
    """Return a sortable table with one row per relation, most frequent first."""
    rows = _rows(run.result.get("by_relation"), "relation")
    rows.sort(key=lambda row: -(number(row.get("queries")) or 0))
    numbers = {"queries": "Queries", "mrr": "MRR", "mrr_tail": "tails", "mrr_head": "heads", "hits@10": "Hits@10"}
    columns = {key: name for key, name in numbers.items() if any(key in row for row in rows)}
    cells = [
        [row["relation"], str(row.get("category") or ""), *(_value(row.get(key)) for key in columns)] for row in rows
    ]
    note = f"{len(rows)} rows, most frequent first. Click a heading to sort."
    return html.card(
        "By relation", html.table(["Relation", "Category", *columns.values()], cells, sortable=True), note, wide=True
    )


def by_group(run: RunRecord) -> str:
    """Return bars of MRR by relation category, by side, and by half links seen in training."""
    keys = ("by_category", "by_side", "by_half_link")
    parts = [html.bars(_group_bars(run.result.get(key)), 1.0) for key in keys]
    note = (
        "Category: one or many heads per tail, one or many tails per head. Side: the end that is predicted. Seen: the "
        "query's entity, or the answer, has a training fact of the relation on that side."
    )
    return html.card("MRR by category, side and what was seen", "".join(parts), note)


def graph(run: RunRecord) -> str:
    """Return the size of the graph, its degrees, and the balance of partitions and shards."""
    description = section(run.result, "graph")
    if not description:
        return ""
    pairs = [pair for pair in _list(description.get("degree_histogram")) if isinstance(pair, list) and len(pair) == 2]
    numbers = [(number(degree), number(entities)) for degree, entities in pairs]
    histogram = [(degree, entities) for degree, entities in numbers if degree is not None and entities is not None]
    degrees = scatter(histogram, Axis("degree", log=True), Axis("entities", log=True))
    return (
        html.card("Degrees", degrees, counts(description))
        + _balance("Partitions", "partition", description.get("partitions"))
        + _balance("Rows per worker", "worker", description.get("shards"))
    )


def counts(found: dict[str, Any]) -> str:
    """Return the size of a graph in result.json as a sentence."""
    triples = ", ".join(f"{_whole(count)} {split}" for split, count in section(found, "triples").items())
    entities, relations = _whole(found.get("entities", 0)), _whole(found.get("relations", 0))
    return f"{entities} entities, {relations} relations; triples: {triples}."


def memory(run: RunRecord) -> str:
    """Return the peak resident memory over the run, and by worker."""
    points = [(x, y / 1000) for x, y in run.column("peak_rss_mb", "epoch")]
    line = line_chart([Series("peak", points)], EPOCH, Axis("peak memory (GB)", zero=True))
    values = run.peak_memory()
    each = isinstance(section(run.result, "train").get("peak_rss_mb_per_worker"), list)
    names = [f"worker {i}" for i in range(len(values))] if each else ["largest worker"]
    rows = [(name, value, decimal_size(value)) for name, value in zip(names, values, strict=False)]
    return html.card("Memory per worker", line + html.bars(rows[:SHOWN_WORKERS]))


def accepted_changes(run: RunRecord) -> str:
    """Return a table of the settings that were changed while the run was interrupted, with the step from which they
    apply."""
    changes = run.result.get("accepted_changes")
    if not isinstance(changes, list) or not changes:
        return ""
    keys = ("step", "epoch", "key", "before", "after")
    rows = [[as_text(change.get(key)) for key in keys] for change in changes if isinstance(change, dict)]
    note = "The run continued with these settings on request (--accept-changes); earlier steps used the values before."
    table = html.table(["Step", "Epoch", "Key", "Before", "From then on"], rows, classes="mono")
    return html.card("Accepted changes", table, note, wide=True)


def grown_from(run: RunRecord) -> str:
    """Return the checkpoint from which a run on a grown graph started."""
    origin = section(run.result, "grown_from")
    if not origin:
        return ""
    names = {"run": "Run", "checkpoint": "Checkpoint", "sha256": "SHA-256 of its manifest", "rows": "First rows"}
    note = "`distkg extend` grew the graph of that run; this run started with its rows."
    return html.card("Grown from", html.definitions([(names[key], as_text(origin.get(key))) for key in names]), note)


def configuration(run: RunRecord) -> str:
    """Return every key of the run, by section, and the versions of libraries."""
    sections = "".join(html.folded(name, html.definitions(_flat(part))) for name, part in run.config.items())
    versions = [(k, as_text(v)) for k, v in section(run.result, "versions").items()]
    digest = run.result.get("config_sha256")
    note = f"sha256 {digest}" if digest else ""
    return html.card("Configuration", sections, note) + html.card("Versions", html.definitions(versions))


def _best_metrics(run: RunRecord) -> tuple[dict[str, Any], str]:
    metrics = section(run.result, "metrics")
    for split in ("test", "valid"):
        if section(metrics, split):
            return metrics[split], split
    seen = [line["valid"] for line in run.lines if isinstance(line.get("valid"), dict)]
    return (seen[-1], "latest validation") if seen else ({}, "")


def _time_columns(run: RunRecord) -> list[tuple[str, list[float]]]:
    return [
        (f"{number(line['epoch']):.3g}", [reach(line, f"seconds.{part}") or 0.0 for part in PARTS])
        for line in run.lines
        if isinstance(line.get("seconds"), dict) and number(line.get("epoch")) is not None
    ]


def _time_totals(run: RunRecord) -> dict[str, float]:
    spent = {part: sum(reach(line, f"seconds.{part}") or 0.0 for line in run.lines) for part in PARTS}
    return spent if any(spent.values()) else {}


def _group_bars(groups: Any) -> list[tuple[str, float, str]]:
    if not isinstance(groups, dict):
        return []
    rows = []
    for name, values in groups.items():
        mrr, queries = reach(values, "mrr"), reach(values, "queries")
        if mrr is not None:
            rows.append((str(name), mrr, score(mrr) + (f"  ({compact(queries)} queries)" if queries else "")))
    return rows


def _balance(title: str, unit: str, counts: Any) -> str:
    rows = [count for each in _list(counts) if (count := number(each)) is not None]
    if not rows:
        return ""
    mean = sum(rows) / len(rows) or 1.0
    columns = [(str(i), [value]) for i, value in enumerate(rows)]
    chart = column_chart(["rows"], columns, unit, Axis("rows", zero=True), merge="max")
    return html.card(title, chart, f"{len(rows)} in all; the largest holds {max(rows) / mean:.3f} × the mean.")


def _workers(run: RunRecord) -> str:
    return as_text(section(run.result, "train").get("workers"))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _whole(value: Any) -> str:
    """Return a count with thousands separators; another value as text."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else as_text(value)


def _flat(part: Any) -> list[tuple[str, str]]:
    if not isinstance(part, dict):
        return [("value", as_text(part))]
    return [(str(key), as_text(value)) for key, value in part.items()]


def _value(found: Any) -> float | str:
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    value = number(found)
    return "" if value is None else value
