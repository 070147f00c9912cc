"""Quantiles of a model that was not calibrated come from its quantile head, with the point forecast of the same rollout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.bundle.artifact import load_predictor, save_bundle
from forecaster.bundle.pretrained.base import specialize_base
from forecaster.data.split import hold_out
from forecaster.engines.engine import EnsembleEngine
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.engines.running.engine import RunningEngine
from forecaster.errors import LevelOutOfRange
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.calibration import calibrate_model, interval_coverage
from forecaster.intervals.adaptive import AdaptiveState
from forecaster.prediction.engine_choice import choose_engine
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast
from tests.factories import make_fitted_model, make_network, make_panel, make_series, make_spec, make_wave

LEVELS, HORIZON = (0.9, 0.1, 0.75), 9
HEAD = {"kind": "quantile"}
RUNNING = {"scaling": "running", "features": "seasonal", "base": "mixture", "decoder": "block", "block_steps": 4}


def make_model(**fields: Any) -> FittedModel:
    return make_fitted_model(make_spec(**{"head": HEAD, "context": 24} | RUNNING | fields))


def forecast(predictor: Predictor, y: np.ndarray, levels: tuple[float, ...] = LEVELS) -> Forecast:
    return predictor.forecast(make_series(y), HORIZON, levels=levels)


@pytest.mark.parametrize(
    ("fields", "engine"),
    [
        ({}, RunningEngine),
        ({"decoder": "direct", "block_steps": None}, PyTorchEngine),
        (
            {"scaling": "standard", "features": "values", "base": "linear", "decoder": "direct", "block_steps": None},
            PyTorchEngine,
        ),
        (
            {"scaling": "last", "transform": "log", "features": "values", "base": "last", "block_steps": 3},
            PyTorchEngine,
        ),
    ],
)
def test_quantiles_of_the_head_surround_the_point_forecast(fields: dict[str, Any], engine: type) -> None:
    predictor = Predictor(make_model(**fields))
    assert isinstance(predictor.engine, engine)
    assert predictor.has_quantiles
    result = forecast(predictor, make_wave(40))
    assert list(result.quantiles) == [0.1, 0.75, 0.9]
    assert np.array_equal(result.mean, forecast(predictor, make_wave(40), ()).mean)
    low, middle, high = result.quantiles.values()
    assert (low < result.mean).all()
    assert (result.mean < middle).all()
    assert (middle < high).all()


def test_the_median_is_the_point_forecast() -> None:
    result = forecast(Predictor(make_model()), make_wave(40), (0.5,))
    assert np.array_equal(result.quantiles[0.5], result.mean)


def test_a_series_has_the_same_quantiles_in_any_batch_and_an_invalid_one_affects_no_other() -> None:
    predictor = Predictor(make_model())
    batch = [make_series(make_wave(40, seed=seed), name=str(seed)) for seed in range(4)] + [make_series(np.ones(2))]
    outcomes = predictor.forecast_batch(batch, HORIZON, levels=LEVELS)
    assert not isinstance(outcomes[4], Forecast)
    for item, outcome in zip(batch[:4], outcomes, strict=False):
        assert isinstance(outcome, Forecast)
        for level, quantile in predictor.forecast(item, HORIZON, levels=LEVELS).quantiles.items():
            np.testing.assert_allclose(outcome.quantiles[level], quantile, rtol=1e-6)


def test_the_quantiles_of_members_are_their_medians() -> None:
    spec = make_spec(head=HEAD, context=24, members=3, **RUNNING)
    model = replace(make_fitted_model(spec), other_networks=tuple(make_network(spec, seed=seed) for seed in (2, 3)))
    predictor = Predictor(model)
    assert isinstance(predictor.engine, EnsembleEngine)
    alone = [Predictor(replace(model, network=network, other_networks=())) for network in model.networks]
    expected = np.median([forecast(member, make_wave(40)).quantiles[0.9] for member in alone], axis=0)
    np.testing.assert_allclose(forecast(predictor, make_wave(40)).quantiles[0.9], expected, rtol=1e-12)


def test_a_constant_history_has_quantiles_of_a_minimum_width() -> None:
    result = forecast(Predictor(make_model()), np.full(30, 50.0))
    assert result.mean.tolist() == [50.0] * HORIZON
    np.testing.assert_allclose(result.quantiles[0.9] - 50, 50 - result.quantiles[0.1])
    np.testing.assert_allclose(result.quantiles[0.9], 50 + 0.5 * 1.2815515655)


def test_after_a_divergence_the_quantiles_surround_the_fallback() -> None:
    model = make_model()
    model.network.output.bias.view(model.network.block, -1)[2:, 0] = 1e9  # the third step of the block
    result = forecast(Predictor(model), make_wave(40))
    assert result.has_fallback
    offsets = result.quantiles[0.9] - result.mean
    assert (offsets > 0).all()
    np.testing.assert_allclose(offsets[2:], offsets[1])
    model.network.output.bias.view(model.network.block, -1)[0, 0] = 1e9
    offsets = forecast(Predictor(model), make_wave(40)).quantiles[0.9] - make_wave(40)[-1]
    assert np.isfinite(offsets).all()


def test_a_calibrated_model_of_another_decoder_has_the_quantiles_of_its_errors() -> None:
    model = make_model(decoder="direct", block_steps=None)
    calibrated = calibrate_model(model, make_panel(make_wave(80), make_wave(70, seed=1)), windows=2)
    predictor = Predictor(calibrated)
    assert predictor.has_quantiles
    assert calibrated.calibration is not None
    assert calibrated.calibration.unit == "history"
    result = forecast(predictor, make_wave(40))
    offsets = calibrated.calibration.compute_offsets(
        [0.1, 0.75, 0.9], horizon=HORIZON, scales=predictor.compute_interval_scales([make_wave(40)]), groups=[None]
    )
    np.testing.assert_allclose(result.quantiles[0.9], result.mean + offsets[0, :, 2])


def recalibrate(model: FittedModel, *, windows: int = 4, series: int = 12) -> FittedModel:
    panel = make_panel(*(make_wave(80, seed=seed) for seed in range(series)))
    return calibrate_model(model, panel, windows=windows, stride=4)


def test_a_calibrated_block_decoder_widens_the_quantiles_of_its_head() -> None:
    model = make_model()
    calibrated = recalibrate(model)
    assert calibrated.calibration is not None
    assert calibrated.calibration.unit == "head"
    assert calibrated.calibration.pool.windows == 48
    raw, result = (forecast(Predictor(item), make_wave(40)) for item in (model, calibrated))
    assert np.array_equal(raw.mean, result.mean)
    ratios = (result.quantiles[0.9] - result.mean) / (raw.quantiles[0.9] - raw.mean)
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)  # one factor for all steps
    assert not np.allclose(ratios, 1.0, rtol=0.02)


@pytest.mark.integration
def test_the_pretrained_network_covers_better_when_recalibrated() -> None:
    noise = np.random.default_rng(0).standard_normal((150, 131))
    panel = make_panel(
        *np.diff(noise, axis=1)
    )  # rare in what it was trained on: each change is half reversed by the next
    model = specialize_base(panel.freq, horizon=HORIZON, season=1).to_fitted_model()
    windows = 4
    calibrated = calibrate_model(model, hold_out(panel, windows * HORIZON).history, windows=5)
    coverage = []
    for item in (model, calibrated):
        result = backtest(panel, {"base": Predictor(item)}, horizon=HORIZON, windows=windows, season=1)
        coverage.append(interval_coverage(item, result, "base", intervals=[0.8])[0.8])
    assert abs(coverage[0] - 0.8) > 0.04, "otherwise the test shows nothing"
    assert coverage[1] == pytest.approx(0.8, abs=0.025)


def test_recalibrated_quantiles_are_those_of_any_batch_horizon_level_list_scenario_and_state() -> None:
    predictor, y = Predictor(recalibrate(make_model())), make_wave(40)
    expected = forecast(predictor, y)
    alone = predictor.forecast(make_series(y), 5, levels=(0.9,))
    np.testing.assert_allclose(alone.quantiles[0.9], expected.quantiles[0.9][:5], rtol=1e-9)
    batch = predictor.forecast_batch([make_series(make_wave(60, seed=3)), make_series(y)], HORIZON, levels=LEVELS)[1]
    scenario = predictor.forecast_scenarios([make_series(y), make_series(y)], HORIZON, levels=LEVELS)[1]
    truncated = predictor.forecast(predictor.truncate_history(make_series(y)), HORIZON, levels=LEVELS)
    for outcome in (batch, scenario, truncated):
        assert isinstance(outcome, Forecast)
        for level, values in expected.quantiles.items():
            np.testing.assert_allclose(outcome.quantiles[level], values, rtol=1e-5)


def test_a_shift_from_actuals_moves_recalibrated_quantiles() -> None:
    predictor = Predictor(recalibrate(make_model()))
    plain = predictor.forecast(make_series(make_wave(40)), HORIZON, levels=(0.9,))
    shifted = predictor.forecast_batch(
        [make_series(make_wave(40))], HORIZON, levels=(0.9,), adaptive_state=AdaptiveState(shifts=((0.9, 1.0),))
    )[0]
    assert isinstance(shifted, Forecast)
    assert (shifted.quantiles[0.9] > plain.quantiles[0.9]).all()


def test_too_few_windows_leave_the_quantiles_of_the_head() -> None:
    model = make_model()
    calibrated = recalibrate(model, windows=1, series=3)
    assert calibrated.calibration is not None
    assert calibrated.calibration.pool.basis == "gaussian"
    raw, result = (forecast(Predictor(item), make_wave(40)) for item in (model, calibrated))
    for level in (0.1, 0.9):  # levels of the head
        np.testing.assert_allclose(result.quantiles[level], raw.quantiles[level], rtol=1e-4)


def test_a_recalibrated_model_survives_its_bundle(tmp_path: Path) -> None:
    model = recalibrate(make_model())
    save_bundle(model, tmp_path / "bundle", card="")
    loaded = load_predictor(tmp_path / "bundle")
    expected = forecast(Predictor(model), make_wave(40))
    for level, values in forecast(loaded, make_wave(40)).quantiles.items():
        np.testing.assert_allclose(values, expected.quantiles[level], rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [{"head": {"kind": "point"}}, {"head": {"kind": "gaussian"}, "decoder": "direct", "block_steps": None}],
)
def test_models_without_quantiles_refuse_levels(fields: dict[str, Any]) -> None:
    predictor = Predictor(make_model(**fields))
    assert not predictor.has_quantiles
    with pytest.raises(LevelOutOfRange, match="not calibrated"):
        forecast(predictor, make_wave(40))


def test_scenarios_have_the_quantiles_of_forecasts() -> None:
    predictor, series = Predictor(make_model()), make_series(make_wave(40))
    outcomes = predictor.forecast_scenarios([series, series], HORIZON, levels=LEVELS)
    expected = predictor.forecast(series, HORIZON, levels=LEVELS)
    for outcome in outcomes:
        assert isinstance(outcome, Forecast)
        np.testing.assert_allclose(outcome.quantiles[0.9], expected.quantiles[0.9], rtol=1e-12)


def test_a_carried_history_has_the_quantiles_of_the_whole_one() -> None:
    model = make_model(reads="history")
    predictor, series = Predictor(model), make_series(make_wave(90))
    carried = predictor.truncate_history(series)
    assert carried.history_summary is not None
    expected = predictor.forecast(series, HORIZON, levels=LEVELS)
    actual = predictor.forecast(carried, HORIZON, levels=LEVELS)
    np.testing.assert_allclose(actual.quantiles[0.1], expected.quantiles[0.1], rtol=1e-4)
    assert isinstance(choose_engine(model), RunningEngine)


@pytest.mark.parametrize("fields", [{}, {"decoder": "direct", "block_steps": None}])
def test_joint_quantiles_are_wider_and_keep_their_levels(fields: dict[str, Any]) -> None:
    predictor, series = Predictor(recalibrate(make_model(**fields))), make_series(make_wave(40))
    single = predictor.forecast(series, HORIZON, levels=LEVELS)
    joint = predictor.forecast(series, HORIZON, levels=LEVELS, joint=True)
    assert list(joint.quantiles) == [0.1, 0.75, 0.9]
    assert np.array_equal(joint.mean, single.mean)
    assert (joint.quantiles[0.9] > single.quantiles[0.9]).all()
    assert (joint.quantiles[0.1] < single.quantiles[0.1]).all()
    scenarios = predictor.forecast_scenarios([series], HORIZON, levels=LEVELS, joint=True)[0]
    assert isinstance(scenarios, Forecast)
    np.testing.assert_allclose(scenarios.quantiles[0.9], joint.quantiles[0.9])


def test_joint_quantiles_need_a_calibration() -> None:
    with pytest.raises(LevelOutOfRange, match="calibrated model"):
        Predictor(make_model()).forecast(make_series(make_wave(40)), HORIZON, levels=LEVELS, joint=True)


def test_sample_paths_of_a_recalibrated_head_have_its_quantiles_and_keep_their_numbers() -> None:
    model = make_model(block_steps=HORIZON)
    predictor, series = Predictor(recalibrate(model)), make_series(make_wave(40))
    [paths] = predictor.sample_batch([series], HORIZON, paths=4000, seed=3)
    assert isinstance(paths, np.ndarray)
    [raw] = Predictor(model).sample_batch([series], HORIZON, paths=4000, seed=3)
    expected = predictor.forecast(series, HORIZON, levels=(0.1, 0.9))
    width = expected.quantiles[0.9] - expected.quantiles[0.1]
    for level, values in expected.quantiles.items():
        np.testing.assert_array_less(np.abs(np.quantile(paths, level, axis=0) - values), 0.06 * width)
    assert (np.argsort(paths, axis=0) == np.argsort(raw, axis=0)).mean() > 0.95
    [later] = predictor.sample_batch([series], HORIZON, paths=7, seed=3, first_path=100)
    np.testing.assert_allclose(later, paths[100:107])


def test_joint_quantiles_without_levels_are_refused_rather_than_ignored() -> None:
    with pytest.raises(LevelOutOfRange, match="found none"):
        Predictor(recalibrate(make_model())).forecast(make_series(make_wave(40)), HORIZON, joint=True)
