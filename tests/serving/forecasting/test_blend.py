"""A blend over HTTP: every response names its weights, and a blend whose package is missing is never deployed."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.engines.statistical.blend import NETWORK
from forecaster.frequency.timestamps import format_timestamp
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Series
from serving.deployment.releases import Release, publish, staging
from serving.deployment.slot import load_bundle
from tests.factories import make_fitted_model, make_series, make_spec, make_wave
from tests.serving.conftest import AppClient, LastValuePredictor, MakeClient, StubModel, publish_stub, series_payload
from tests.serving.routes.test_openapi import response_schema, schema_violations

THETA = "dynamic_optimized_theta"
WEIGHTS = {NETWORK: 0.62, THETA: 0.38}
FORECAST_BODY = {"series": [series_payload(), series_payload(id="b")], "horizon": 2}


def load_blended_stub(_: Path) -> LastValuePredictor:
    return LastValuePredictor(StubModel(blend_weights=WEIGHTS))


def request_of(series: Series) -> dict[str, Any]:
    y = [None if np.isnan(value) else float(value) for value in series.y]
    return {"id": series.id, "start": format_timestamp(series.start), "freq": series.freq, "y": y}


def publish_model(slot: Path, model: FittedModel) -> None:
    with staging(slot) as draft:
        digest = artifact.save_bundle(model, draft / "bundle", card="# a blend\n")
        publish(slot, draft / "bundle", Release(name="small", version="1", digest=digest))


def make_blended_model() -> FittedModel:
    return replace(make_fitted_model(make_spec(blend=[THETA])), blend_weights=WEIGHTS)


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [("POST", "/v1/forecast", FORECAST_BODY), ("GET", "/v1/model", None), ("GET", "/readyz", None)],
)
def test_every_response_of_a_blend_says_so_as_documented(
    slot_folder: Path, make_client: MakeClient, method: str, path: str, content: Any
) -> None:
    publish_stub(slot_folder)
    client = make_client(load=load_blended_stub)
    response = client.request(method, path, json=content)
    assert response.status_code == 200
    assert response.json()["model"]["blend"] == WEIGHTS
    assert response.headers["x-model-blend"] == "network=0.62, dynamic_optimized_theta=0.38"
    document = client.get("/docs.json").json()
    assert schema_violations(response.json(), response_schema(document, method, path, 200), document) == []


def test_a_response_without_a_blend_is_unchanged(client: AppClient) -> None:
    for response in (client.post("/v1/forecast", json=FORECAST_BODY), client.get("/v1/model"), client.get("/readyz")):
        assert set(response.json()["model"]) == {"name", "version", "digest"}


def test_a_blended_bundle_is_served_like_the_library(slot_folder: Path, make_client: MakeClient) -> None:
    pytest.importorskip("statsforecast")
    publish_model(slot_folder, make_blended_model())
    client = make_client(load=load_bundle)
    whole, short = make_series(make_wave(40), name="whole"), make_series(make_wave(4, seed=1), name="short")
    short.y[:2] = np.nan
    response = client.post("/v1/forecast", json={"series": [request_of(whole), request_of(short)], "horizon": 5}).json()
    assert response["model"]["blend"] == WEIGHTS
    for series, forecast in zip((whole, short), response["forecasts"], strict=True):
        expected = Predictor(make_blended_model()).forecast(series, 5)
        np.testing.assert_allclose(forecast["mean"], expected.mean, rtol=1e-5)
        assert forecast["warnings"] == list(expected.warnings)
    assert response["forecasts"][0]["warnings"] == []
    assert THETA in response["forecasts"][1]["warnings"][0]


def test_a_blend_without_its_package_is_never_deployed(
    slot_folder: Path, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("statsforecast")
    publish_model(slot_folder, make_blended_model())
    monkeypatch.setitem(sys.modules, "statsforecast", None)
    monkeypatch.setitem(sys.modules, "statsforecast.models", None)
    with caplog.at_level(logging.ERROR):
        client = make_client(load=load_bundle)
    assert client.get("/readyz").status_code == 503
    assert "recurrent-forecaster[baselines]" in caplog.text
