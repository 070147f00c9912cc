"""Intervals of short histories are wider, as far as their errors are larger, and cover as those of long ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from forecaster.data.batching import take_last
from forecaster.evaluation.calibration import calibrate_model
from forecaster.intervals.conformal import calibrate
from forecaster.intervals.short_histories import (
    MIN_WINDOWS,
    ShortHistories,
    choose_short_lengths,
    fit_short_histories,
)
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast
from tests.factories import make_fitted_model, make_panel, make_series, make_spec, make_wave

SEASON, HORIZON = 4, 5


@pytest.mark.parametrize(
    ("season", "min_steps", "expected"),
    [(12, 12, ([14, 26, 38], 48)), (1, 2, ([6, 10, 14], 16)), (12, 30, ([30, 38], 48)), (4, 60, ([60], 61))],
)
def test_lengths_follow_the_season_and_the_minimum_of_the_model(
    season: int, min_steps: int, expected: tuple[list[int], int]
) -> None:
    assert choose_short_lengths(season, min_steps=min_steps) == expected


def test_factors_are_ratios_of_error_quantiles_that_never_rise_with_the_length() -> None:
    base = np.random.default_rng(0).gamma(2.0, size=(400, 3))
    fitted = fit_short_histories([3 * base, 1.2 * base, 1.5 * base, base], [6, 10, 14, 16])
    assert fitted is not None
    np.testing.assert_allclose(fitted.factors, [3, 1.5, 1.5, 1], rtol=1e-3)
    assert fitted.compute_factors([1, 6, 14, 16, 1000]).tolist() == pytest.approx([3, 3, 1.5, 1, 1], rel=1e-3)
    assert 1.5 < fitted.compute_factors([8])[0] < 3


def test_easier_short_histories_are_not_narrowed_and_few_windows_give_nothing() -> None:
    base = np.ones((MIN_WINDOWS, 3))
    fitted = fit_short_histories([0.5 * base, base], [6, 16])
    assert fitted is not None
    assert fitted.factors == (1.0, 1.0)
    assert fit_short_histories([base[1:], base[1:]], [6, 16]) is None
    assert fit_short_histories([base, 0 * base], [6, 16]) is None


def test_factors_that_rise_are_refused() -> None:
    with pytest.raises(ValidationError, match="fall to 1"):
        ShortHistories(steps=(6, 16), factors=(1.0, 2.0))


def test_intervals_of_cut_histories_cover_as_those_of_whole_ones() -> None:
    rng = np.random.default_rng(0)
    shape = np.tile([3.0, -1.0, 0.0, -2.0], 30)
    panel = make_panel(*(np.exp(rng.normal()) * (shape + rng.standard_normal(120)) for _ in range(150)))
    spec = make_spec(context=8, horizon=HORIZON, season=SEASON, base="seasonal_naive", min_history=5, decoder="direct")
    model = make_fitted_model(spec)
    history = make_panel(*(item.y[:-HORIZON] for item in panel.series))
    calibrated = calibrate_model(model, history, windows=4)
    assert calibrated.calibration is not None
    assert calibrated.calibration.short_histories is not None
    coverage = {}
    for length in (6, 115):
        histories = [take_last(item, length) for item in history.series]
        outcomes = Predictor(calibrated).forecast_batch(histories, HORIZON, levels=(0.1, 0.9))
        inside = [
            (outcome.quantiles[0.1] <= item.y[-HORIZON:]) & (item.y[-HORIZON:] <= outcome.quantiles[0.9])
            for item, outcome in zip(panel.series, outcomes, strict=True)
            if isinstance(outcome, Forecast)
        ]
        assert len(inside) == 150
        coverage[length] = float(np.mean(inside))
    assert coverage[115] == pytest.approx(0.8, abs=0.06)
    assert coverage[6] > 0.72


def test_a_truncated_history_has_the_intervals_of_the_whole_one_however_often_it_is_truncated() -> None:
    spec = make_spec(context=4, horizon=HORIZON, season=1, min_history=2, decoder="direct")
    errors = np.random.default_rng(0).standard_normal((60, 1, HORIZON))
    short_histories = ShortHistories(steps=(6, 60), factors=(3.0, 1.0))
    calibration = calibrate(errors, np.ones(60)).model_copy(update={"short_histories": short_histories})
    predictor = Predictor(replace(make_fitted_model(spec), calibration=calibration))
    y = make_wave(40)
    y[[0, 3, 17, 30]] = np.nan
    whole = predictor.forecast(make_series(y), HORIZON, levels=(0.9,))
    continued, read = make_series(y[:12]), 12
    for end in (20, 33, 40):
        truncated = predictor.truncate_history(continued)
        assert len(truncated) < len(continued)
        continued, read = replace(truncated, y=np.concatenate([truncated.y, y[read:end]])), end
    result = predictor.forecast(continued, HORIZON, levels=(0.9,))
    np.testing.assert_allclose(result.quantiles[0.9] - result.mean, whole.quantiles[0.9] - whole.mean, rtol=1e-6)
