"""Metrics against another library and against slow obvious loops."""

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
    draw = np.random.default_rng(3)
    actual, forecast = draw.normal(size=(5, HORIZON)), draw.normal(size=(5, HORIZON))
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
    ("ours", "theirs", "factor"), [(mae, losses.mae, 1), (mse, losses.mse, 1), (smape, losses.smape, 200)]
)
def test_a_metric_equals_utilsforecast(ours, theirs, factor) -> None:  # theirs halves sMAPE and has no percents
    actual, forecast = make_pairs()
    expected = theirs(long_frame(y=actual, model=forecast), models=["model"])["model"].to_numpy()
    np.testing.assert_allclose(ours(actual, forecast), factor * expected, rtol=1e-12)


@pytest.mark.parametrize("season", [1, 4])
def test_backtest_scores_equal_utilsforecast(season: int) -> None:
    panel = make_panel(make_wave(40), 3 * make_wave(40, seed=1), make_wave(31, seed=2))
    result = backtest(panel, {"naive": seasonal_naive(3)}, horizon=HORIZON, windows=1, season=season)
    frame = result.to_frame().drop(columns=["cutoff", "step"])
    known = pd.concat(
        [pd.DataFrame({"unique_id": one.id, "ds": one.timestamps, "y": one.y})[:-HORIZON] for one in panel.series]
    )
    found = result.scores("naive")
    for name, theirs in (("mase", losses.mase), ("rmsse", losses.rmsse)):
        expected = theirs(frame, models=["naive"], seasonality=season, train_df=known)["naive"].mean()
        assert found[name] == pytest.approx(expected, rel=1e-12), name
    assert found["smape"] == pytest.approx(200 * losses.smape(frame, models=["naive"])["naive"].mean(), rel=1e-12)
    assert found["mae"] == pytest.approx(losses.mae(frame, models=["naive"])["naive"].mean(), rel=1e-12)


def slow_mean(values: list[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else NAN


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
    [(mae, lambda a, f: abs(a - f)), (mse, lambda a, f: (a - f) ** 2), (smape, slow_smape)],
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
    draw = np.random.default_rng(0)
    values = draw.normal(size=(4, 5, 6))
    values[draw.random(values.shape) < 0.3] = NAN
    np.testing.assert_array_equal(nanmean(values, axis=axis), np.nanmean(values, axis=axis))


def test_the_mean_of_nothing_is_nan_without_a_warning() -> None:
    assert math.isnan(float(nanmean(np.array([NAN]))))
    assert nanmean(np.array([[1.0, NAN], [3.0, NAN]]), axis=0).tolist()[0] == 2.0


def slow_seasonal_naive(y: np.ndarray, season: int, horizon: int) -> list[float]:
    """Each step repeats the latest observed value a whole number of seasons before it; else the last one observed."""
    answers = []
    for ahead in range(horizon):
        place, answer = len(y) + ahead - season, NAN
        while place >= len(y):
            place -= season
        while place >= 0 and math.isnan(y[place]):
            place -= season
        if place >= 0:
            answer = y[place]
        else:
            seen = [value for value in y if not math.isnan(value)]
            answer = seen[-1] if seen else NAN
        answers.append(float(answer))
    return answers


@pytest.mark.parametrize("season", [1, 2, 5, 7, 40])
@pytest.mark.parametrize("steps", [1, 4, 12, 23])
def test_the_seasonal_naive_forecast_equals_a_loop(season: int, steps: int) -> None:
    y = make_wave(steps)
    for gaps in ([], [steps - 1], list(range(steps // 2, steps))):
        gappy = y.copy()
        gappy[gaps] = NAN
        one = make_series(gappy, name="its own")
        [found] = seasonal_naive(season)([one], 17)
        assert isinstance(found, Forecast)
        assert found.id == "its own"
        assert found.ds.equals(one.future_timestamps(17))
        np.testing.assert_array_equal(found.mean, slow_seasonal_naive(gappy, season, 17))
