"""Requests of the client: values are validated once, and not copied on the way from a frame to JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.client.batches import MODEL_REQUEST, ForecastQuery, FrameQuery, forecast_batch, forecast_frame
from forecaster.client.transport import HttpRequest, HttpResponse, RetryPolicy
from forecaster.data.batching import take_last
from forecaster.data.frames.panel import to_panel
from forecaster.errors import InputError
from forecaster.series import Series
from tests.factories import START, make_wave

QUERY = ForecastQuery(3, (0.9,), 2.5)


ALL_COLUMNS = {"covariates": ["x"], "static": [], "group": None, "channels": ["x"]}


def encode(*series: Series, spec: Mapping[str, Any] = ALL_COLUMNS) -> HttpRequest:
    """Returns the request for series, to a service whose model has this specification."""
    exchange = forecast_batch(series, QUERY, RetryPolicy())
    request = next(exchange)
    if request == MODEL_REQUEST:
        request = exchange.send(HttpResponse(200, {}, json.dumps({"spec": spec}).encode()))
    assert isinstance(request, HttpRequest)
    return request


def test_a_sorted_frame_becomes_series_that_share_its_memory() -> None:
    timestamps = pd.date_range(START, periods=30, freq="h")
    values = np.concatenate([make_wave(30), make_wave(30, seed=1)])
    frame = pd.DataFrame(
        {"unique_id": ["a"] * 30 + ["b"] * 30, "ds": [*timestamps, *timestamps], "y": values, "x": values}
    )
    panel = to_panel(frame, covariates=["x"])
    for series in panel.series:
        assert np.shares_memory(series.y, frame["y"].to_numpy())
        assert np.shares_memory(series.covariates["x"], frame["x"].to_numpy())
        assert np.shares_memory(take_last(series, 12).y, series.y)


def test_missing_values_are_null_in_a_request() -> None:
    gappy = make_wave(6)
    gappy[[0, 4]] = np.nan
    body = encode(Series("a", START, "h", gappy, channels={"x": gappy})).body
    assert body is not None
    request = json.loads(body)
    expected = [None if np.isnan(value) else value for value in gappy.tolist()]
    assert [(each["y"], each["channels"]) for each in request["series"]] == [(expected, {"x": expected})]
    assert (request["horizon"], request["levels"], request["deadline_ms"]) == (3, [0.9], 2500)
    assert np.isnan(gappy).sum() == 2, "the values of the series are unchanged"


@pytest.mark.parametrize("name", ["y", "channels", "covariates"])
def test_an_infinite_value_is_rejected(name: str) -> None:
    infinite = make_wave(6)
    infinite[2] = -np.inf
    columns = {"y": infinite} if name == "y" else {"y": make_wave(6), name: {"x": infinite}}
    with pytest.raises(InputError, match="found an infinite one"):
        encode(Series("a", START, "h", **columns))


def test_only_the_columns_that_the_model_reads_are_sent() -> None:
    columns = {name: np.arange(6.0) for name in ("x", "other")}
    static = {"region": "north", "size": "s", "colour": "red"}
    spec = {"covariates": ["x"], "static": ["region"], "group": "size", "channels": []}
    body = encode(Series("a", START, "h", make_wave(6), columns, static, columns), spec=spec).body
    assert body is not None
    [sent] = json.loads(body)["series"]
    assert (list(sent["covariates"]), sent["static"]) == (["x"], {"region": "north", "size": "s"})
    assert "channels" not in sent


@pytest.mark.parametrize(
    ("fields", "sent"), [({"text_covariates": ["promo"]}, "10"), ({"text_covariates": []}, 10), ({}, 10)]
)
def test_a_covariate_is_sent_with_the_type_that_the_model_has_learned(fields: dict[str, Any], sent: Any) -> None:
    timestamps = pd.date_range(START, periods=9, freq="h")
    frame = pd.DataFrame({"unique_id": "a", "ds": timestamps, "y": make_wave(9), "promo": 10})
    exchange = forecast_frame(frame, FrameQuery(3, (), "h", None, None, 1.0), RetryPolicy())
    assert next(exchange) == MODEL_REQUEST
    model = {"spec": {"covariates": ["promo"]}, **fields}
    request = exchange.send(HttpResponse(200, {}, json.dumps(model).encode()))
    assert isinstance(request, HttpRequest)
    assert request.body is not None
    assert json.loads(request.body)["series"][0]["covariates"]["promo"] == [sent] * 9
