"""POST /v1/forecast: timestamps, frequencies, errors and deadlines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import AppClient, LastValuePredictor, MakeClient, publish_stub, series_payload


def post_forecast(client: AppClient, *items: dict[str, Any], horizon: int = 2) -> Any:
    response = client.post("/v1/forecast", json={"series": list(items), "horizon": horizon})
    assert response.status_code == 200, response.text
    return response.json()


def timestamped_payload(*ds: str, **fields: Any) -> dict[str, Any]:
    return {"id": "a", "ds": list(ds), "y": [float(index) for index in range(len(ds))], **fields}


def test_a_history_gets_timestamps_point_forecasts_and_the_model_name(client: AppClient) -> None:
    response = post_forecast(client, series_payload())
    assert response["forecasts"] == [
        {"id": "a", "ds": ["2026-01-01T03:00:00Z", "2026-01-01T04:00:00Z"], "mean": [2.5, 2.5], "warnings": []}
    ]
    assert (response["model"]["name"], response["model"]["version"], len(response["model"]["digest"])) == (
        "stub",
        "1",
        64,
    )


@pytest.mark.parametrize(
    ("start", "next_stamp"),
    [
        ("2026-01-01", "2026-01-01T03:00"),
        ("2026-01-01T00:00", "2026-01-01T03:00"),
        ("2026-01-01 00:00:00", "2026-01-01 03:00:00"),
        ("2026-01-01T00:00:00+02:00", "2026-01-01T03:00:00+02:00"),
        ("2026-01-01T00:00:00-05:30", "2026-01-01T03:00:00-05:30"),
        ("2026-01-01T00:00:00.25Z", "2026-01-01T03:00:00.250000Z"),
        ("0001-01-01T00:00:00+14:00", "0001-01-01T03:00:00+14:00"),
    ],
)
def test_timestamps_keep_the_zone_and_style_of_the_request(client: AppClient, start: str, next_stamp: str) -> None:
    assert post_forecast(client, series_payload(start=start))["forecasts"][0]["ds"][0] == next_stamp


def test_the_frequency_of_timestamps_is_inferred(client: AppClient) -> None:
    item = timestamped_payload(
        "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z", "2026-01-01T03:00:00Z"
    )
    assert post_forecast(client, item)["forecasts"][0]["ds"][0] == "2026-01-01T04:00:00Z"


def test_a_daylight_saving_change_within_the_timestamps_is_followed(client: AppClient) -> None:
    item = timestamped_payload(
        "2026-03-29T00:00+01:00", "2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00", "2026-03-29T04:00+02:00"
    )
    assert post_forecast(client, item)["forecasts"][0]["ds"] == ["2026-03-29T05:00+02:00", "2026-03-29T06:00+02:00"]


def test_a_declared_frequency_can_accompany_timestamps(client: AppClient) -> None:
    item = timestamped_payload("2026-01-01T00:00", "2026-01-01T01:00", "2026-01-01T02:00", freq="h")
    assert post_forecast(client, item)["forecasts"][0]["mean"] == [2.0, 2.0]


@pytest.mark.parametrize(
    ("item", "code"),
    [
        (series_payload(y=[]), "history_too_short"),
        (series_payload(y=[1.0]), "history_too_short"),
        (series_payload(freq="D"), "frequency_mismatch"),
        (series_payload(freq="H"), "frequency_unknown"),
        (series_payload(freq="-1h"), "frequency_unknown"),
        (series_payload(freq="0h"), "frequency_unknown"),
        (series_payload(freq="99999999999999999999h"), "frequency_unknown"),
        (series_payload(freq=""), "frequency_unknown"),
        (series_payload(start="tomorrow"), "bad_stamp"),
        (series_payload(start="2026-01-01T00:00:00 "), "bad_stamp"),
        (series_payload(start="0000-01-01"), "bad_stamp"),
        (series_payload(start="2026-02-30"), "bad_stamp"),
        (series_payload(start="20260101"), "bad_stamp"),
        (series_payload(start="1767225600"), "bad_stamp"),
        (series_payload(start="٢٠٢٦-01-01"), "bad_stamp"),
        (series_payload(start="+012026-01-01"), "bad_stamp"),
        (series_payload(start="9999-12-31T23:00:00Z"), "bad_stamp"),
        (series_payload(start="9999-12-31T23:00:00-14:00"), "bad_stamp"),
        (series_payload(start="2026-01-01T00:00:00.123456789Z"), "bad_stamp"),
        (timestamped_payload(), "history_too_short"),
        (timestamped_payload("2026-01-01"), "frequency_unknown"),
        (timestamped_payload("2026-01-01T00:00", "2026-01-01T01:00Z", "2026-01-01T02:00"), "bad_stamp"),
        (timestamped_payload("2026-01-01T00:00", "2026-01-01T01:00", "2026-01-01T01:00"), "duplicate_stamp"),
        (timestamped_payload("2026-01-01T02:00", "2026-01-01T01:00", "2026-01-01T00:00"), "irregular_stamps"),
        (timestamped_payload("2026-01-01T00:00", "2026-01-01T01:00", "2026-01-01T03:00", freq="h"), "irregular_stamps"),
        (timestamped_payload("2026-01-01T00:00", "2026-01-01T01:00", "2026-01-01T02:00", freq="D"), "irregular_stamps"),
        (timestamped_payload(*(f"2026-01-01T{hour:02}:00" for hour in (0, 1, 2, 3, 5, 6))), "irregular_stamps"),
        (timestamped_payload("2026-01-05", "2026-01-06", "2026-01-07"), "frequency_unknown"),  # days or business days
        (timestamped_payload("0001-01-01", "5001-01-01", "9999-01-01"), "frequency_unknown"),
        (timestamped_payload("9999-01-01", "9999-01-02", "9999-01-03", freq="999999YS"), "bad_stamp"),
    ],
)
def test_a_bad_series_is_rejected_beside_good_neighbours_and_is_a_422_alone(
    client: AppClient, item: dict[str, Any], code: str
) -> None:
    outcomes = post_forecast(client, series_payload(id="before"), item, series_payload(id="after"))["forecasts"]
    assert [outcome["id"] for outcome in outcomes] == ["before", "a", "after"]
    assert outcomes[1]["error"]["code"] == code
    assert outcomes[1]["error"]["where"] == "a"
    assert outcomes[0]["mean"] == outcomes[2]["mean"] == [2.5, 2.5]

    alone = client.post("/v1/forecast", json={"series": [item], "horizon": 2})
    assert (alone.status_code, alone.json()) == (422, {"error": outcomes[1]["error"]})


def test_two_rejected_series_are_two_outcomes(client: AppClient) -> None:
    outcomes = post_forecast(client, series_payload(y=[]), series_payload(y=[]))["forecasts"]
    assert [outcome["error"]["code"] for outcome in outcomes] == ["history_too_short"] * 2


def test_a_horizon_beyond_the_scored_one_gives_a_warning(client: AppClient) -> None:
    assert "24" in post_forecast(client, series_payload(), horizon=25)["forecasts"][0]["warnings"][0]


def test_a_request_past_its_deadline_is_a_504_and_its_thread_serves_the_next(
    slot_folder: Path, make_client: MakeClient
) -> None:
    calls: list[int] = []

    class DelayedPredictor(LastValuePredictor):
        def forecast_batch(self, series: Any, horizon: int, *, levels: Any = ()) -> Any:
            calls.append(len(series))
            time.sleep(0.05)
            return super().forecast_batch(series, horizon, levels=levels)

    publish_stub(slot_folder)
    client = make_client(load=lambda folder: DelayedPredictor(), max_history=10**5, max_json=2**23)
    payloads = [series_payload(id=str(index), y=[1.0] * 30_000) for index in range(40)]
    calls.clear()
    late_response = client.post("/v1/forecast", json={"series": payloads, "horizon": 2, "deadline_ms": 100})
    assert (late_response.status_code, late_response.json()["error"]["code"]) == (504, "deadline_passed")
    assert sum(calls) < len(payloads), "it stopped between two batches"
    assert post_forecast(client, series_payload())["forecasts"][0]["mean"] == [2.5, 2.5]
    calls.clear()
    full_response = client.post("/v1/forecast", json={"series": payloads, "horizon": 2})
    assert [item["id"] for item in full_response.json()["forecasts"]] == [item["id"] for item in payloads]
    assert (sum(calls), len(calls)) == (40, 10), "four at a time"


def test_a_start_off_the_frequency_grid_is_rejected(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder, freq="MS")
    monthly_client = make_client()
    assert post_forecast(monthly_client, series_payload(start="2026-01-01", freq="MS"))["forecasts"][0]["ds"] == [
        "2026-04-01",
        "2026-05-01",
    ]
    response = monthly_client.post(
        "/v1/forecast", json={"series": [series_payload(start="2026-01-15", freq="MS")], "horizon": 2}
    )
    assert response.json()["error"]["code"] == "irregular_stamps"


@pytest.mark.parametrize(
    ("freq", "ds"),
    [
        ("D", ["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"]),
        ("W-MON", ["2026-01-05", "2026-01-12", "2026-01-19", "2026-01-26"]),
        ("QS-JAN", ["2025-10-01", "2026-01-01", "2026-04-01", "2026-07-01"]),
        ("YS-JAN", ["2021-01-01", "2022-01-01", "2023-01-01", "2024-01-01", "2025-01-01"]),
        ("15min", ["2026-01-01T00:00", "2026-01-01T00:15", "2026-01-01T00:30"]),
    ],
)
def test_an_inferred_frequency_has_the_name_used_by_the_model(
    slot_folder: Path, make_client: MakeClient, freq: str, ds: list[str]
) -> None:
    publish_stub(slot_folder, freq=freq)
    assert "mean" in post_forecast(make_client(), timestamped_payload(*ds))["forecasts"][0]
