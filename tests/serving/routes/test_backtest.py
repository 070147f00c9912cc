"""A backtest over HTTP: the same scores as the library's own, of the same origins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import seasonal_naive
from forecaster.prediction.predictor import Predictor
from serving.deployment.slot import load_bundle
from tests.factories import make_panel, make_wave
from tests.serving.conftest import AppClient, MakeClient, publish_stub, series_payload
from tests.serving.test_client import publish_random_model

MODEL = {"name": "stub", "version": "1"}


def send_backtest(y: Any, name: str = "a") -> dict[str, Any]:
    return series_payload(id=name, y=[None if np.isnan(value) else float(value) for value in y])


def test_scores_equal_those_of_the_library(slot_folder: Path, make_client: MakeClient) -> None:
    predictor: Predictor = publish_random_model(slot_folder)
    client = make_client(load=load_bundle)
    values = [make_wave(60), make_wave(50, seed=3)]
    values[0][52] = np.nan
    request = {
        "series": [send_backtest(values[0], "series_0"), send_backtest(values[1], "series_1")],
        "windows": 4,
        "stride": 3,
    }
    told = client.post("/v1/backtest", json=request)
    assert told.status_code == 200, told.text
    answer = told.json()
    asked = {"model": predictor, "naive": seasonal_naive(4)}
    expected = backtest(make_panel(*values), asked, horizon=5, windows=4, season=4, stride=3)
    assert (answer["horizon"], answer["windows"], answer["stride"]) == (5, 4, 3)
    for name, ours in (("model", "model"), ("naive", "seasonal_naive")):
        scores = expected.scores(name)
        found = answer["overall"][ours]
        for metric in ("mase", "mae", "smape"):
            assert found[metric] == pytest.approx(scores[metric], rel=1e-4)
        np.testing.assert_allclose(found["mase_by_step"], expected.mase_by_step(name), rtol=1e-4)
    assert [one["id"] for one in answer["series"]] == ["series_0", "series_1"]
    assert answer["model"]["name"] == "small"


def test_the_reliable_horizon_ends_where_seasonal_naive_is_better(client: AppClient) -> None:
    y = np.tile([1.0, 2.0, 3.0, 4.0, 5.0, 6.0] * 4, 4)  # the stub's season is 24, and seasonal naive is perfect
    answer = client.post("/v1/backtest", json={"series": [send_backtest(y)], "horizon": 3, "windows": 2}).json()
    assert answer["series"][0]["reliable_horizon"] == 0
    assert answer["series"][0]["seasonal_naive"]["mae"] == 0.0
    rising = client.post(
        "/v1/backtest", json={"series": [send_backtest(np.arange(96.0))], "horizon": 3, "windows": 2}
    ).json()
    assert rising["series"][0]["reliable_horizon"] == 3, "the last value is nearer than yesterday's"
    assert rising["overall"]["model"]["mae_by_step"] == [1.0, 2.0, 3.0]


def test_coverage_is_the_share_of_actuals_below_the_quantile(client: AppClient) -> None:
    request = {"series": [send_backtest(np.arange(60.0))], "horizon": 2, "windows": 3, "levels": [0.9, 0.1]}
    answer = client.post("/v1/backtest", json=request).json()
    assert answer["overall"]["coverage"] == {"0.1": 0.0, "0.9": 0.0}, "it rises by one, the stub's band is narrower"
    falling = {**request, "series": [send_backtest(-np.arange(60.0))]}
    assert client.post("/v1/backtest", json=falling).json()["overall"]["coverage"] == {"0.1": 1.0, "0.9": 1.0}


def test_a_bad_series_does_not_affect_its_neighbours(client: AppClient) -> None:
    request = {
        "series": [send_backtest(np.arange(4.0), "short"), send_backtest(np.arange(40.0))],
        "horizon": 2,
        "windows": 3,
    }
    answer = client.post("/v1/backtest", json=request)
    assert answer.status_code == 200
    first, second = answer.json()["series"]
    assert first["error"]["code"] == "history_too_short"
    assert "9" in first["error"]["message"], "what it needs"
    assert second["model"]["mae"] == 1.5
    alone = client.post("/v1/backtest", json={**request, "series": request["series"][:1]})
    assert (alone.status_code, alone.json()["error"]["code"]) == (422, "history_too_short")


def test_origins_within_the_training_data_are_reported(client: AppClient) -> None:
    y = np.arange(40.0)
    early = client.post(
        "/v1/backtest", json={"series": [series_payload(start="2025-06-01T00:00:00", y=list(y))], "horizon": 2}
    )
    assert "not out of sample" in early.json()["series"][0]["warnings"][0]
    late = client.post(
        "/v1/backtest", json={"series": [series_payload(start="2026-06-01T00:00:00", y=list(y))], "horizon": 2}
    )
    assert late.json()["series"][0]["warnings"] == []


def test_constant_and_unobserved_ends_have_no_scores_and_the_response_is_finite(client: AppClient) -> None:
    answer = client.post("/v1/backtest", json={"series": [send_backtest([5.0] * 40)], "horizon": 2})
    assert answer.json()["series"][0]["model"]["mase"] is None
    y = np.r_[np.arange(40.0), [np.nan] * 6]
    nothing = client.post("/v1/backtest", json={"series": [send_backtest(y)], "horizon": 2, "levels": [0.5]})
    assert nothing.status_code == 200
    told = nothing.json()["series"][0]
    assert (told["model"]["mae"], told["reliable_horizon"], told["coverage"]) == (None, 0, {"0.5": None})


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"windows": 0}, "invalid_request"),
        ({"windows": 101}, "invalid_request"),
        ({"horizon": 0}, "invalid_request"),
        ({"horizon": 501}, "horizon_out_of_range"),
        ({"horizon": 50, "windows": 50}, "answer_too_large"),
        ({"windows": 100, "stride": 1, "horizon": 1}, "request_too_large"),
        ({"stride": 10**9}, "history_too_short"),
        ({"levels": [2.0]}, "invalid_request"),
        ({"more": 1}, "invalid_request"),
        ({"series": []}, "invalid_request"),
    ],
)
def test_requests_above_the_limits_are_rejected(client: AppClient, fields: dict[str, Any], code: str) -> None:
    request = {"series": [send_backtest(np.arange(200.0))], "horizon": 2, **fields}
    answer = client.post("/v1/backtest", json=request)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)


def test_without_a_model_backtest_is_unavailable(make_client: MakeClient) -> None:
    answer = make_client().post("/v1/backtest", json={"series": [send_backtest(np.arange(40.0))]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")


def test_every_response_states_the_reliable_horizon(slot_folder: Path, make_client: MakeClient) -> None:
    from dataclasses import replace

    from tests.serving.conftest import LastValuePredictor, StubModel

    publish_stub(slot_folder)
    for known, told in ((7, 7), (0, 0), (None, None), ("x", None)):
        facts = {"reliable_horizon": known}
        client = make_client(load=lambda _, facts=facts: LastValuePredictor(replace(StubModel(), facts=facts)))
        answer = client.post("/v1/forecast", json={"series": [series_payload()], "horizon": 2}).json()
        assert answer["model"].get("reliable_horizon") == told
        assert client.get("/v1/model").json()["model"].get("reliable_horizon") == told
        assert json.dumps(answer["model"])
