"""Metrics that the dashboard and the alerts of ``deploy/monitoring`` name, and those of a page that Ray exports."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "monitoring"
LIMIT = 120.0  # seconds until a metric that is not exported is missed
METRIC = re.compile(r"\bray_\w+")
SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)\{(?P<labels>.*)\} (?P<value>\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


Samples = dict[str, list[tuple[dict[str, str], float]]]


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text("utf-8"))
    return board


def expressions() -> dict[str, list[str]]:
    """PromQL by the title of its panel, the name of its variable or of its alert."""
    found: dict[str, list[str]] = {}
    for panel in dashboard()["panels"]:
        found.setdefault(panel["title"], []).extend(target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            found[f"${variable['name']}"] = [variable["definition"]]
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"]:
        found |= {rule["alert"]: [rule["expr"]] for rule in group["rules"]}
    return {place: exprs for place, exprs in found.items() if exprs}


def named_metrics() -> set[str]:
    return {name for exprs in expressions().values() for expr in exprs for name in METRIC.findall(expr)}


def samples(page: str) -> Samples:
    """Labels and values by name of metric, of a page in Prometheus' text format."""
    found: Samples = {}
    for line in page.splitlines():
        match = SAMPLE.fullmatch(line)
        if match:
            labels = dict(LABEL.findall(match["labels"]))
            found.setdefault(match["name"], []).append((labels, float(match["value"])))
    return found


class Scraper:
    """Reads a page of metrics again and again, as Prometheus does, and keeps the last samples of a run."""

    def __init__(self, page: str, run: str) -> None:
        self._page, self._run = page, run
        self.seen: Samples = {}

    def scrape(self) -> Samples:
        """Samples of the run now."""
        page = urllib.request.urlopen(self._page, timeout=10).read().decode()
        found = {
            name: [(labels, value) for labels, value in each if labels.get("run") == self._run]
            for name, each in samples(page).items()
        }
        now = {name: each for name, each in found.items() if each}
        self.seen |= now
        return now

    def until(self, enough: Callable[[Samples], bool]) -> None:
        """Scrape until there is enough, at most ``LIMIT`` seconds."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline and not enough(self.scrape()):
            time.sleep(0.25)
