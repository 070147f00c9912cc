"""Tests of the predictor: validation of histories, its errors, and independence of the series of a batch."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.errors import FrequencyMismatch, HistoryTooShort, HorizonOutOfRange, NotANumber, ValueOutOfRange
from forecaster.prediction import predictor as predictor_module
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast, Series
from tests.factories import START, make_fitted_model, make_network, make_series, make_spec, make_wave


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(make_fitted_model(make_spec()))


@pytest.mark.parametrize("horizon", [0, -1])
def test_a_horizon_below_one_is_out_of_range(predictor: Predictor, horizon: int) -> None:
    with pytest.raises(HorizonOutOfRange, match=f"at least 1 step; found {horizon}") as error:
        predictor.forecast_batch([make_series(make_wave(20))], horizon)
    assert error.value.where == "horizon"


def test_no_series_give_no_forecasts(predictor: Predictor) -> None:
    assert predictor.forecast_batch([], 3) == []


@pytest.mark.parametrize(
    ("series", "kind", "parts"),
    [
        (
            make_series(make_wave(3), name="m"),
            HistoryTooShort,
            ["'m' has 3 steps", "at least 4", "Send a longer history"],
        ),
        (
            make_series(make_wave(9), name="m", freq="D"),
            FrequencyMismatch,
            ["'m' has the frequency 'D'", "needs 'h'"],
        ),
        (
            make_series(np.append(make_wave(9), -np.inf), name="m"),
            NotANumber,
            ["'m' holds an infinite value", "send null"],
        ),
        (make_series(np.full(9, np.nan), name="m"), HistoryTooShort, ["'m' has no observed value among its last 16"]),
    ],
)
def test_the_error_for_an_unusable_history_gives_the_reason(
    predictor: Predictor, series: Series, kind: type[Exception], parts: list[str]
) -> None:
    [outcome] = predictor.forecast_batch([series], 3)
    assert type(outcome) is kind
    assert outcome.where == "m"
    for part in parts:
        assert part in outcome.message
    with pytest.raises(kind):
        predictor.forecast(series, 3)


def test_two_aliases_of_a_frequency_are_equal(predictor: Predictor) -> None:
    aliased = Series("a", START, "60min", make_wave(20))
    assert np.array_equal(predictor.forecast(aliased, 3).mean, predictor.forecast(make_series(make_wave(20)), 3).mean)


def test_a_forecast_has_the_id_and_the_following_timestamps_in_the_zone_of_the_series(predictor: Predictor) -> None:
    start = pd.Timestamp("2026-03-28 20:00", tz="Europe/Berlin")
    forecast = predictor.forecast(Series("m", start, "h", make_wave(5)), 4)
    assert forecast.id == "m"
    assert forecast.ds.equals(pd.date_range(start, periods=9, freq="h")[5:])
    assert str(forecast.ds.tz) == "Europe/Berlin"


def test_a_history_with_overflowing_values_is_rejected_without_affecting_others(predictor: Predictor) -> None:
    [error, forecast] = predictor.forecast_batch(
        [make_series(1e200 * make_wave(20), name="m"), make_series(make_wave(20), name="valid")], 5
    )
    assert isinstance(error, ValueOutOfRange)
    assert error.where == "m"
    np.testing.assert_allclose(forecast.mean, predictor.forecast(make_series(make_wave(20)), 5).mean, rtol=1e-6)


def test_a_diverging_rollout_falls_back_to_seasonal_naive_with_a_warning_for_that_series_only() -> None:
    spec = make_spec(scaling="none", base="last", season=4)
    network = make_network(spec)
    with torch.no_grad():  # a large last value is doubled at each step
        for weight in network.parameters():
            weight.zero_()
        network.recurrent.layers[0].weight_ih_l0[2 * 6 :, 0] = 1.0
        network.output.weight.fill_(1e6)
    predictor = Predictor(FittedModel(spec, "h", 4, START, EMPTY_ENCODING, network))
    history = np.array([1.0, 2.0, 3.0, 4.0] * 4)
    [diverging, stable] = predictor.forecast_batch(
        [make_series(history, name="diverging"), make_series(np.zeros(16), name="stable")], 7
    )
    assert diverging.mean.tolist() == [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0]
    assert "step 1 of 7" in diverging.warnings[0]
    assert "seasonal naive" in diverging.warnings[0]
    assert stable.mean.tolist() == [0.0] * 7
    assert (diverging.has_fallback, stable.has_fallback) == (True, False)


def test_a_predictor_does_not_modify_the_history(predictor: Predictor) -> None:
    y = make_wave(20)
    y[3] = np.nan
    series = make_series(y)
    before = series.y.copy()
    predictor.forecast(series, 5)
    np.testing.assert_array_equal(series.y, before)


@pytest.mark.parametrize("excluded", [{}, {"s1", "s2", "empty"}])  # these series disable the fast check of the batch
def test_batch_validation_gives_the_same_outcomes_as_single_series(predictor: Predictor, excluded: set[str]) -> None:
    values = [make_wave(20, seed=index) for index in range(6)]
    values[1][3] = np.inf
    values[2][5] = 1e101
    values[3][-16:] = np.nan
    values[4][2:9] = np.nan
    series = [make_series(y, name=f"s{index}") for index, y in enumerate(values)]
    series += [make_series(make_wave(2), name="short"), make_series(np.zeros(0), name="empty")]
    series += [
        make_series(make_wave(20), name="daily", freq="D"),
        Series("late", pd.Timestamp("9999-12-31T03:00"), "h", make_wave(20)),
    ]
    series = [item for item in series if item.id not in excluded]
    outcomes = predictor.forecast_batch(series, 5)
    for item, outcome in zip(series, outcomes, strict=True):
        [expected] = predictor.forecast_batch([item], 5)
        if isinstance(expected, Forecast):
            assert isinstance(outcome, Forecast)
            assert (outcome.id, list(outcome.ds)) == (expected.id, list(expected.ds))
            assert np.allclose(outcome.mean, expected.mean, rtol=1e-5)
        else:
            assert (type(outcome), str(outcome)) == (type(expected), str(expected))
    assert sum(isinstance(outcome, Forecast) for outcome in outcomes) == 3


def test_many_series_are_forecast_in_parts_with_the_same_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(make_fitted_model(make_spec()))
    series = [make_series(make_wave(30 + index, seed=index), name=f"s{index}") for index in range(7)]
    series[3] = make_series(np.full(30, np.nan), name="s3")
    expected = predictor.forecast_batch(series, 4)
    monkeypatch.setattr(predictor_module, "MAX_SERIES_AT_ONCE", 3)
    for outcome, other in zip(predictor.forecast_batch(series, 4), expected, strict=True):
        assert type(outcome) is type(other)
        if isinstance(outcome, Forecast) and isinstance(other, Forecast):
            assert outcome.id == other.id
            np.testing.assert_array_equal(outcome.mean, other.mean)
