"""The baselines that every model is compared with."""

from __future__ import annotations

import numpy as np

from forecaster.evaluation.baselines import BASELINES, build_baselines, format_baseline
from forecaster.prediction.predictor import Predictor
from tests.factories import make_series


def test_the_baselines_are_seasonal_naive_and_the_last_value() -> None:
    forecasters = build_baselines(season=3)
    assert tuple(forecasters) == BASELINES
    expected = {"seasonal_naive": [4.0, 5.0, 6.0, 4.0], "last_value": [6.0] * 4}
    for name, forecaster in forecasters.items():
        assert not isinstance(forecaster, Predictor)
        [forecast] = forecaster([make_series(np.arange(1.0, 7.0))], 4)
        np.testing.assert_array_equal(forecast.mean, expected[name])  # type: ignore[union-attr]


def test_without_a_season_the_last_value_is_seasonal_naive() -> None:
    assert list(build_baselines(season=1)) == ["seasonal_naive"]


def test_baselines_are_named_as_in_a_sentence() -> None:
    assert [format_baseline(name) for name in BASELINES] == ["seasonal naive", "the last value"]
