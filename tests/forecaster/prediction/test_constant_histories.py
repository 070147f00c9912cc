"""A constant history is forecast as that constant, with intervals of a minimum width and a warning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.calibration import add_quantiles, calibrate_on_backtest
from forecaster.evaluation.rolling_origins import forecast_all_origins
from forecaster.intervals.conformal import calibrate
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast
from forecaster.series.history_summary import constant_steps, find_constant
from tests.factories import make_fitted_model, make_panel, make_series, make_spec, make_wave

NAN = float("nan")


def make_model(**fields: Any) -> FittedModel:
    model = make_fitted_model(make_spec(**fields))
    errors = np.random.default_rng(0).normal(size=(20, 4, 5))
    return replace(model, calibration=calibrate(errors, np.ones(20)))


@pytest.mark.parametrize(
    ("y", "constant", "steps"),
    [
        ([5.0, 5.0], 5.0, 2),
        ([NAN, 5.0, NAN, 5.0, NAN], 5.0, 5),
        ([0.0, 0.0, -0.0], 0.0, 3),
        ([5.0, 5.0, 6.0], None, 2),
        ([5.0, 6.0, 5.0], None, 1),
        ([NAN, 5.0, NAN, 6.0], None, 3),
        ([NAN, 5.0], None, 2),
        ([5.0], None, 1),
        ([NAN, NAN], None, 2),
    ],
)
def test_a_constant_is_found_with_two_observed_values_or_more(
    y: list[float], constant: float | None, steps: int
) -> None:
    assert find_constant(np.array(y)) == constant
    assert constant_steps(np.array(y)) == steps


@pytest.mark.parametrize(
    ("scaling", "transform"),
    [
        *((scaling, "none") for scaling in ("none", "mean_abs", "standard", "last", "level_season")),
        *((scaling, "log") for scaling in ("none", "standard", "last", "level_season")),
    ],
)
@pytest.mark.parametrize("value", [5.0, -100.0, 1e9])
def test_a_constant_history_is_forecast_as_that_constant(scaling: str, transform: str, value: float) -> None:
    predictor = Predictor(make_model(scaling=scaling, transform=transform))
    forecast = predictor.forecast(make_series(np.full(20, value)), 7, levels=(0.1, 0.5, 0.9))
    assert forecast.mean.tolist() == [value] * 7
    [warning] = forecast.warnings
    assert f"all observed values are {value:g}" in warning
    assert not forecast.has_fallback


@pytest.mark.parametrize(("value", "unit"), [(5.0, 0.05), (-200.0, 2.0), (0.0, 0.01)])
def test_its_intervals_have_the_stated_minimum_width(value: float, unit: float) -> None:
    model = make_model()
    forecast = Predictor(model).forecast(make_series(np.full(20, value)), 5, levels=(0.1, 0.9))
    assert model.calibration is not None
    offsets = model.calibration.compute_offsets([0.1, 0.9], horizon=5, scales=np.array([unit]), groups=[None])[0]
    np.testing.assert_allclose(forecast.quantiles[0.1] - value, offsets[:, 0])
    np.testing.assert_allclose(forecast.quantiles[0.9] - value, offsets[:, 1])
    assert (forecast.quantiles[0.9] - forecast.quantiles[0.1] > unit).all()


def test_a_single_observed_value_has_intervals_of_the_minimum_width() -> None:
    predictor = Predictor(make_model(min_history=1))
    forecast = predictor.forecast(make_series(np.array([50.0])), 3, levels=(0.1, 0.9))
    assert forecast.warnings == ()
    assert (forecast.quantiles[0.9] - forecast.quantiles[0.1] > 0.5).all()
    assert predictor.compute_scale(np.array([50.0])) == 0


def test_the_other_series_of_a_batch_are_unchanged() -> None:
    predictor = Predictor(make_model())
    others = [make_series(make_wave(20)), make_series(np.append(np.full(19, 5.0), 5.001))]
    constant = make_series(np.full(20, 5.0), name="c")
    batch = predictor.forecast_batch([others[0], constant, others[1]], 5, levels=(0.9,))
    for outcome, series in zip((batch[0], batch[2]), others, strict=True):
        assert isinstance(outcome, Forecast)
        alone = predictor.forecast(series, 5, levels=(0.9,))
        np.testing.assert_array_equal(outcome.mean, alone.mean)
        assert outcome.warnings == alone.warnings == ()
        assert np.ptp(outcome.mean) > 0
    [scenario] = predictor.forecast_scenarios([constant], 5)
    assert isinstance(scenario, Forecast)
    assert isinstance(batch[1], Forecast)
    np.testing.assert_array_equal(scenario.mean, batch[1].mean)


def test_a_truncated_history_counts_with_the_steps_that_it_has_dropped() -> None:
    predictor = Predictor(make_model())
    tail = np.full(40, 5.0)
    constant, other = (make_series(np.append(np.full(40, value), tail)) for value in (5.0, 4.0))
    for series, expected in ((constant, 5.0), (other, None)):
        truncated = predictor.truncate_history(series)
        assert len(truncated) < len(series)
        assert find_constant(truncated.y, truncated.history_summary) == expected
        whole, rest = (predictor.forecast(item, 5) for item in (series, truncated))
        np.testing.assert_allclose(whole.mean, rest.mean, rtol=1e-6)


@pytest.mark.parametrize("reads", ["window", "history"])
def test_a_backtest_forecasts_constant_histories_as_the_predictor_does(reads: str) -> None:
    predictor = Predictor(make_model(scaling="mean_abs", reads=reads))
    start, gappy = np.append(np.full(40, 5.0), make_wave(20)), np.full(60, 7.0)
    gappy[::3] = NAN
    panel = make_panel(start, gappy, make_wave(60))
    forecasts = forecast_all_origins(predictor, panel.series, horizon=5, windows=6)
    for row, series in enumerate(panel.series):
        for window in range(6):
            steps = len(series) - 5 * (6 - window)
            expected = predictor.forecast(series.take_first(steps), 5).mean
            np.testing.assert_allclose(forecasts[row, window], expected, rtol=1e-5)
    assert (forecasts[0, :2] == 5).all()
    assert (forecasts[1] == 7).all()


def test_backtested_intervals_have_the_minimum_width_and_calibrations_ignore_constant_histories() -> None:
    model, panel = make_model(), make_panel(np.full(60, 5.0), make_wave(60))
    result = backtest(panel, {"net": Predictor(model)}, horizon=5, windows=3, season=4)
    quantiles = add_quantiles(result, {"net": model}, levels=(0.1, 0.9)).quantiles["net"]
    served = Predictor(model).forecast(make_series(np.full(55, 5.0)), 5, levels=(0.1, 0.9)).quantiles
    np.testing.assert_allclose(quantiles[0, -1, :, 0], served[0.1])
    calibration = calibrate_on_backtest(model, result, "net").calibration
    assert calibration is not None
    assert calibration.pool.windows == 3, "only those of the wave"
