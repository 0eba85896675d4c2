"""Values that the panels of the Grafana dashboard show over a run: Prometheus reads the run and answers their queries.

A run on two workers with near misses from two actors, on a private Ray that exports metrics. Each line of each panel
of deploy/monitoring/grafana-dashboard.json is a row, with a value and its minute for each point in time;
``benchmarks.figures`` draws them. Needs the program ``prometheus``.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError, Figures, begin, finish, graph_settings
from benchmarks.negative_pool import pool_config
from distkg.cluster.launch import launch_training
from distkg.data.store.graph_store import Store

DASHBOARD = Path(__file__).parent.parent / "deploy" / "monitoring" / "grafana-dashboard.json"
POINTS, SCRAPE_SECONDS = 80, 2
READY_SECONDS = 60.0

# What Grafana would put in place of its variables: all runs and trials, and four of Ray's report intervals.
VARIABLES = {"$run": ".*", "$trial": ".*", "$__rate_interval": "40s"}


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard that show values, in its order."""
    return [panel for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"] if panel["type"] != "row"]


def row_of(panel: Mapping[str, Any], line: str = "") -> str:
    """Return the name of the row of a panel's line; two panels share a title."""
    return f"{panel['title']} ({panel['type']}): {line}"


class Prometheus:
    """Running Prometheus, as a client sees it."""

    def __init__(self, address: str) -> None:
        self._address = address

    def wait(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            try:
                self._get("/-/ready")
                return
            except OSError:
                time.sleep(0.1)
        raise BenchmarkError(f"Prometheus does not answer at {self._address}")

    def ask(self, expression: str, start: float, end: float) -> list[dict[str, Any]]:
        """Return the series of a range of time: labels, and (time, value) in order."""
        query = {"query": expression, "start": start, "end": end, "step": max((end - start) / POINTS, 1)}
        answer = json.loads(self._get("/api/v1/query_range?" + urllib.parse.urlencode(query)))
        return list(answer["data"]["result"])

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self._address + path, timeout=10) as reply:
            return bytes(reply.read())


@contextmanager
def prometheus(scraped: int) -> Iterator[Prometheus]:
    """Start Prometheus, which reads the metrics of a port of this machine.

    Raises:
        BenchmarkError: the program is not installed, or does not start.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise BenchmarkError("there is no program prometheus: install it (Debian's package has this name)")
    target = {"job_name": "distkg-private", "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}]}
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "prometheus.json")  # JSON is YAML
        settings.write_text(
            json.dumps({"global": {"scrape_interval": f"{SCRAPE_SECONDS}s"}, "scrape_configs": [target]}), "utf-8"
        )
        address = f"127.0.0.1:{free_port()}"
        options = [f"--config.file={settings}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
        process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            client = Prometheus(f"http://{address}")
            client.wait()
            yield client
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    """Return a port at which nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def legend(pattern: str, labels: Mapping[str, str]) -> str:
    """Return the name of a line: Grafana's ``{{label}}`` filled in, but for the only run."""
    names = {**labels, "run": ""}
    filled = re.sub(r"\{\{(\w+)\}\}", lambda found: names.get(found.group(1), ""), pattern)
    return " ".join(filled.split()) or "run"


def add_panel(figures: Figures, panel: Mapping[str, Any], source: Prometheus, start: float, end: float) -> None:
    """Add the lines of a panel, value by value, each with its minute since ``start``."""
    for target in panel["targets"]:
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        for series in source.ask(expression, start, end):
            line = legend(target["legendFormat"], series["metric"])
            for moment, value in series["values"]:
                figures.add(row_of(panel, line), {"value": float(value), "minute": round((moment - start) / 60, 2)})


def main(arguments: Sequence[str] | None = None) -> Path:
    """One run of ``--seconds``."""
    session = begin(__file__, str(__doc__), arguments, "store", "preset", "seconds", repetitions=1)
    typed = session.options
    config = pool_config(typed.preset, session.store, typed.seconds, "near_miss", "by an actor", quick=session.quick)
    config.train.workers, config.negatives.pool.actors = 2, 2
    config.evaluate.every, config.checkpoint.every = 2, 2
    config.cluster.metrics_port = free_port()
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder, prometheus(config.cluster.metrics_port) as source:
        lines = list[float]()  # when each came
        launch_training(config, Path(folder) / typed.preset, listener=lambda _: lines.append(time.time()))
        for panel in panels():
            add_panel(figures, panel, source, lines[0], time.time())
    settings = {"preset": typed.preset, "seconds": typed.seconds, "graph": graph_settings(Store.open(session.store))}
    return finish(session, settings, figures)


if __name__ == "__main__":
    main()
