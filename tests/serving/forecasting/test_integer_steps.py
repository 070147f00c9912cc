"""POST /v1/forecast with integer timestamps, which continue as integers in the response."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.model import regressor
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Series
from forecaster.spec import NetworkSpec, Spec
from serving.deployment.slot import Slot
from tests.serving.conftest import AppClient, MakeClient, load_stub, publish_stub, series_payload

LARGEST_TIMESTAMP = 2**62 - 1


@pytest.fixture
def steps_of_ten_client(slot_folder: Path, make_client: MakeClient) -> AppClient:
    """A client of an application whose model has the frequency 10."""
    publish_stub(slot_folder, freq="10")
    return make_client()


def post_forecast(client: AppClient, *items: dict[str, Any], horizon: int = 2) -> Any:
    response = client.post("/v1/forecast", json={"series": list(items), "horizon": horizon})
    assert response.status_code == 200, response.text
    return response.json()["forecasts"]


def grid_payload(start: Any = 17, freq: Any = 10, **fields: Any) -> dict[str, Any]:
    return series_payload(start=start, freq=freq, **fields)


def timestamped_payload(*ds: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "a", "ds": list(ds), "y": [float(index) for index in range(len(ds))], **fields}


@pytest.mark.parametrize(
    ("item", "ds"),
    [
        (grid_payload(), [47, 57]),
        (grid_payload(freq="10"), [47, 57]),
        (grid_payload(start=0), [30, 40]),
        (grid_payload(start=-25), [5, 15]),
        (grid_payload(start=LARGEST_TIMESTAMP - 40), [LARGEST_TIMESTAMP - 10, LARGEST_TIMESTAMP]),
        (grid_payload(start=-LARGEST_TIMESTAMP), [30 - LARGEST_TIMESTAMP, 40 - LARGEST_TIMESTAMP]),
        (timestamped_payload(10, 20, 30), [40, 50]),
        (timestamped_payload(10, 20, 30, freq=10), [40, 50]),
        (timestamped_payload(10, 20, 30, freq="10"), [40, 50]),
        (timestamped_payload(20260101, 20260111, 20260121, freq=10), [20260131, 20260141]),
    ],
)
def test_integer_timestamps_continue_in_the_response(
    steps_of_ten_client: AppClient, item: dict[str, Any], ds: list[int]
) -> None:
    [forecast] = post_forecast(steps_of_ten_client, item)
    assert forecast["ds"] == ds
    assert all(type(timestamp) is int for timestamp in forecast["ds"])
    assert forecast["mean"] == [item["y"][-1]] * 2


@pytest.mark.parametrize(
    ("item", "code", "message"),
    [
        (grid_payload(freq=1), "frequency_mismatch", "another"),
        (grid_payload(start="2026-01-01", freq="h"), "frequency_mismatch", "another"),
        (grid_payload(start="2026-01-01"), "bad_stamp", "whole numbers as timestamps, since the frequency is '10'"),
        (
            grid_payload(freq="h"),
            "bad_stamp",
            "timestamps, since the frequency is 'h'; series 'a' has the whole number 17",
        ),
        (grid_payload(start="17"), "bad_stamp", "without quotes"),
        (grid_payload(freq=0), "frequency_unknown", "'0' does not step forward"),
        (grid_payload(freq=-10), "frequency_unknown", "'-10' does not step forward"),
        (grid_payload(freq="010"), "frequency_unknown", "an integer if"),
        (grid_payload(freq="10.0"), "frequency_unknown", "an integer if"),
        (grid_payload(freq=10**18), "frequency_unknown", "an integer if"),
        (grid_payload(start=LARGEST_TIMESTAMP - 39), "bad_stamp", f"up to {LARGEST_TIMESTAMP}"),
        (grid_payload(start=LARGEST_TIMESTAMP + 1), "bad_stamp", f"has {LARGEST_TIMESTAMP + 1} at index 0"),
        (grid_payload(start=-(2**63)), "bad_stamp", "at index 0"),
        (timestamped_payload(10, 20, 2**63 - 1), "bad_stamp", "at index 2"),
        (timestamped_payload(10, 20, 20), "duplicate_stamp", "has 20 twice"),
        (timestamped_payload(30, 20, 10), "irregular_stamps", "has 20 after 30"),
        (timestamped_payload(10, 20, 40, freq=10), "irregular_stamps", "has 40 at index 2 instead of 30"),
        (timestamped_payload(10, 20, 30, 40, 60, 70), "irregular_stamps", "goes from 40 to 60"),
        (timestamped_payload(10, 20, 40), "frequency_unknown", "cannot be inferred from 3 timestamps"),
        (timestamped_payload(10), "frequency_unknown", "`freq`='1'"),
        (timestamped_payload(10, 20, 30, freq="D"), "bad_stamp", "since the frequency is 'D'"),
        (timestamped_payload("2026-01-01", "2026-01-02", freq=10), "bad_stamp", "since the frequency is '10'"),
        (
            timestamped_payload("2026-01-01T00:00", "2026-01-01T00:10", "2026-01-01T00:20"),
            "frequency_mismatch",
            "another",
        ),
        (timestamped_payload(20260101, 20260111, 20260121), "bad_stamp", "such as 20260101, may be either"),
        (timestamped_payload(0, 10**15, freq=10), "irregular_stamps", "instead of 10"),
    ],
)
def test_an_invalid_integer_series_is_rejected_beside_its_neighbours(
    steps_of_ten_client: AppClient, item: dict[str, Any], code: str, message: str
) -> None:
    before, rejected, after = post_forecast(steps_of_ten_client, grid_payload(), item, grid_payload())
    assert rejected["error"]["code"] == code, rejected
    assert message in rejected["error"]["message"]
    assert rejected["error"]["where"] == "a"
    assert before["ds"] == after["ds"] == [47, 57]
    alone = steps_of_ten_client.post("/v1/forecast", json={"series": [item], "horizon": 2})
    assert (alone.status_code, alone.json()["error"]) == (422, rejected["error"])


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"start": 1.5}, "series.0.start"),
        ({"start": None}, "series.0.start"),
        ({"freq": True}, "series.0.freq"),
        ({"ds": [1, "2", 3]}, "series.0.ds.1"),
        ({"ds": ["2026-01-01", 2, 3]}, "series.0.ds.1"),
        ({"ds": [1, None, 3]}, "series.0.ds.1"),
    ],
)
def test_a_value_of_a_wrong_type_is_reported_with_its_location(
    steps_of_ten_client: AppClient, fields: dict[str, Any], location: str
) -> None:
    payload = {"id": "a", "y": [1, 2, 3], **({} if "ds" in fields else {"start": 1, "freq": 10}), **fields}
    response = steps_of_ten_client.post("/v1/forecast", json={"series": [payload], "horizon": 2})
    assert (response.status_code, response.json()["error"]["where"]) == (422, location), response.text


def test_a_covariate_called_number_keeps_its_name_in_a_location(steps_of_ten_client: AppClient) -> None:
    payload = grid_payload(covariates={"number": [1, 2, "x"]})
    response = steps_of_ten_client.post("/v1/forecast", json={"series": [payload], "horizon": 2})
    assert response.json()["error"]["where"] == "series.0.covariates.number.2"


def test_a_model_of_dates_rejects_integer_timestamps(client: AppClient) -> None:
    for item, code in ((grid_payload(), "frequency_mismatch"), (timestamped_payload(1, 2, 3), "frequency_mismatch")):
        response = client.post("/v1/forecast", json={"series": [item], "horizon": 2})
        assert (response.status_code, response.json()["error"]["code"]) == (422, code)


def test_the_model_of_integer_steps_is_described(slot_folder: Path, make_client: MakeClient) -> None:
    predictor = Predictor(make_model())
    publish_stub(slot_folder)
    response = make_client(load=lambda folder: predictor).get("/v1/model").json()
    assert (response["freq"], response["season"], response["cutoff"]) == ("10", 4, "990")


def test_a_slot_warms_up_a_model_of_integer_steps(slot_folder: Path) -> None:
    publish_stub(slot_folder, freq="10")
    slot = Slot(slot_folder, load=load_stub, reload_s=0.01)
    slot.reload_if_changed()
    assert slot.current is not None


def make_model() -> FittedModel:
    spec = Spec(name="tens", context=8, horizon=4, season=4, network=NetworkSpec(hidden=4))
    return FittedModel(spec, "10", 4, 990, EMPTY_ENCODING, regressor.build_network(spec, seed=0, season=4))


def test_the_response_equals_the_library(slot_folder: Path, make_client: MakeClient) -> None:
    predictor, y = Predictor(make_model()), [float(value) for value in 10 + np.sin(np.arange(12))]
    publish_stub(slot_folder)
    client = make_client(load=lambda folder: predictor)
    payloads = grid_payload(start=1000, y=y), timestamped_payload(*range(1000, 1120, 10), y=y)
    expected = predictor.forecast(Series("a", 1000, "10", np.array(y)), 4)
    for forecast in post_forecast(client, *payloads, horizon=4):
        np.testing.assert_allclose(forecast["mean"], expected.mean, rtol=1e-6)
        assert forecast["ds"] == list(expected.ds) == [1120, 1130, 1140, 1150]
