"""Means, quantiles and sample paths stay within the bounds of a model, and are otherwise those of the model without bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from forecaster.evaluation.rolling_origins import forecast_all_origins
from forecaster.intervals.conformal import calibrate
from forecaster.prediction.bounds import EACH_HISTORY, NON_NEGATIVE_FACT, without_bounds
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Series
from tests.factories import make_fitted_model, make_network, make_series, make_spec, make_wave

pytestmark = pytest.mark.integration

LEVELS, HORIZON, TRAINED_HORIZON = (0.02, 0.5, 0.98), 11, 5
RUNNING = {"scaling": "running", "features": "seasonal", "base": "mixture", "decoder": "block", "block_steps": 4}
SPECS: dict[str, dict[str, Any]] = {
    "point, fed back": {},
    "direct, unscaled": {"decoder": "direct", "scaling": "none"},
    "segments of a log": {"segment": 4, "cell": "lstm", "scaling": "level_season", "transform": "log"},
    "whole histories": {"reads": "history", "scaling": "mean_abs", "base": "seasonal_naive"},
    "channels": {"channels": ("heat",), "base": "last"},
    "members": {"members": 3, "base": "linear"},
    "gaussian": {"head": {"kind": "gaussian"}, "base": "last"},
    "student_t, whole histories": {"head": {"kind": "student_t"}, "reads": "history", "base": "seasonal_naive"},
    "categorical": {"head": {"kind": "categorical", "bins": 16, "bound": 4.0}, "decoder": "direct"},
    "neg_binomial": {"head": {"kind": "neg_binomial"}, "scaling": "none"},
    "quantiles of the head": {"head": {"kind": "quantile"}, "context": 24, **RUNNING},
}
IS_CALIBRATED = {name: name != "quantiles of the head" for name in SPECS}
IS_SAMPLED = {name: fields.get("head", {}).get("kind", "point") != "point" for name, fields in SPECS.items()}
every_spec = pytest.mark.parametrize("name", SPECS)


def make_model(name: str, *, fact: Any = True, **fields: Any) -> FittedModel:
    """Builds a model with random weights, and a calibration of wide intervals unless its quantiles are those of its head."""
    spec = make_spec(**SPECS[name] | fields)
    others = tuple(make_network(spec, seed=seed) for seed in range(2, spec.members + 1))
    model = replace(make_fitted_model(spec), facts={NON_NEGATIVE_FACT: fact}, other_networks=others)
    if not IS_CALIBRATED[name]:
        return model
    errors = np.random.default_rng(0).normal(size=(30, 4, TRAINED_HORIZON))
    return replace(model, calibration=calibrate(errors, np.ones(30)))


def make_histories(*, shift: float = 0.0) -> list[Series]:
    """Falling, often zero counts; a history with a gap, one that rises steeply, and one that is constant."""
    steps = np.arange(48)
    values = [
        np.maximum(np.round(8 * make_wave(48, seed=seed) - 3 - 0.2 * (seed + 1) * steps), 0.0) for seed in range(4)
    ]
    values[1][20:30] = np.nan
    values += [steps**2 / 40.0, np.zeros(48)]
    return [
        replace(make_series(y + shift, name=str(number)), channels={"heat": make_wave(48, seed=9)})
        for number, y in enumerate(values)
    ]


def forecast(model: FittedModel, series: Sequence[Series], *, levels: Sequence[float] = LEVELS) -> list[Forecast]:
    outcomes = Predictor(model).forecast_batch(series, HORIZON, levels=levels)
    assert all(isinstance(outcome, Forecast) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Forecast)]


def list_values(forecasts: Sequence[Forecast]) -> np.ndarray:
    """Returns means and quantiles: "series line horizon"."""
    return np.array([[item.mean, *item.quantiles.values()] for item in forecasts])


@every_spec
def test_means_and_quantiles_are_those_without_bounds_clipped_at_zero(name: str) -> None:
    model, series = make_model(name), make_histories()
    bounded, unbounded = list_values(forecast(model, series)), list_values(forecast(without_bounds(model), series))
    assert (unbounded < 0).any()
    assert (bounded >= 0).all()
    np.testing.assert_array_equal(bounded[:, 0], unbounded[:, 0].clip(0))
    if not IS_CALIBRATED[name]:
        np.testing.assert_array_equal(bounded, unbounded.clip(0))
    else:  # around the clipped mean
        offsets = unbounded[:, 1:] - unbounded[:, :1]
        np.testing.assert_allclose(bounded[:, 1:], (bounded[:, :1] + offsets).clip(0), atol=1e-9)


@every_spec
def test_a_series_has_the_same_bounded_forecast_in_any_batch(name: str) -> None:
    model, series = make_model(name, lower=0.5, upper=9.0), make_histories()
    series.insert(2, make_series(make_wave(30) - 3, name="negative") if name != "channels" else series[0])
    together = forecast(model, series)
    for item, expected in zip(series, together, strict=True):
        [alone] = forecast(model, [item])
        np.testing.assert_allclose(list_values([alone]), list_values([expected]), rtol=1e-5, atol=1e-5)
        assert alone.warnings == expected.warnings


@every_spec
def test_paths_and_scenarios_stay_within_the_bounds(name: str) -> None:
    model, series = make_model(name, lower=1.0, upper=4.5), make_histories()
    inside = [replace(item, y=item.y.clip(1.0, 4.5)) for item in series]
    predictor, unbounded = Predictor(model), Predictor(without_bounds(model))
    for item in inside[:4]:
        scenarios = predictor.forecast_scenarios([item, item], HORIZON, levels=LEVELS)
        values = list_values([outcome for outcome in scenarios if isinstance(outcome, Forecast)])
        np.testing.assert_allclose(values[0], list_values(forecast(model, [item]))[0], rtol=1e-5, atol=1e-5)
        assert ((values >= 1.0) & (values <= 4.5)).all()
    if IS_SAMPLED[name]:
        for bounded, drawn in zip(
            predictor.sample_batch(inside, HORIZON, paths=20, seed=0),
            unbounded.sample_batch(inside, HORIZON, paths=20, seed=0),
            strict=True,
        ):
            np.testing.assert_array_equal(bounded, np.clip(drawn, 1.0, 4.5))
        [first, *_] = predictor.sample_scenarios([inside[0]] * 2, HORIZON, paths=20, seed=0)
        np.testing.assert_array_equal(first, predictor.sample_batch(inside[:1], HORIZON, paths=20, seed=0)[0])


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ("direct, unscaled", "neg_binomial")])
@pytest.mark.parametrize("factor", [1e-3, 0.3, 1024.0])
def test_a_bounded_forecast_is_equivariant_to_scaling_its_history(name: str, factor: float) -> None:
    model, series = make_model(name), make_histories()[:5]
    expected = list_values(forecast(model, series))
    scaled = [replace(item, y=factor * item.y) for item in series]
    sizes = np.array([np.nanmax(item.y) for item in series])[:, None, None]
    np.testing.assert_allclose(
        list_values(forecast(model, scaled)) / factor / sizes, expected / sizes, rtol=0, atol=2e-5
    )
    assert (expected == 0).any(), "some values are clipped"


@pytest.mark.parametrize("name", ["point, fed back", "gaussian", "quantiles of the head"])
def test_a_forecast_without_bounds_is_equivariant_to_shifting_its_history(name: str) -> None:
    model = make_model(name, non_negative=False)
    expected = list_values(forecast(model, make_histories()[:5]))
    assert (expected < 0).any()
    shifted = list_values(forecast(model, make_histories(shift=64.0)[:5]))
    np.testing.assert_allclose(shifted - 64, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", [name for name in SPECS if name != "neg_binomial"])
@pytest.mark.parametrize("fact", [True, EACH_HISTORY])
def test_a_negative_history_is_forecast_as_by_the_model_without_bounds(name: str, fact: Any) -> None:
    model, series = make_model(name, fact=fact), make_histories(shift=-1.0)
    forecasts = forecast(model, series)
    np.testing.assert_array_equal(list_values(forecasts), list_values(forecast(without_bounds(model), series)))
    for item, outcome in zip(series, forecasts, strict=True):
        is_told = any("is not bounded at zero" in warning for warning in outcome.warnings)
        assert is_told == (fact is True), item.id
    if IS_SAMPLED[name]:
        for bounded, drawn in zip(
            Predictor(model).sample_batch(series, HORIZON, paths=5, seed=0),
            Predictor(without_bounds(model)).sample_batch(series, HORIZON, paths=5, seed=0),
            strict=True,
        ):
            np.testing.assert_array_equal(bounded, drawn)


@pytest.mark.parametrize("name", ["point, fed back", "whole histories", "channels", "neg_binomial"])
@pytest.mark.parametrize("fact", [True, EACH_HISTORY])
def test_forecasts_from_all_origins_are_bounded_by_the_history_of_each(name: str, fact: Any) -> None:
    predictor, series = Predictor(make_model(name, fact=fact, upper=12.0)), make_histories()
    becoming_negative = series[0].y.copy()
    becoming_negative[30] = -2.0
    series.append(replace(series[0], y=becoming_negative))
    windows = 20
    forecasts = forecast_all_origins(predictor, series, horizon=HORIZON, windows=windows, stride=1)
    assert (forecasts == 0).any()
    for window in range(windows):
        histories = [item.take_first(len(item) - HORIZON - windows + 1 + window) for item in series]
        expected = np.stack([outcome.mean for outcome in forecast(predictor.fitted_model, histories, levels=())])  # type: ignore[arg-type]
        np.testing.assert_allclose(forecasts[:, window], expected, rtol=1e-4, atol=1e-4)
    last = forecasts[-1].min(axis=1)
    assert (last[:10] >= 0).all()
    if name != "neg_binomial":
        assert (last[-7:] < 0).any(), "after the negative value nothing is clipped"


@pytest.mark.parametrize("name", ["point, fed back", "whole histories", "gaussian"])
@pytest.mark.parametrize("negative_step", [None, 3, 40])
def test_a_continued_series_has_the_bounds_of_its_whole_history(name: str, negative_step: int | None) -> None:
    model = make_model(name, lower=-4.0, upper=12.0)
    predictor, full = Predictor(model), make_histories()[0]
    if negative_step is not None:
        full.y[negative_step], full.y[negative_step + 1] = -1.0, 99.0
    truncated, steps = predictor.truncate_history(full.take_first(26)), 26
    for until in (27, 37, 48):
        truncated = replace(truncated, y=np.append(truncated.y, full.y[steps:until]))
        [continued] = forecast(model, [truncated])
        [expected] = forecast(model, [full.take_first(until)])
        np.testing.assert_allclose(list_values([continued]), list_values([expected]), rtol=1e-4, atol=1e-4)
        assert continued.warnings == expected.warnings
        truncated, steps = predictor.truncate_history(truncated), until
    is_told = [warning for warning in expected.warnings if "not bounded" in warning]
    assert len(is_told) == (0 if negative_step is None else 2)
