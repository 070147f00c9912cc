"""A blend over HTTP: every answer says that it is one, and one that cannot be fitted here is never in use."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.frequency import tell
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Series
from forecaster.statistical.blend import NETWORK
from serving.deployment.slot import Release, load_bundle, publish, staging
from tests.factories import make_forecaster, make_spec, one_series, wave
from tests.serving.conftest import Client, LastValue, MakeClient, StubForecaster, publish_stub, series
from tests.serving.routes.test_openapi import faults, schema_of

THETA = "dynamic_optimized_theta"
WEIGHTS = {NETWORK: 0.62, THETA: 0.38}
ASKED = {"series": [series(), series(id="b")], "horizon": 2}


def load_blend(_: Path) -> LastValue:
    return LastValue(StubForecaster(blend=WEIGHTS))


def asked(one: Series) -> dict[str, Any]:
    y = [None if np.isnan(value) else float(value) for value in one.y]
    return {"id": one.id, "start": tell(one.start), "freq": one.freq, "y": y}


def publish_bundle(slot: Path, forecaster: Forecaster) -> None:
    with staging(slot) as draft:
        digest = artifact.save(forecaster, draft / "bundle", card="# a blend\n")
        publish(slot, draft / "bundle", Release(name="small", version="1", digest=digest))


def blending() -> Forecaster:
    return replace(make_forecaster(make_spec(blend=[THETA])), blend=WEIGHTS)


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [("POST", "/v1/forecast", ASKED), ("GET", "/v1/model", None), ("GET", "/readyz", None)],
)
def test_every_answer_of_a_blend_says_so_as_documented(
    slot_folder: Path, make_client: MakeClient, method: str, path: str, content: Any
) -> None:
    publish_stub(slot_folder)
    client = make_client(load=load_blend)
    answer = client.request(method, path, json=content)
    assert answer.status_code == 200
    assert answer.json()["model"]["blend"] == WEIGHTS
    assert answer.headers["x-model-blend"] == "network=0.62, dynamic_optimized_theta=0.38"
    document = client.get("/docs.json").json()
    assert faults(answer.json(), schema_of(document, method, path, 200), document) == []


def test_the_answer_of_what_is_no_blend_is_as_ever(client: Client) -> None:
    for answer in (client.post("/v1/forecast", json=ASKED), client.get("/v1/model"), client.get("/readyz")):
        assert set(answer.json()["model"]) == {"name", "version", "digest"}


def test_a_bundle_of_a_blend_is_served_as_the_library_says(slot_folder: Path, make_client: MakeClient) -> None:
    pytest.importorskip("statsforecast")
    publish_bundle(slot_folder, blending())
    client = make_client(load=load_bundle)
    whole, short = one_series(wave(40), name="whole"), one_series(wave(4, seed=1), name="short")
    short.y[:2] = np.nan
    told = client.post("/v1/forecast", json={"series": [asked(whole), asked(short)], "horizon": 5}).json()
    assert told["model"]["blend"] == WEIGHTS
    for one, found in zip((whole, short), told["forecasts"], strict=True):
        expected = Predictor(blending()).forecast(one, 5)
        np.testing.assert_allclose(found["mean"], expected.mean, rtol=1e-5)
        assert found["warnings"] == list(expected.warnings)
    assert told["forecasts"][0]["warnings"] == []
    assert THETA in told["forecasts"][1]["warnings"][0]


def test_a_blend_that_cannot_be_fitted_here_is_never_in_use(
    slot_folder: Path, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("statsforecast")
    publish_bundle(slot_folder, blending())
    monkeypatch.setitem(sys.modules, "statsforecast", None)
    monkeypatch.setitem(sys.modules, "statsforecast.models", None)
    with caplog.at_level(logging.ERROR):
        client = make_client(load=load_bundle)
    assert client.get("/readyz").status_code == 503
    assert "forecaster[baselines]" in caplog.text
