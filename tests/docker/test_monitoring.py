"""The dashboard and the alerts name only metrics, labels and label values that the service and `monitor` really expose."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from itertools import combinations

import pytest
import yaml

from pipelines.monitoring import report
from tests.docker.manifests import DOCKER
from tests.serving.conftest import MakeClient, make_client, publish_stub, series_payload, slot_folder

__all__ = ["make_client", "slot_folder"]
STACK = DOCKER / "stack"
OF_PROMETHEUS = {"up"}


def list_queries() -> Iterator[str]:
    """Yields every query of the dashboard and of the alerts."""
    dashboard = json.loads((STACK / "grafana/dashboards/forecaster.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for group in yaml.safe_load((STACK / "prometheus/alerts.yaml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def list_names(query: str) -> set[str]:
    return set(re.findall(r"\b(?:forecaster_\w+|up)\b(?!\s*\()", re.sub(r'"[^"]*"', "", query)))


@pytest.fixture
def exposed(slot_folder: object, make_client: MakeClient) -> set[str]:
    """The samples of a service after requests, `name{labels}`, and the names that `monitor` writes."""
    publish_stub(slot_folder)  # type: ignore[arg-type]
    client = make_client()
    assert client.post("/v1/forecast", json={"series": [series_payload()], "horizon": 2}).status_code == 200
    samples = {
        line.rpartition(" ")[0] for line in client.get("/metrics").text.splitlines() if line[:1] not in ("", "#")
    }
    live = re.findall(r"add_gauge\(\s*\"(\w+)\"", inspect.getsource(report.render_report_prometheus))
    return samples | {f"forecaster_live_{name}" for name in live}


def test_every_query_names_metrics_that_exist(exposed: set[str]) -> None:
    names = {sample.partition("{")[0] for sample in exposed} | {"forecaster_connections_closed_total"}
    queries = list(list_queries())
    assert len(queries) > 25
    assert {name for query in queries for name in list_names(query)} - names - OF_PROMETHEUS == set()
    unused = {name for name in names if name.endswith("_total")} - {
        name for query in queries for name in list_names(query)
    }
    assert unused == set(), "a counter that nobody sees"


def test_every_label_of_a_query_exists(exposed: set[str]) -> None:
    labels: dict[str, set[str]] = {}
    for sample in exposed:
        name, _, rest = sample.partition("{")
        labels.setdefault(name, set()).update(re.findall(r"(\w+)=\"", rest))
    labels["forecaster_connections_closed_total"] = {"reason"}
    for query in list_queries():
        for name, selector in re.findall(r"(forecaster_\w+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", selector)) <= labels[name]
        for grouping in re.findall(r"by \(([^)]*)\)", query):
            available = set().union(*(labels[name] for name in list_names(query) if name in labels))
            if not any(name.startswith("forecaster_live") for name in list_names(query)):
                assert {label.strip() for label in grouping.split(",")} <= available | {"instance"}


def test_every_outcome_that_an_alert_selects_exists(exposed: set[str]) -> None:
    for query in list_queries():
        for name, pattern in re.findall(r"(forecaster_\w+)\{outcome=~?\"([^\"]*)\"", query):
            for outcome in pattern.split("|"):
                assert f'{name}{{outcome="{outcome}"}}' in exposed
        for route in re.findall(r"route=\"([^\"]*)\"", query):
            assert f'forecaster_request_seconds_count{{route="{route}"}}' in exposed


def test_the_provisioned_folder_and_data_source_are_those_of_the_dashboard() -> None:
    [provider] = yaml.safe_load((STACK / "grafana/provisioning/dashboards/forecaster.yaml").read_text())["providers"]
    [source] = yaml.safe_load((STACK / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    grafana = yaml.safe_load((STACK / "compose.yaml").read_text())["services"]["grafana"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    dashboard = json.loads((STACK / "grafana/dashboards/forecaster.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for first, second in combinations(panels, 2):
        (a, b), (c, d) = (_corners(panel["gridPos"]) for panel in (first, second))
        assert not (a[0] < d[0] and c[0] < b[0] and a[1] < d[1] and c[1] < b[1]), (first["title"], second["title"])


def _corners(place: dict[str, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return (place["x"], place["y"]), (place["x"] + place["w"], place["y"] + place["h"])
