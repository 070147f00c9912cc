"""POST /v1/explain: the explanation of the library, with finite numbers, in the documented format."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.explain.attribution import explain
from serving.deployment.slot import load_bundle
from serving.routes import explain as explain_route
from tests.factories import START, make_series, make_wave
from tests.serving.conftest import MakeClient, publish_stub, series_payload
from tests.serving.routes.test_openapi import response_schema, schema_violations
from tests.serving.test_client import publish_random_model


def explain_request(**fields: Any) -> dict[str, Any]:
    y: list[float | None] = list(make_wave(40))
    y[35] = None
    return {"series": series_payload(start=START.isoformat(), y=y), **fields}


def all_finite_numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in all_finite_numbers(item)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize(
    "fields", [{"cell": "gru"}, {"cell": "lstm", "layers": 2, "base": "seasonal_naive"}, {"cell": "elman"}]
)
def test_an_explanation_equals_the_library_and_conforms_to_the_document(
    slot_folder: Path, make_client: MakeClient, fields: dict[str, Any]
) -> None:
    predictor = publish_random_model(slot_folder, **fields)
    client = make_client(load=load_bundle)
    response = client.post("/v1/explain", json=explain_request(horizon=3, faithfulness=True))
    assert response.status_code == 200, response.text
    explanation, document = response.json(), client.get("/docs.json").json()
    assert schema_violations(explanation, response_schema(document, "post", "/v1/explain", 200), document) == []
    assert all(math.isfinite(number) for number in all_finite_numbers(explanation))
    y = make_wave(40)
    y[35] = np.nan
    expected = explain(predictor.fitted_model, make_series(y), horizon=3, faithfulness=True)
    np.testing.assert_allclose(explanation["attribution"], expected.attribution, rtol=1e-4, atol=1e-6)
    assert explanation["half_life"] == pytest.approx(expected.half_life, rel=1e-4)
    assert [set(layer["gates"]) for layer in explanation["layers"]] == [set(layer.gates) for layer in expected.layers]
    assert explanation["y"][-5] is None
    assert explanation["ds"] == [timestamp.isoformat() for timestamp in expected.ds]
    assert explanation["future_ds"] == [timestamp.isoformat() for timestamp in expected.future_ds]
    assert explanation["reference"] == pytest.approx(expected.reference)
    assert explanation["completeness_error"] <= 0.01
    assert expected.faithfulness is not None
    assert explanation["faithfulness"]["aopcr"] == pytest.approx(dict(expected.faithfulness.aopcr), rel=1e-3, abs=1e-5)
    assert len(explanation["faithfulness"]["drops"]["occlusion"]) == len(explanation["faithfulness"]["shares"]) == 10
    assert set(explanation["methods"]) == {"half_life", "gates", "attribution", "faithfulness"}
    assert response.headers["x-model"] == "small/1"


def test_faithfulness_is_measured_on_request_only(slot_folder: Path, make_client: MakeClient) -> None:
    publish_random_model(slot_folder)
    response = make_client(load=load_bundle).post("/v1/explain", json=explain_request())
    assert response.json()["faithfulness"] is None
    assert len(response.json()["attribution"]) == 16


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"steps": 1025}, "invalid_request"),
        ({"steps": 0}, "invalid_request"),
        ({"horizon": 10_000}, "horizon_out_of_range"),
        ({"series": [series_payload()]}, "invalid_request"),
        ({"series": series_payload(y=[1.0])}, "history_too_short"),
        ({"series": series_payload(freq="D", y=[1.0] * 20)}, "frequency_mismatch"),
    ],
)
def test_a_forecast_that_cannot_be_explained_is_rejected(
    slot_folder: Path, make_client: MakeClient, fields: dict[str, Any], code: str
) -> None:
    publish_random_model(slot_folder)
    response = make_client(load=load_bundle).post("/v1/explain", json=explain_request(**fields))
    assert (response.status_code, response.json()["error"]["code"]) == (422, code)


def test_without_torch_the_response_is_a_501_that_names_the_extra(
    slot_folder: Path, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_random_model(slot_folder)
    client = make_client(load=load_bundle)
    monkeypatch.setitem(sys.modules, "torch", None)
    explain_route._load_fitted_model.cache_clear()
    response = client.post("/v1/explain", json=explain_request())
    assert (response.status_code, response.json()["error"]["code"]) == (501, "missing_package")
    assert "pip install 'recurrent-forecaster[train]'" in response.json()["error"]["message"]


def test_a_bundle_that_cannot_be_reloaded_is_a_503(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)  # the stub's bundle is not a valid one
    response = make_client().post("/v1/explain", json=explain_request())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
