"""Tests of the statistical models and baselines, and of histories that they cannot be fitted to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from forecaster.engines.statistical import models as module
from forecaster.engines.statistical.models import (
    STATISTICAL_MODELS,
    STATSFORECAST_CLASSES,
    FitTask,
    forecast_tasks,
    interpolate_gaps,
    naive2,
)
from forecaster.errors import InputError, MissingPackage, TrainingError
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import seasonal_naive, statistical_baseline
from forecaster.series import Forecast, Series
from tests.elsewhere import run_elsewhere
from tests.factories import START, make_panel, make_series, make_wave

pytestmark = pytest.mark.integration

NAN = float("nan")
CHECKOUT = Path(__file__).parents[4]
SEASON, HORIZON = 4, 6


def make_seasonal_values(steps: int, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 20 + 0.1 * np.arange(steps) + np.resize([5.0, -1.0, -6.0, 2.0], steps) + rng.normal(size=steps)


def predict_baseline(name: str, *values: np.ndarray, horizon: int = HORIZON, season: int = SEASON) -> list[Forecast]:
    series = [make_series(y, name=f"s{index}") for index, y in enumerate(values)]
    forecasts = statistical_baseline(name, season=season)(series, horizon)
    assert all(isinstance(forecast, Forecast) for forecast in forecasts)
    return forecasts  # type: ignore[return-value]


@pytest.mark.parametrize("name", sorted(STATSFORECAST_CLASSES))
def test_a_baseline_equals_statsforecast(name: str) -> None:
    models = pytest.importorskip("statsforecast.models")
    histories = [make_seasonal_values(40), make_seasonal_values(33, seed=1)]
    for forecast, y in zip(predict_baseline(name, *histories), histories, strict=True):
        expected = getattr(models, STATSFORECAST_CLASSES[name])(season_length=SEASON).forecast(y, HORIZON)["mean"]
        np.testing.assert_array_equal(forecast.mean, expected)
        assert not forecast.warnings
        assert forecast.ds.equals(make_series(y).future_timestamps(HORIZON))


@pytest.mark.parametrize("name", ["naive2", "dynamic_optimized_theta"])
def test_gaps_are_interpolated_before_the_fit_and_trailing_gaps_are_forecast(name: str) -> None:
    values = make_seasonal_values(40)
    values_with_gaps = np.concatenate([[NAN, NAN], values, [NAN, NAN, NAN]])
    values_with_gaps[[12, 20, 21]] = NAN
    interpolated = values.copy()
    interpolated[10] = (values[9] + values[11]) / 2
    interpolated[[18, 19]] = np.linspace(values[17], values[20], 4)[1:3]
    [forecast], [expected] = (
        predict_baseline(name, values_with_gaps),
        predict_baseline(name, interpolated, horizon=HORIZON + 3),
    )
    np.testing.assert_allclose(forecast.mean, expected.mean[3:])
    assert not forecast.warnings


def test_interpolation_covers_the_first_to_the_last_observed_value() -> None:
    assert interpolate_gaps(np.array([NAN, 1.0, NAN, NAN, 4.0, 2.0, NAN])).tolist() == [1.0, 2.0, 3.0, 4.0, 2.0]
    assert interpolate_gaps(np.array([NAN, NAN])).tolist() == []
    assert interpolate_gaps(np.array([3.0])).tolist() == [3.0]


@pytest.mark.parametrize("name", ["auto_ets", "dynamic_optimized_theta"])
def test_a_history_that_cannot_be_fitted_falls_back_to_seasonal_naive_with_a_warning(name: str) -> None:
    good, short, empty = make_seasonal_values(30), np.array([1.0, 2.0]), np.full(5, NAN)
    forecasts = predict_baseline(name, short, good, empty)
    for forecast, y, reason in (
        (forecasts[0], short, "NotImplementedError: tiny datasets"),
        (forecasts[2], empty, "nothing was"),
    ):
        [naive] = seasonal_naive(SEASON)([make_series(y)], HORIZON)
        np.testing.assert_array_equal(forecast.mean, naive.mean)  # type: ignore[union-attr]
        [warning] = forecast.warnings
        assert f"{name} could not be fitted ({reason}" in warning
        assert "the seasonal naive forecast is used instead" in warning
    np.testing.assert_array_equal(forecasts[1].mean, predict_baseline(name, good)[0].mean)
    assert not forecasts[1].warnings


def test_a_non_finite_forecast_is_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "naive2", lambda y, *, season, horizon: np.append(np.ones(horizon - 1), np.inf))
    [forecast] = predict_baseline("naive2", make_seasonal_values(20))
    assert np.isfinite(forecast.mean).all()
    assert "not finite" in forecast.warnings[0]


def test_a_backtest_keeps_the_warnings_of_its_baselines() -> None:
    forecasters = {
        "seasonal_naive": seasonal_naive(SEASON),
        "theta": statistical_baseline("dynamic_optimized_theta", season=SEASON),
    }
    result = backtest(
        make_panel(make_seasonal_values(30), make_seasonal_values(8)), forecasters, horizon=2, windows=3, season=SEASON
    )
    assert list(result.warnings) == ["theta"]
    assert len(result.warnings["theta"]) == 1
    assert result.warnings["theta"][0].startswith("series 'series_1': dynamic_optimized_theta could not")
    np.testing.assert_array_equal(result.forecasts["theta"][1, 0], result.forecasts["seasonal_naive"][1, 0])


def test_parallel_processes_give_the_same_results_in_the_same_order() -> None:
    histories = [make_seasonal_values(20 + index, seed=index) for index in range(5)]
    series = [Series(f"s{index}", START, "h", y) for index, y in enumerate([*histories, np.ones(1)])]
    progress_calls: list[tuple[int, int]] = []
    sequential = statistical_baseline("naive2", season=SEASON)(series, HORIZON)
    parallel_baseline = statistical_baseline(
        "naive2", season=SEASON, jobs=2, progress=lambda *counts: progress_calls.append(counts)
    )
    for forecast, expected in zip(parallel_baseline(series, HORIZON), sequential, strict=True):
        assert isinstance(forecast, Forecast)
        assert isinstance(expected, Forecast)
        assert forecast.id == expected.id
        np.testing.assert_array_equal(forecast.mean, expected.mean)
    assert progress_calls == [(done, 6) for done in range(1, 7)]


def test_histories_that_are_fitted_elsewhere_have_the_same_forecasts_in_the_same_order() -> None:
    tasks = [FitTask("naive2", make_seasonal_values(20 + index, seed=index), SEASON, HORIZON) for index in range(40)]
    tasks[20] = FitTask("naive2", np.full(3, np.nan), SEASON, HORIZON)
    expected, found = list(forecast_tasks(tasks)), list(forecast_tasks(tasks, run_steps=run_elsewhere))
    assert found[20] == expected[20] == "nothing was observed"
    np.testing.assert_array_equal(np.stack(found[:20] + found[21:]), np.stack(expected[:20] + expected[21:]))


def test_a_process_that_fits_baselines_does_not_import_torch() -> None:
    modules = "forecaster.evaluation.baselines, forecaster.engines.statistical.blend"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=False).returncode == 0


def test_a_killed_worker_process_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenPool:
        def __init__(self, *arguments: object, **options: object) -> None: ...

        def __enter__(self) -> BrokenPool:
            return self

        def __exit__(self, *error: object) -> None: ...

        def map(self, *arguments: object, **options: object) -> None:
            raise module.BrokenProcessPool("ended")

    monkeypatch.setattr(module, "ProcessPoolExecutor", BrokenPool)
    with pytest.raises(TrainingError, match="fewer --jobs"):
        statistical_baseline("naive2", season=1, jobs=2)([make_series(make_wave(5)), make_series(make_wave(6))], 2)


def test_a_baseline_without_its_package_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsforecast", None)
    monkeypatch.setitem(sys.modules, "statsforecast.models", None)
    with pytest.raises(MissingPackage, match=r"recurrent-forecaster\[baselines\]"):
        statistical_baseline("auto_ets", season=1)
    assert predict_baseline("naive2", make_wave(5)), "Naive 2 needs no package"


def test_an_unknown_baseline_is_rejected() -> None:
    with pytest.raises(InputError, match=f"{', '.join(STATISTICAL_MODELS)}; found 'prophet'"):
        statistical_baseline("prophet", season=1)


def slow_naive2(y: np.ndarray, season: int, horizon: int) -> list[float]:
    """Naive 2 by classical decomposition, one value at a time."""
    n = len(y)
    mean = sum(y) / n
    sum_of_squares = sum((value - mean) ** 2 for value in y)
    autocorrelations = [
        sum((y[t] - mean) * (y[t - lag] - mean) for t in range(lag, n)) / sum_of_squares for lag in range(1, season + 1)
    ]
    limit = 1.645 * ((1 + 2 * sum(autocorrelation**2 for autocorrelation in autocorrelations[:-1])) / n) ** 0.5
    if abs(autocorrelations[-1]) <= limit:
        return [float(y[-1])] * horizon
    ratios: list[list[float]] = [[] for _ in range(season)]
    half_width = season // 2
    for t in range(half_width, n - half_width):
        neighbours = list(y[t - half_width : t + half_width + 1])
        if season % 2 == 0:
            neighbours[0], neighbours[-1] = neighbours[0] / 2, neighbours[-1] / 2
        ratios[t % season].append(y[t] / (sum(neighbours) / season))
    indices = [sum(phase_ratios) / len(phase_ratios) for phase_ratios in ratios]
    indices = [value / (sum(indices) / season) for value in indices]
    level = y[-1] / indices[(n - 1) % season]
    return [level * indices[(n + step) % season] for step in range(horizon)]


@pytest.mark.parametrize(("season", "steps"), [(4, 40), (4, 12), (5, 23), (7, 50), (12, 37)])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_naive2_equals_a_slow_loop(season: int, steps: int, strength: float) -> None:
    rng = np.random.default_rng(steps)
    y = 30 + 5 * strength * np.sin(2 * np.pi * np.arange(steps) / season) + rng.normal(size=steps)
    np.testing.assert_allclose(naive2(y, season=season, horizon=9), slow_naive2(y, season, 9))


def test_naive2_repeats_a_pure_season_on_its_last_level() -> None:
    y = np.resize([2.0, 1.0, 3.0, 2.0], 40)
    np.testing.assert_allclose(naive2(y, season=4, horizon=6), [2.0, 1.0, 3.0, 2.0, 2.0, 1.0])


@pytest.mark.parametrize(
    ("y", "season"),
    [
        (np.resize([2.0, 1.0, 3.0], 40), 1),
        (np.resize([2.0, 1.0, 3.0], 8), 3),
        (np.resize([2.0, 0.0, 3.0], 40), 3),
        (np.full(40, 3.0), 3),
    ],
    ids=["no season", "too short", "not positive", "constant"],
)
def test_naive2_without_a_significant_season_is_the_last_value(y: np.ndarray, season: int) -> None:
    assert naive2(y, season=season, horizon=3).tolist() == [y[-1]] * 3
