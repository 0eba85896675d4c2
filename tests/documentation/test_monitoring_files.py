"""deploy/monitoring: the dashboard, the alerts and the example configuration of Prometheus."""

from __future__ import annotations

import re

import pytest
import yaml

from distkg.cluster.watch.run_metrics import COUNTERS, GAUGES
from tests.monitoring import FOLDER, METRIC, dashboard, expressions, named_metrics

EXPORTED = {f"ray_distkg_{name}": labels for name, (_, labels) in (GAUGES | COUNTERS).items()}


def test_panels_and_alerts_name_every_metric_and_no_other() -> None:
    assert named_metrics() == set(EXPORTED)


@pytest.mark.parametrize("place", expressions())
def test_an_expression_uses_labels_of_its_metric(place: str) -> None:
    for expr in expressions()[place]:
        assert expr.count("(") == expr.count(")")
        (name,) = set(METRIC.findall(expr)) if place != "DistkgMakesNoSteps" else {METRIC.findall(expr)[0]}
        selected = re.findall(r"(\w+)=~?\"", expr)
        grouped = [label.strip() for by in re.findall(r"by \(([^)]*)\)", expr) for label in by.split(",")]
        assert {*selected, *grouped} <= set(EXPORTED[name]), expr


def test_counters_are_read_as_rates_and_gauges_as_they_are() -> None:
    for exprs in expressions().values():
        for expr in exprs:
            for name in METRIC.findall(expr):
                # increase() would miss the first failure, with which its counter begins.
                is_rate = re.search(rf"(?:rate|increase)\({name}\b|{name}\S* offset 1h or", expr) is not None
                assert is_rate == (name.endswith("_total") and "label_values" not in expr), expr


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    board = dashboard()
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    used = set(re.findall(r"\$(?!__)\{?(\w+)", str([panel.get("targets") for panel in panels])))
    assert used == {"datasource", "run", "trial"} == {variable["name"] for variable in board["templating"]["list"]}
    rows: dict[int, int] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        rows[place["y"]] = rows.get(place["y"], 0) + place["w"]
    assert set(rows.values()) == {24}, "a row of panels is not full"
    for panel in panels:
        assert panel["type"] == "row" or (panel["description"] and panel["targets"])


def test_prometheus_reads_rays_list_of_nodes_the_alerts_and_a_private_ray() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs["ray"]["file_sd_configs"] == [{"files": [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}]
    assert jobs["distkg-private"]["static_configs"] == [{"targets": ["127.0.0.1:9464"]}]
    assert all((FOLDER / name).is_file() for name in config["rule_files"])
