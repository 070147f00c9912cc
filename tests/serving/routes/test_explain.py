"""An explanation over HTTP is that of the library, finite, and as the document says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.explain.attribution import explain
from serving.deployment.slot import load_bundle
from tests.factories import START, one_series, wave
from tests.serving.conftest import MakeClient, publish_stub, series
from tests.serving.routes.test_openapi import faults, schema_of
from tests.serving.test_client import publish_real


def asked(**fields: Any) -> dict[str, Any]:
    y: list[float | None] = list(wave(40))
    y[35] = None
    return {"series": series(start=START.isoformat(), y=y), **fields}


def all_numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for one in value for number in all_numbers(one)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize(
    "fields", [{"cell": "gru"}, {"cell": "lstm", "layers": 2, "base": "seasonal_naive"}, {"cell": "elman"}]
)
def test_an_explanation_is_that_of_the_library_and_as_documented(
    slot_folder: Path, make_client: MakeClient, fields: dict[str, Any]
) -> None:
    predictor = publish_real(slot_folder, **fields)
    client = make_client(load=load_bundle)
    answer = client.post("/v1/explain", json=asked(horizon=3))
    assert answer.status_code == 200, answer.text
    told, document = answer.json(), client.get("/docs.json").json()
    assert faults(told, schema_of(document, "post", "/v1/explain", 200), document) == []
    assert all(math.isfinite(number) for number in all_numbers(told))
    y = wave(40)
    y[35] = np.nan
    ours = explain(predictor.forecaster, one_series(y), horizon=3)
    np.testing.assert_allclose(told["attribution"], ours.attribution, rtol=1e-4, atol=1e-6)
    assert told["half_life"] == pytest.approx(ours.half_life, rel=1e-4)
    assert [set(layer["gates"]) for layer in told["layers"]] == [set(layer.gates) for layer in ours.layers]
    assert told["y"][-5] is None
    assert told["ds"] == [stamp.isoformat() for stamp in ours.ds]
    assert set(told["methods"]) == {"half_life", "gates", "attribution"}
    assert answer.headers["x-model"] == "small/1"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"steps": 1025}, "invalid_request"),
        ({"steps": 0}, "invalid_request"),
        ({"horizon": 10_000}, "horizon_out_of_range"),
        ({"series": [series()]}, "invalid_request"),
        ({"series": series(y=[1.0])}, "history_too_short"),
        ({"series": series(freq="D", y=[1.0] * 20)}, "frequency_mismatch"),
    ],
)
def test_what_has_no_explanation_is_refused(
    slot_folder: Path, make_client: MakeClient, fields: dict[str, Any], code: str
) -> None:
    publish_real(slot_folder)
    answer = make_client(load=load_bundle).post("/v1/explain", json=asked(**fields))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)


def test_a_bundle_that_cannot_be_read_again_is_no_5xx_but_503(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)  # the stub's bundle is none of ours
    answer = make_client().post("/v1/explain", json=asked())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
