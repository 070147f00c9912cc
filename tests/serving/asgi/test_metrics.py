"""Prometheus metrics: every name exists from the start, and every label value is from a fixed list."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from forecaster.series import Forecast
from serving.deployment import status
from tests.serving.conftest import LastValuePredictor, MakeClient, publish_stub, series_payload


def parse_metrics(text: str) -> dict[str, float]:
    """Returns the values of a metrics page by name and labels."""
    lines = [line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, _, value in lines}


def test_batches_engine_time_fallbacks_and_model_age_are_measured(slot_folder: Path, make_client: MakeClient) -> None:
    class DivergingPredictor(LastValuePredictor):
        def _forecast_series(self, series: Any, horizon: int) -> Any:
            forecast = super()._forecast_series(series, horizon)
            if isinstance(forecast, Forecast) and series.id.startswith("wild"):
                return Forecast(forecast.id, forecast.ds, np.zeros(horizon), ("It diverged.",), has_fallback=True)
            return forecast

    publish_stub(slot_folder)
    started_at = time.time()
    client = make_client(load=lambda _: DivergingPredictor(), registry="http://127.0.0.1:9", model="stub")
    metrics = parse_metrics(client.get("/metrics").text)
    assert (metrics["forecaster_batch_series_count"], metrics["forecaster_stand_ins_total"]) == (0, 0)
    assert metrics["forecaster_registry_reached_timestamp_seconds"] == 0
    status.write_follower_state(slot_folder, status.FollowerState(looked_at=started_at, reached_at=started_at - 5))
    payloads = [
        series_payload(id="a"),
        series_payload(id="wild 1"),
        series_payload(id="wild 2"),
        series_payload(id="short", y=[1.0]),
    ]
    assert client.post("/v1/forecast", json={"series": payloads, "horizon": 2}).status_code == 200
    assert client.post("/v1/forecast", json={"series": payloads[:1], "horizon": 2}).status_code == 200
    metrics = parse_metrics(client.get("/metrics").text)
    assert (metrics["forecaster_batch_series_count"], metrics["forecaster_batch_series_sum"]) == (2, 5)
    assert metrics['forecaster_batch_series_bucket{le="1.0"}'] == 1
    assert metrics["forecaster_engine_seconds_count"] == 2
    assert 0 < metrics["forecaster_engine_seconds_sum"] < 5
    assert metrics["forecaster_stand_ins_total"] == 2
    assert started_at - 1 <= metrics["forecaster_model_taken_timestamp_seconds"] <= time.time()
    assert abs(metrics["forecaster_registry_reached_timestamp_seconds"] - (started_at - 5)) < 1e-3


def test_clients_cannot_create_metric_labels(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    client = make_client()
    previous_names = None
    for number in range(3):
        text = f"client-text-{number}"
        client.get(f"/{text}", headers={"x-request-id": text, "user-agent": text})
        client.request(f"M{number}", f"/v1/{text}?{text}={text}")
        client.post("/v1/forecast", json={"series": [series_payload(id=text)], "horizon": 2})
        page = client.get("/metrics").text
        names = {re.sub(r" \S+$", "", line) for line in page.splitlines()}
        if number > 1:
            assert names == previous_names, "no request adds lines"
        previous_names = names
        assert text not in page
