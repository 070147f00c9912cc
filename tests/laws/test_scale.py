"""Units do not matter where the scaling takes them out, and extremes stay finite."""

from __future__ import annotations

import numpy as np
import pytest

from forecaster.prediction.predictor import Forecaster, Predictor
from tests.factories import one_series, wave
from tests.laws.conftest import KINDS, name_of

CLOSE = 1e-5  # of the history's size: inputs are rounded to float32 elsewhere when units change
UNIT_FREE = [kind for kind in KINDS if kind[2] != "none"]
STANDARD = [kind for kind in KINDS if kind[2] == "standard"]


def forecast(forecaster: Forecaster, y: np.ndarray) -> np.ndarray:
    return Predictor(forecaster).forecast(one_series(y), 8).mean


@pytest.mark.parametrize("spec", UNIT_FREE, indirect=True, ids=name_of)
@pytest.mark.parametrize("factor", [1e-12, 0.3, 1024.0, 1e12])
def test_a_forecast_scales_with_its_history(forecaster: Forecaster, factor: float) -> None:
    y = wave(20)
    expected = forecast(forecaster, y)
    np.testing.assert_allclose(forecast(forecaster, factor * y) / factor, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("spec", STANDARD, indirect=True, ids=name_of)
@pytest.mark.parametrize("shift", [-1e3, 2.5, 1e6])
def test_a_forecast_shifts_with_its_history_under_standard_scaling(forecaster: Forecaster, shift: float) -> None:
    y = wave(20)
    np.testing.assert_allclose(forecast(forecaster, y + shift) - shift, forecast(forecaster, y), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12, -1e12])
def test_huge_and_tiny_histories_get_finite_forecasts(forecaster: Forecaster, factor: float) -> None:
    assert np.isfinite(forecast(forecaster, factor * wave(20))).all()


@pytest.mark.parametrize("spec", STANDARD, indirect=True, ids=name_of)
@pytest.mark.parametrize("value", [0.0, 0.1, -7.0, 1e12])
def test_a_constant_history_gives_the_constant_under_standard_scaling(forecaster: Forecaster, value: float) -> None:
    np.testing.assert_allclose(forecast(forecaster, np.full(20, value)), value, rtol=1e-14, atol=0)


@pytest.mark.parametrize("spec", UNIT_FREE, indirect=True, ids=name_of)
def test_an_all_zero_history_gives_zero(forecaster: Forecaster) -> None:
    assert forecast(forecaster, np.zeros(20)).tolist() == [0.0] * 8
    gappy = np.zeros(20)
    gappy[7] = np.nan
    assert forecast(forecaster, gappy).tolist() == [0.0] * 8
