"""Metrics, compared with another library and with slow loops."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from utilsforecast import losses

from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import seasonal_naive
from forecaster.evaluation.validation import compute_error_scale
from forecaster.metrics import mae, mse, nanmean, seasonal_error, smape
from forecaster.series import Forecast
from tests.factories import START, make_panel, make_series, make_wave

NAN = float("nan")
HORIZON = 6


def make_pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    actual, forecast = rng.normal(size=(5, HORIZON)), rng.normal(size=(5, HORIZON))
    actual[1, 2] = forecast[1, 2] = 0.0  # 0/0
    actual[2, 3] = 0.0
    return actual, forecast


def long_frame(**columns: np.ndarray) -> pd.DataFrame:
    rows, steps = next(iter(columns.values())).shape
    frame = pd.DataFrame({name: values.ravel() for name, values in columns.items()})
    frame.insert(0, "unique_id", np.repeat([f"series_{row}" for row in range(rows)], steps))
    frame.insert(1, "ds", np.tile(pd.date_range(START, periods=steps, freq="h"), rows))
    return frame


@pytest.mark.parametrize(
    ("metric", "reference", "factor"), [(mae, losses.mae, 1), (mse, losses.mse, 1), (smape, losses.smape, 200)]
)
def test_a_metric_equals_utilsforecast(
    metric, reference, factor
) -> None:  # its sMAPE is half of ours and not in percent
    actual, forecast = make_pairs()
    expected = reference(long_frame(y=actual, model=forecast), models=["model"])["model"].to_numpy()
    np.testing.assert_allclose(metric(actual, forecast), factor * expected, rtol=1e-12)


@pytest.mark.parametrize("season", [1, 4])
def test_backtest_scores_equal_utilsforecast(season: int) -> None:
    panel = make_panel(make_wave(40), 3 * make_wave(40, seed=1), make_wave(31, seed=2))
    result = backtest(panel, {"naive": seasonal_naive(3)}, horizon=HORIZON, windows=1, season=season)
    frame = result.to_frame().drop(columns=["cutoff", "step"])
    history = pd.concat(
        [
            pd.DataFrame({"unique_id": series.id, "ds": series.timestamps, "y": series.y})[:-HORIZON]
            for series in panel.series
        ]
    )
    scores = result.scores("naive")
    for name, reference in (("mase", losses.mase), ("rmsse", losses.rmsse)):
        expected = reference(frame, models=["naive"], seasonality=season, train_df=history)["naive"].mean()
        assert scores[name] == pytest.approx(expected, rel=1e-12), name
    assert scores["smape"] == pytest.approx(200 * losses.smape(frame, models=["naive"])["naive"].mean(), rel=1e-12)
    assert scores["mae"] == pytest.approx(losses.mae(frame, models=["naive"])["naive"].mean(), rel=1e-12)


def slow_mean(values: list[float]) -> float:
    observed = [value for value in values if not math.isnan(value)]
    return sum(observed) / len(observed) if observed else NAN


def slow_smape(actual: float, forecast: float) -> float:
    return (
        actual + forecast
        if math.isnan(actual + forecast)
        else 0.0
        if actual == forecast == 0
        else 200 * abs(actual - forecast) / (abs(actual) + abs(forecast))
    )


@pytest.mark.parametrize(
    ("fast", "slow"),
    [
        (mae, lambda actual, forecast: abs(actual - forecast)),
        (mse, lambda actual, forecast: (actual - forecast) ** 2),
        (smape, slow_smape),
    ],
)
def test_a_metric_ignores_missing_values(fast, slow) -> None:
    actual, forecast = make_pairs()
    actual[0, :2] = NAN
    forecast[3, 5] = NAN
    actual[4] = NAN
    expected = [
        slow_mean([slow(a, f) for a, f in zip(*row, strict=True)]) for row in zip(actual, forecast, strict=True)
    ]
    np.testing.assert_allclose(fast(actual, forecast), expected, rtol=1e-12)
    assert np.isnan(fast(actual, forecast)).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("season", [1, 3, 12])
def test_the_seasonal_error_equals_a_loop(season: int, power: int) -> None:
    y = make_wave(30)
    y[[4, 5, 17]] = NAN
    slow = slow_mean([abs(y[step] - y[step - season]) ** power for step in range(season, len(y))])
    assert seasonal_error(y, season=season, power=power) == pytest.approx(slow, rel=1e-12)


def test_there_is_no_seasonal_error_without_a_pair_that_differs() -> None:
    assert math.isnan(seasonal_error(np.ones(10), season=2))
    assert math.isnan(seasonal_error(make_wave(4), season=4))
    assert math.isnan(seasonal_error(np.full(10, NAN), season=1))
    assert math.isnan(seasonal_error(np.array([1.0, NAN, 2.0, NAN]), season=1))
    assert seasonal_error(np.array([1.0, 2.0, 1.0, 5.0]), season=2) == 1.5


def test_the_error_scale_falls_back_to_size_and_then_to_one() -> None:
    assert compute_error_scale(np.array([1.0, 2.0, 1.0, 5.0]), season=2) == 1.5
    assert compute_error_scale(np.full(5, -3.0), season=1) == 3.0
    assert compute_error_scale(np.zeros(5), season=1) == 1.0
    assert compute_error_scale(np.full(5, NAN), season=1) == 1.0


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (0, 1, 2)])
def test_the_nanmean_equals_numpy(axis: int | tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 5, 6))
    values[rng.random(values.shape) < 0.3] = NAN
    np.testing.assert_array_equal(nanmean(values, axis=axis), np.nanmean(values, axis=axis))


def test_the_mean_of_nothing_is_nan_without_a_warning() -> None:
    assert math.isnan(float(nanmean(np.array([NAN]))))
    assert nanmean(np.array([[1.0, NAN], [3.0, NAN]]), axis=0).tolist()[0] == 2.0


def slow_seasonal_naive(y: np.ndarray, season: int, horizon: int) -> list[float]:
    """Each step repeats the latest observed value that is a multiple of seasons earlier, else the last observed value."""
    forecasts = []
    for offset in range(horizon):
        index, forecast = len(y) + offset - season, NAN
        while index >= len(y):
            index -= season
        while index >= 0 and math.isnan(y[index]):
            index -= season
        if index >= 0:
            forecast = y[index]
        else:
            observed = [value for value in y if not math.isnan(value)]
            forecast = observed[-1] if observed else NAN
        forecasts.append(float(forecast))
    return forecasts


@pytest.mark.parametrize("season", [1, 2, 5, 7, 40])
@pytest.mark.parametrize("steps", [1, 4, 12, 23])
def test_the_seasonal_naive_forecast_equals_a_loop(season: int, steps: int) -> None:
    y = make_wave(steps)
    for gaps in ([], [steps - 1], list(range(steps // 2, steps))):
        with_gaps = y.copy()
        with_gaps[gaps] = NAN
        series = make_series(with_gaps, name="its own")
        [forecast] = seasonal_naive(season)([series], 17)
        assert isinstance(forecast, Forecast)
        assert forecast.id == "its own"
        assert forecast.ds.equals(series.future_timestamps(17))
        np.testing.assert_array_equal(forecast.mean, slow_seasonal_naive(with_gaps, season, 17))
