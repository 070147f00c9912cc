"""Requests of the client: values are validated once, and not copied on the way from a frame to JSON."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from forecaster.client.batches import ForecastQuery, forecast_batch
from forecaster.client.transport import HttpRequest, RetryPolicy
from forecaster.data.batching import take_last
from forecaster.data.frames.panel import to_panel
from forecaster.errors import InputError
from forecaster.series import Series
from tests.factories import START, make_wave

QUERY = ForecastQuery(3, (0.9,), 2.5)


def encode(*series: Series) -> HttpRequest:
    request = next(forecast_batch(series, QUERY, RetryPolicy()))
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
