"""The baselines that every model is compared with."""

from __future__ import annotations

import numpy as np

from forecaster.bundle.pretrained.base import base_predictor
from forecaster.evaluation.baselines import BASELINES, NAIVE_BASELINES, ZERO_SHOT, build_baselines, format_baseline
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast
from tests.factories import make_series, make_wave


def test_the_baselines_are_seasonal_naive_and_the_last_value() -> None:
    forecasters = build_baselines(season=3)
    assert tuple(forecasters) == NAIVE_BASELINES
    expected = {"seasonal_naive": [4.0, 5.0, 6.0, 4.0], "last_value": [6.0] * 4}
    for name, forecaster in forecasters.items():
        assert not isinstance(forecaster, Predictor)
        [forecast] = forecaster([make_series(np.arange(1.0, 7.0))], 4)
        np.testing.assert_array_equal(forecast.mean, expected[name])  # type: ignore[union-attr]


def test_without_a_season_the_last_value_is_seasonal_naive() -> None:
    assert list(build_baselines(season=1)) == ["seasonal_naive"]


def test_the_pretrained_network_forecasts_all_histories_and_is_replaced_by_seasonal_naive_where_it_cannot() -> None:
    predictor = base_predictor("h", horizon=4, season=3)
    forecasters = build_baselines(season=3, pretrained=predictor)
    assert tuple(forecasters) == BASELINES
    zero_shot = forecasters[ZERO_SHOT]
    assert not isinstance(zero_shot, Predictor)
    series = [make_series(make_wave(30)), make_series(np.array([1.0, 2.0, 1e200]))]
    forecast, replaced = zero_shot(series, 4)
    assert isinstance(forecast, Forecast)
    assert isinstance(replaced, Forecast)
    [expected] = predictor.forecast_batch(series[:1], 4)
    np.testing.assert_array_equal(forecast.mean, expected.mean)  # type: ignore[union-attr]
    assert forecast.warnings == ()
    np.testing.assert_array_equal(replaced.mean, [1.0, 2.0, 1e200, 1.0])
    [warning] = replaced.warnings
    assert warning.startswith("zero_shot could not forecast the series (")


def test_baselines_are_named_as_in_a_sentence() -> None:
    assert [format_baseline(name) for name in BASELINES] == [
        "seasonal naive",
        "the last value",
        "the pretrained network",
    ]
