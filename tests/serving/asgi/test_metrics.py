"""What Prometheus sees of the work: every name is there from the start, every label from a short list."""

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
    """The samples of a page by name and labels."""
    lines = [line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, _, value in lines}


def test_batches_engine_time_fallbacks_and_model_age_are_measured(slot_folder: Path, make_client: MakeClient) -> None:
    class Exploding(LastValuePredictor):
        def _forecast_series(self, series: Any, horizon: int) -> Any:
            told = super()._forecast_series(series, horizon)
            if isinstance(told, Forecast) and series.id.startswith("wild"):
                return Forecast(told.id, told.ds, np.zeros(horizon), ("it exploded",))
            return told

    publish_stub(slot_folder)
    began = time.time()
    client = make_client(load=lambda _: Exploding(), registry="http://127.0.0.1:9", model="stub")
    found = parse_metrics(client.get("/metrics").text)
    assert (found["forecaster_batch_series_count"], found["forecaster_stand_ins_total"]) == (0, 0)
    assert found["forecaster_registry_reached_timestamp_seconds"] == 0
    status.write_follower_state(slot_folder, status.FollowerState(looked_at=began, reached_at=began - 5))
    many = [
        series_payload(id="a"),
        series_payload(id="wild 1"),
        series_payload(id="wild 2"),
        series_payload(id="short", y=[1.0]),
    ]
    assert client.post("/v1/forecast", json={"series": many, "horizon": 2}).status_code == 200
    assert client.post("/v1/forecast", json={"series": many[:1], "horizon": 2}).status_code == 200
    found = parse_metrics(client.get("/metrics").text)
    assert (found["forecaster_batch_series_count"], found["forecaster_batch_series_sum"]) == (2, 5)
    assert found['forecaster_batch_series_bucket{le="1.0"}'] == 1
    assert found["forecaster_engine_seconds_count"] == 2
    assert 0 < found["forecaster_engine_seconds_sum"] < 5
    assert found["forecaster_stand_ins_total"] == 2
    assert began - 1 <= found["forecaster_model_taken_timestamp_seconds"] <= time.time()
    assert abs(found["forecaster_registry_reached_timestamp_seconds"] - (began - 5)) < 1e-3


def test_clients_cannot_create_metric_labels(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    client = make_client()
    before = None
    for number in range(3):
        odd = f"odd{number}"
        client.get(f"/{odd}", headers={"x-request-id": odd, "user-agent": odd})
        client.request(f"M{number}", f"/v1/{odd}?{odd}={odd}")
        client.post("/v1/forecast", json={"series": [series_payload(id=odd)], "horizon": 2})
        text = client.get("/metrics").text
        names = {re.sub(r" \S+$", "", line) for line in text.splitlines()}
        if number > 1:
            assert names == before, "whatever comes, there are no more lines"
        before = names
        assert odd not in text
