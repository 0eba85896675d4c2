"""Page of a result of the arena: models in order, paired gains, every graph, half-links and both rules for ties."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distkg.evaluation.metrics import HALF_LINKS
from distkg.reporting import html
from distkg.reporting.html import Cell, Content
from distkg.reporting.page import page, write_page

GROUPS = ("clean", "clean, new entities", "clean, new relations too", "leaked", "all")


def write_arena_page(result: Path) -> Path:
    """Write the page of a result file beside it and return its path."""
    return write_page(result.with_suffix(".html"), render(json.loads(result.read_text(encoding="utf-8"))))


def render(content: Mapping[str, Any]) -> str:
    """Return the page of a result file's content."""
    settings = content["settings"]
    models, graphs = list(settings["means over graphs"]), list(settings["graphs"])
    subject = [f"{len(models)} models", f"{len(graphs)} inductive graphs", str(content["date"])[:10]]
    cards = (_order(settings), _gains(settings), _by_graph(content), _half_links(settings), _ties(settings))
    body = html.grid(cards) + html.folded("Command", f"<p>{html.escape(content['command'])}</p>")
    return page("Arena", "Foundation models on graphs that they have not seen", subject, (), body)


def _order(settings: Mapping[str, Any]) -> str:
    means = settings["means over graphs"]
    rows: list[list[Content]] = []
    for number, (model, groups) in enumerate(means.items(), start=1):
        cells: list[Content] = [_mean(groups.get(group)) for group in GROUPS]
        learned = ", ".join(settings["models"][model]["learned from"]) or "not stated"
        rows.append([number, Cell(model), settings["models"][model]["model"], learned, *cells])
    note = (
        "Mean MRR over graphs, realistic ranks among all entities, filtered; in parentheses the number of graphs. A "
        "graph is leaked for a model that learned from its family. Models in the order of their clean graphs."
    )
    header = ["", "Model", "Kind", "Learned from", *(group[:1].upper() + group[1:] for group in GROUPS)]
    return html.card("Order", html.table(header, rows, sortable=True, classes="dense"), note, wide=True)


def _mean(group: Mapping[str, float] | None) -> Content:
    return html.GAP if group is None else Cell(f"{group['MRR']:.4f} ({group['graphs']:.0f})", value=group["MRR"])


def _gains(settings: Mapping[str, Any]) -> str:
    rows: list[list[Content]] = [
        [
            f"{gain['model']} over {gain['over']}",
            f"{gain['graphs']} ({gain['number']})",
            Cell(f"{gain['mean']:+.4f}", value=gain["mean"]),
            _interval(gain, "graphs"),
            _interval(gain, "triples"),
        ]
        for gain in settings["gains over the first model"]
    ]
    note = (
        "Difference of mean MRR on the same test triples, with 95 % bootstrap intervals: graphs drawn again, which "
        "asks what another set of graphs would show, and the triples of each graph drawn again."
    )
    header = ["Models", "Graphs", "Gain", "Over graphs", "Over triples"]
    return html.card("Paired gains", html.table(header, rows), note, wide=True)


def _interval(gain: Mapping[str, float], over: str) -> str:
    return f"[{gain[f'low over {over}']:+.4f}, {gain[f'high over {over}']:+.4f}]"


def _by_graph(content: Mapping[str, Any]) -> str:
    settings, figures = content["settings"], content["figures"]
    models, rows = list(settings["means over graphs"]), []
    for name, graph in settings["graphs"].items():
        values = {model: float(figures[f"{model}, {name}"]["MRR"]["median"]) for model in models}
        cells: list[Content] = [
            Cell(_marked(settings, model, name, value), value=value, best=value == max(values.values()))
            for model, value in values.items()
        ]
        kind = "new relations" if graph["new relations"] else "new entities"
        rows.append([name, graph["family"], kind, graph["entities"], graph["test triples ranked"], *cells])
    header = ["Graph", "Family", "", "Entities", "Test triples", *models]
    table = html.table(header, rows, sortable=True, classes="dense")
    return html.card("MRR by graph", table, "Realistic ranks. *: leaked for this model.", wide=True)


def _marked(settings: Mapping[str, Any], model: str, graph: str, value: float) -> str:
    return f"{value:.4f}{'*' if graph in settings['models'][model]['groups'].get('leaked', ()) else ''}"


def _half_links(settings: Mapping[str, Any]) -> str:
    rows: list[list[Content]] = []
    for model in settings["means over graphs"]:
        graphs = settings["half-links"][model].values()
        rows.append([model, *(_stratum([graph[name] for graph in graphs if name in graph]) for name in HALF_LINKS)])
    note = (
        "Mean MRR over graphs, by what their facts show: the anchor with the relation (query seen), the answer with it "
        "(answer seen), both, or neither. In parentheses the mean share of the queries."
    )
    return html.card("Half-links", html.table(["Model", *HALF_LINKS], rows), note, wide=True)


def _stratum(graphs: list[Mapping[str, float]]) -> Content:
    if not graphs:
        return html.GAP
    mrr, share = (float(np.mean([graph[name] for graph in graphs])) for name in ("MRR", "share"))
    return Cell(f"{mrr:.4f} ({share:.0%})", value=mrr)


def _ties(settings: Mapping[str, Any]) -> str:
    columns = ("MRR", "MRR, ties lost", "Hits@10", "Hits@10, ties lost")
    rows: list[list[Content]] = [
        [model, *(groups["all"][column] for column in columns)]
        for model, groups in settings["means over graphs"].items()
    ]
    note = "Means over all graphs. Realistic ranks lose half of the ties; published figures lose all."
    return html.card("Both rules for ties", html.table(["Model", *columns], rows), note, wide=True)
