"""Tests of prediction intervals: calibrated on rolling origins, returned by the predictor, stored in the bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.errors import LevelOutOfRange
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.calibration import calibrate_model, interval_coverage
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Panel, Series
from tests.factories import START, make_fitted_model, make_spec

STEPS, HORIZON = 60, 5


def make_noise_series(count: int, *, seed: int, growing: bool = False) -> list[Series]:
    """Returns series of white noise. With `growing`, it is larger in the last quarter, which the history does not show."""
    rng = np.random.default_rng(seed)
    size = np.where(np.arange(STEPS) >= 45, 6.0 if growing else 1.0, 1.0)
    name = "loud" if growing else "calm"
    return [
        Series(f"{name}_{index}", START, "h", size * rng.normal(size=STEPS), static={"kind": name})
        for index in range(count)
    ]


def make_calibrated_model(panel: Panel, *, group: str | None = None) -> FittedModel:
    spec = make_spec(horizon=HORIZON, group=group, training={"valid_windows": 1})
    return calibrate_model(make_fitted_model(spec), panel, windows=1)


def test_intervals_have_their_nominal_coverage() -> None:
    fitted_model = make_calibrated_model(Panel(make_noise_series(400, seed=0), "h"))
    result = backtest(
        Panel(make_noise_series(400, seed=1), "h"),
        {"model": Predictor(fitted_model).forecast_batch},
        horizon=HORIZON,
        windows=1,
        season=4,
        min_history=fitted_model.spec.min_steps,
    )
    coverages = interval_coverage(fitted_model, result, "model", intervals=(0.8, 0.95))
    assert coverages[0.8] == pytest.approx(0.8, abs=0.03)
    assert coverages[0.95] == pytest.approx(0.95, abs=0.02)


def test_a_large_group_has_its_own_intervals_and_unknown_groups_share_the_pool() -> None:
    panel = Panel([*make_noise_series(150, seed=0), *make_noise_series(150, seed=1, growing=True)], "h")
    predictor = Predictor(make_calibrated_model(panel, group="kind"))
    series = panel.series[0]
    widths = {}
    for kind in ("calm", "loud", "never seen"):
        forecast = predictor.forecast(replace(series, static={"kind": kind}), HORIZON, levels=[0.1, 0.9])
        widths[kind] = float((forecast.quantiles[0.9] - forecast.quantiles[0.1]).mean())
    assert widths["calm"] < widths["never seen"] < widths["loud"]
    pooled = Predictor(make_calibrated_model(panel)).forecast(series, HORIZON, levels=[0.1, 0.9])
    assert float((pooled.quantiles[0.9] - pooled.quantiles[0.1]).mean()) == pytest.approx(widths["never seen"])


def test_quantiles_increase_with_level_and_scale_with_data_but_not_with_the_batch() -> None:
    panel = Panel(make_noise_series(120, seed=0), "h")
    predictor = Predictor(make_calibrated_model(panel))
    levels = [0.9, 0.025, 0.5, 0.1]
    series, rescaled = panel.series[3], replace(panel.series[3], y=10 * panel.series[3].y + 100)
    alone = predictor.forecast(series, 8, levels=levels)
    assert list(alone.quantiles) == sorted(levels)
    stacked = np.stack(list(alone.quantiles.values()))
    assert (np.diff(stacked, axis=0) >= 0).all()
    outcomes = predictor.forecast_batch([*panel.series[:5], rescaled], 8, levels=levels)
    for level in levels:
        np.testing.assert_allclose(outcomes[3].quantiles[level], alone.quantiles[level], rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
        expected = 10 * alone.quantiles[level] + 100
        np.testing.assert_allclose(outcomes[5].quantiles[level], expected, rtol=1e-4)  # type: ignore[union-attr]


def test_a_constant_history_has_intervals_of_the_minimum_width_around_it() -> None:
    predictor = Predictor(make_calibrated_model(Panel(make_noise_series(50, seed=0), "h")))
    forecast = predictor.forecast(Series("still", START, "h", np.full(30, 7.0)), 4, levels=[0.1, 0.9])
    np.testing.assert_array_equal(forecast.mean, 7.0)
    below, above = 7.0 - forecast.quantiles[0.1], forecast.quantiles[0.9] - 7.0
    assert (below > 0).all()
    assert (above > 0).all()
    assert max(below.max(), above.max()) < 0.02 * 7.0, "the unit of errors is one percent of the value"


def test_intervals_are_the_same_after_save_and_load(tmp_path: Path) -> None:
    panel = Panel(make_noise_series(120, seed=0), "h")
    fitted_model = make_calibrated_model(panel)
    artifact.save_bundle(fitted_model, tmp_path / "bundle", card="# small\n")
    series = panel.series[0]
    expected = Predictor(fitted_model).forecast(series, 9, levels=[0.05, 0.95]).quantiles
    loaded_quantiles = (
        Predictor(artifact.load_bundle(tmp_path / "bundle")).forecast(series, 9, levels=[0.05, 0.95]).quantiles
    )
    for level, values in expected.items():
        assert np.array_equal(values, loaded_quantiles[level])


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 90.0, float("nan")])
def test_an_invalid_level_is_rejected(level: float) -> None:
    predictor = Predictor(make_calibrated_model(Panel(make_noise_series(50, seed=0), "h")))
    with pytest.raises(LevelOutOfRange, match="between 0 and 1"):
        predictor.forecast_batch([make_noise_series(1, seed=2)[0]], 3, levels=[level])


def test_levels_of_an_uncalibrated_model_are_rejected() -> None:
    with pytest.raises(LevelOutOfRange, match="not calibrated"):
        Predictor(make_fitted_model(make_spec())).forecast_batch([make_noise_series(1, seed=2)[0]], 3, levels=[0.1])
