"""Forecasts are equivariant to units that the scaling removes, and extreme values stay finite."""

from __future__ import annotations

import numpy as np
import pytest

from forecaster.prediction.predictor import FittedModel, Predictor
from tests.factories import make_series, make_wave
from tests.laws.conftest import NETWORK_KINDS, kind_id

TOLERANCE = 1e-5  # relative to the history's magnitude; other units round differently in float32
SCALE_EQUIVARIANT_KINDS = [kind for kind in NETWORK_KINDS if kind[2] != "none"]
STANDARD_SCALING_KINDS = [kind for kind in NETWORK_KINDS if kind[2] == "standard"]


def forecast_mean(model: FittedModel, y: np.ndarray) -> np.ndarray:
    return Predictor(model).forecast(make_series(y), 8).mean


@pytest.mark.parametrize("spec", SCALE_EQUIVARIANT_KINDS, indirect=True, ids=kind_id)
@pytest.mark.parametrize("factor", [1e-12, 0.3, 1024.0, 1e12])
def test_a_forecast_is_equivariant_to_scaling_its_history(model: FittedModel, factor: float) -> None:
    y = make_wave(20)
    expected = forecast_mean(model, y)
    np.testing.assert_allclose(forecast_mean(model, factor * y) / factor, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("spec", STANDARD_SCALING_KINDS, indirect=True, ids=kind_id)
@pytest.mark.parametrize("shift", [-1e3, 2.5, 1e6])
def test_a_forecast_is_equivariant_to_shifting_its_history_under_standard_scaling(
    model: FittedModel, shift: float
) -> None:
    y = make_wave(20)
    np.testing.assert_allclose(forecast_mean(model, y + shift) - shift, forecast_mean(model, y), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12, -1e12])
def test_huge_and_tiny_histories_get_finite_forecasts(model: FittedModel, factor: float) -> None:
    assert np.isfinite(forecast_mean(model, factor * make_wave(20))).all()


@pytest.mark.parametrize("spec", STANDARD_SCALING_KINDS, indirect=True, ids=kind_id)
@pytest.mark.parametrize("value", [0.0, 0.1, -7.0, 1e12])
def test_a_constant_history_gives_the_constant_under_standard_scaling(model: FittedModel, value: float) -> None:
    np.testing.assert_allclose(forecast_mean(model, np.full(20, value)), value, rtol=1e-14, atol=0)


@pytest.mark.parametrize("spec", SCALE_EQUIVARIANT_KINDS, indirect=True, ids=kind_id)
def test_an_all_zero_history_gives_zero(model: FittedModel) -> None:
    assert forecast_mean(model, np.zeros(20)).tolist() == [0.0] * 8
    gappy = np.zeros(20)
    gappy[7] = np.nan
    assert forecast_mean(model, gappy).tolist() == [0.0] * 8
