"""POST /v1/backtest: the same scores as the library at the same origins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.bundle.pretrained.base import base_predictor
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import seasonal_naive
from forecaster.evaluation.calibration import add_quantiles, calibrate_model
from forecaster.evaluation.scores import SCORED_LEVELS, overall_scores, score_table
from forecaster.prediction.predictor import Predictor
from serving.deployment.releases import Release, publish, staging
from serving.deployment.slot import load_bundle
from tests.factories import make_fitted_model, make_panel, make_spec, make_wave
from tests.serving.conftest import AppClient, MakeClient, publish_stub, series_payload
from tests.serving.test_client import publish_random_model

MODEL = {"name": "stub", "version": "1"}


def history_payload(y: Any, name: str = "a") -> dict[str, Any]:
    return series_payload(id=name, y=[None if np.isnan(value) else float(value) for value in y])


def test_scores_equal_those_of_the_library(slot_folder: Path, make_client: MakeClient) -> None:
    predictor: Predictor = publish_random_model(slot_folder)
    client = make_client(load=load_bundle)
    values = [make_wave(60), make_wave(50, seed=3)]
    values[0][52] = np.nan
    request = {
        "series": [history_payload(values[0], "series_0"), history_payload(values[1], "series_1")],
        "windows": 4,
        "stride": 3,
    }
    response = client.post("/v1/backtest", json=request)
    assert response.status_code == 200, response.text
    result = response.json()
    zero_shot = base_predictor("h", horizon=5, season=4)
    forecasters = {"model": predictor, "naive": seasonal_naive(4), "zero_shot": zero_shot.forecast_batch}
    expected = backtest(make_panel(*values), forecasters, horizon=5, windows=4, season=4, stride=3)
    assert (result["horizon"], result["windows"], result["stride"]) == (5, 4, 3)
    for name, field in (("model", "model"), ("naive", "seasonal_naive"), ("zero_shot", "zero_shot")):
        expected_scores = expected.scores(name)
        scores = result["overall"][field]
        for metric in ("mase", "mae", "smape"):
            assert scores[metric] == pytest.approx(expected_scores[metric], rel=1e-4)
        np.testing.assert_allclose(scores["mase_by_step"], expected.mase_by_step(name), rtol=1e-4)
    assert [outcome["id"] for outcome in result["series"]] == ["series_0", "series_1"]
    assert result["model"]["name"] == "small"


def test_interval_scores_equal_those_of_the_library_whatever_levels_are_requested(
    slot_folder: Path, make_client: MakeClient
) -> None:
    values = [make_wave(90), 3 * make_wave(80, seed=3)]
    values[0][82] = np.nan
    panel = make_panel(*values)
    model = calibrate_model(make_fitted_model(make_spec(horizon=5)), panel, windows=6)
    with staging(slot_folder) as draft:
        digest = artifact.save_bundle(model, draft / "bundle", card="")
        publish(slot_folder, draft / "bundle", Release(name="small", version="1", digest=digest))
    client = make_client(load=load_bundle)
    expected = backtest(panel, {"model": Predictor(model)}, horizon=5, windows=4, season=4, stride=3)
    expected = add_quantiles(expected, {"model": model}, levels=SCORED_LEVELS)
    scores = overall_scores(score_table(expected))["model"]
    payloads = [history_payload(y, f"series_{number}") for number, y in enumerate(values)]
    for levels in ([], [0.5, 0.25]):
        request = {"series": payloads, "windows": 4, "stride": 3, "levels": levels}
        response = client.post("/v1/backtest", json=request)
        assert response.status_code == 200, response.text
        overall = response.json()["overall"]
        assert overall["model"]["wql"] == pytest.approx(scores["wql"], rel=1e-4)
        assert overall["model"]["msis_95"] == pytest.approx(scores["msis_95"], rel=1e-4)
        assert overall["seasonal_naive"]["wql"] is overall["seasonal_naive"]["msis_95"] is None
        assert set(overall.get("coverage", {})) == {repr(level) for level in levels}
        single = response.json()["series"][1]["model"]
        alone = client.post("/v1/backtest", json={**request, "series": payloads[1:]}).json()["overall"]["model"]
        assert single == alone


def test_a_model_without_quantiles_has_no_interval_scores(slot_folder: Path, make_client: MakeClient) -> None:
    publish_random_model(slot_folder)
    result = make_client(load=load_bundle).post("/v1/backtest", json={"series": [history_payload(make_wave(60))]})
    assert result.status_code == 200
    scores = result.json()["overall"]["model"]
    assert scores["mae"] is not None
    assert scores["wql"] is scores["msis_95"] is None


def test_the_reliable_horizon_ends_where_seasonal_naive_is_better(client: AppClient) -> None:
    y = np.tile([1.0, 2.0, 3.0, 4.0, 5.0, 6.0] * 4, 4)  # the stub's season is 24, and seasonal naive is perfect
    result = client.post("/v1/backtest", json={"series": [history_payload(y)], "horizon": 3, "windows": 2}).json()
    assert result["series"][0]["reliable_horizon"] == 0
    assert result["series"][0]["seasonal_naive"]["mae"] == 0.0
    rising = client.post(
        "/v1/backtest", json={"series": [history_payload(np.arange(96.0))], "horizon": 3, "windows": 2}
    ).json()
    assert rising["series"][0]["reliable_horizon"] == 3, "the last value is nearer than the value a season ago"
    assert rising["overall"]["model"]["mae_by_step"] == [1.0, 2.0, 3.0]


def test_coverage_is_the_share_of_actuals_below_the_quantile(client: AppClient) -> None:
    request = {"series": [history_payload(np.arange(60.0))], "horizon": 2, "windows": 3, "levels": [0.9, 0.1]}
    result = client.post("/v1/backtest", json=request).json()
    assert result["overall"]["coverage"] == {"0.1": 0.0, "0.9": 0.0}, (
        "the series rises by 1 per step, and the stub's interval is narrower"
    )
    falling = {**request, "series": [history_payload(-np.arange(60.0))]}
    assert client.post("/v1/backtest", json=falling).json()["overall"]["coverage"] == {"0.1": 1.0, "0.9": 1.0}


def test_a_bad_series_does_not_affect_its_neighbours(client: AppClient) -> None:
    request = {
        "series": [history_payload(np.arange(4.0), "short"), history_payload(np.arange(40.0))],
        "horizon": 2,
        "windows": 3,
    }
    response = client.post("/v1/backtest", json=request)
    assert response.status_code == 200
    first, second = response.json()["series"]
    assert first["error"]["code"] == "history_too_short"
    assert "9" in first["error"]["message"], "the message names the required length"
    assert second["model"]["mae"] == 1.5
    single_response = client.post("/v1/backtest", json={**request, "series": request["series"][:1]})
    assert (single_response.status_code, single_response.json()["error"]["code"]) == (422, "history_too_short")


def test_a_history_shorter_than_a_season_is_scored_by_the_error_of_the_last_value(client: AppClient) -> None:
    short = series_payload(start="2026-06-01T00:00:00", y=list(np.arange(20.0)))  # the stub's season is 24
    [outcome] = client.post("/v1/backtest", json={"series": [short], "horizon": 2}).json()["series"]
    assert outcome["model"]["mase"] == outcome["model"]["mae"] == 1.5, "the last value is wrong by 1 at each step"
    assert "not longer than a season (24 steps)" in outcome["warnings"][0]


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
    response = client.post("/v1/backtest", json={"series": [history_payload([5.0] * 40)], "horizon": 2})
    assert response.json()["series"][0]["model"]["mase"] is None
    y = np.r_[np.arange(40.0), [np.nan] * 6]
    unobserved_response = client.post(
        "/v1/backtest", json={"series": [history_payload(y)], "horizon": 2, "levels": [0.5]}
    )
    assert unobserved_response.status_code == 200
    outcome = unobserved_response.json()["series"][0]
    assert (outcome["model"]["mae"], outcome["reliable_horizon"], outcome["coverage"]) == (None, 0, {"0.5": None})


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
    request = {"series": [history_payload(np.arange(200.0))], "horizon": 2, **fields}
    response = client.post("/v1/backtest", json=request)
    assert (response.status_code, response.json()["error"]["code"]) == (422, code)


def test_without_a_model_backtest_is_unavailable(make_client: MakeClient) -> None:
    response = make_client().post("/v1/backtest", json={"series": [history_payload(np.arange(40.0))]})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")


def test_every_response_states_the_reliable_horizon(slot_folder: Path, make_client: MakeClient) -> None:
    from dataclasses import replace

    from tests.serving.conftest import LastValuePredictor, StubModel

    publish_stub(slot_folder)
    for recorded, expected in ((7, 7), (0, 0), (None, None), ("x", None)):
        facts = {"reliable_horizon": recorded}
        client = make_client(load=lambda _, facts=facts: LastValuePredictor(replace(StubModel(), facts=facts)))
        result = client.post("/v1/forecast", json={"series": [series_payload()], "horizon": 2}).json()
        assert result["model"].get("reliable_horizon") == expected
        assert client.get("/v1/model").json()["model"].get("reliable_horizon") == expected
        assert json.dumps(result["model"])
