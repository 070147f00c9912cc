"""Blend weights: as good as a grid search, from the validation windows alone, and fitted only where the gain is clear."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from forecaster.engines.statistical.blend import NETWORK, forecast_component
from forecaster.errors import BadSpec
from forecaster.evaluation import blend_weights
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.blend_weights import choose_weights, fit_blend, optimal_weights
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel
from forecaster.training.fit import fit as train
from forecaster.training.fit import refit
from tests.case_selection import sample_cases
from tests.factories import make_fitted_model, make_series, make_spec, make_wave

pytestmark = pytest.mark.integration

THETA, ETS = "dynamic_optimized_theta", "auto_ets"
HORIZON, WINDOWS = 5, 2

pytest.importorskip("statsforecast")


def simulate_mixture(
    true_weights: dict[str, float], *, series: int = 60, noise: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """The actuals are a known mixture of the forecasts with noise; the series have very different sizes."""
    rng, shape = np.random.default_rng(seed), (series, WINDOWS, 6)
    sizes = 10.0 ** rng.uniform(-3, 3, size=(series, 1, 1))
    forecasts = {name: sizes * rng.normal(size=shape) for name in true_weights}
    mix = sum(weight * forecasts[name] for name, weight in true_weights.items())
    return mix + noise * sizes * rng.standard_t(3, size=shape), forecasts, sizes[:, 0, 0]


def absolute_loss(differences: np.ndarray, error_weights: np.ndarray, weights: np.ndarray) -> float:
    return float(error_weights @ np.abs(differences @ weights))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("forecasts", "steps"), [(2, 100), (3, 50), (4, 20)])
@pytest.mark.parametrize("errors", [3, 40, 2000])
def test_no_grid_weights_beat_the_optimal_weights(forecasts: int, steps: int, errors: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    common = rng.standard_t(2, size=(errors, 1))
    differences = common + rng.normal(size=(errors, forecasts)) * rng.uniform(0.2, 2, size=forecasts)
    error_weights = rng.uniform(0.1, 1, size=errors)
    error_weights /= error_weights.sum()
    weights = optimal_weights(differences, error_weights)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    grid = [percents for percents in product(range(steps + 1), repeat=forecasts - 1) if sum(percents) <= steps]
    smallest = min(
        absolute_loss(differences, error_weights, np.array([*percents, steps - sum(percents)]) / steps)
        for percents in grid
    )
    assert absolute_loss(differences, error_weights, weights) <= smallest + 1e-4
    np.testing.assert_array_equal(weights, optimal_weights(differences, error_weights))


def test_the_best_weight_of_two_forecasts_is_a_weighted_median() -> None:
    rng = np.random.default_rng(0)
    differences, error_weights = rng.normal(size=(301, 2)) + rng.normal(size=(301, 1)), np.full(301, 1 / 301)
    slopes, breakpoints = (
        differences[:, 1] - differences[:, 0],
        differences[:, 1] / (differences[:, 1] - differences[:, 0]),
    )
    order = np.argsort(breakpoints)
    middle = np.searchsorted(np.cumsum(np.abs(slopes)[order]), np.abs(slopes).sum() / 2)
    assert optimal_weights(differences, error_weights)[0] == pytest.approx(
        breakpoints[order][middle].clip(0, 1), abs=0.01
    )


@pytest.mark.parametrize(
    "gaps",
    [np.zeros((5, 3)), np.ones((5, 3)), np.array([[0.0, 1.0], [0.0, -2.0]]), np.array([[2.0, 0.0], [1.0, 0.0]])],
    ids=["all exact", "all the same", "the first exact", "the second exact"],
)
def test_forecasts_with_zero_error_or_no_difference_get_weights(gaps: np.ndarray) -> None:
    weights = optimal_weights(gaps, np.full(len(gaps), 1 / len(gaps)))
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    assert np.abs(gaps @ weights).mean() == pytest.approx(np.abs(gaps).mean(axis=0).min(), abs=1e-4)


@pytest.mark.parametrize(
    "truth", [{NETWORK: 0.7, THETA: 0.3}, {NETWORK: 0.1, THETA: 0.6, ETS: 0.3}, {NETWORK: 0.0, THETA: 1.0}]
)
def test_a_known_mixture_is_recovered(truth: dict[str, float]) -> None:
    result = choose_weights(*simulate_mixture(truth))
    assert result.chosen == "optimal"
    assert list(result.weights) == list(truth)
    assert result.weights == pytest.approx(truth, abs=0.03)
    assert sum(round(100 * weight) for weight in result.weights.values()) == 100
    assert result.errors["optimal"] < min(result.errors["network"], result.errors["equal"])
    assert choose_weights(*simulate_mixture(truth)) == result


def test_useless_models_get_no_weight() -> None:
    actual, forecasts, scale = simulate_mixture({NETWORK: 1.0, THETA: 0.0}, noise=0.01)
    assert choose_weights(actual, forecasts, scale).weights == {NETWORK: 1.0, THETA: 0.0}


def test_the_errors_equal_the_backtest_mase_and_a_slow_loop() -> None:
    actual, forecasts, scale = simulate_mixture({NETWORK: 0.5, THETA: 0.5}, series=7)
    actual[2, 0, 3:] = np.nan
    scale[4] = np.nan
    expected_errors = [
        np.nanmean(np.abs(a - f)) / s for a, f, s in zip(actual, forecasts[NETWORK], scale, strict=True) if s > 0
    ]
    result = choose_weights(actual, forecasts, scale)
    assert result.errors["network"] == pytest.approx(np.mean(expected_errors))


@pytest.mark.parametrize("models", sample_cases([[THETA], [THETA, ETS], [THETA, ETS, "auto_arima"]]))
def test_when_equal_weights_are_correct_others_are_chosen_in_about_one_of_twenty(models: list[str]) -> None:
    truth = dict.fromkeys([NETWORK, *models], 1 / (1 + len(models)))
    choices = [choose_weights(*simulate_mixture(truth, series=200, noise=1.0, seed=seed)).chosen for seed in range(100)]
    assert choices.count("network") == 0
    assert choices.count("optimal") <= 12


def test_no_weights_are_fitted_from_a_single_window() -> None:
    actual, forecasts, scale = simulate_mixture({NETWORK: 0.9, THETA: 0.1}, series=1, noise=0.01)
    result = choose_weights(actual[:, :1], {name: values[:, :1] for name, values in forecasts.items()}, scale)
    assert (result.chosen, result.weights) == ("network", {NETWORK: 1.0, THETA: 0.0})
    assert result.errors["optimal"] < result.errors["network"]


def test_the_network_replaces_a_missing_model_forecast() -> None:
    actual, forecasts, scale = simulate_mixture({NETWORK: 0.7, THETA: 0.3})
    with_gaps = {**forecasts, THETA: forecasts[THETA].copy()}
    with_gaps[THETA][::3] = np.nan
    filled = {**forecasts, THETA: np.where(np.isnan(with_gaps[THETA]), forecasts[NETWORK], forecasts[THETA])}
    assert choose_weights(actual, with_gaps, scale) == choose_weights(actual, filled, scale)
    without_model = choose_weights(actual, {**forecasts, THETA: np.full(actual.shape, np.nan)}, scale)
    assert without_model.weights == {NETWORK: 1.0, THETA: 0.0}


@pytest.mark.parametrize("missing", ["actual", "network", "scale"])
def test_without_measurable_errors_only_the_network_is_used(missing: str) -> None:
    actual, forecasts, scale = simulate_mixture({NETWORK: 0.2, THETA: 0.8})
    for values in ({"actual": actual, "network": forecasts[NETWORK], "scale": scale}[missing],):
        values[:] = np.nan
    assert choose_weights(actual, forecasts, scale) == ({NETWORK: 1.0, THETA: 0.0}, "network", {})


def make_seasonal_panel(count: int = 8, steps: int = 60) -> Panel:
    return Panel([make_series(make_wave(steps, seed=index), name=f"s{index}") for index in range(count)], "h")


def test_a_model_is_blended_and_calibrated_on_its_own_validation_windows() -> None:
    panel = make_seasonal_panel()
    model = make_fitted_model(make_spec(horizon=HORIZON, blend=[THETA], training={"valid_windows": WINDOWS}))
    blended = fit_blend(model, panel, windows=WINDOWS)
    result = backtest(
        panel,
        {NETWORK: Predictor(model)},
        horizon=HORIZON,
        windows=WINDOWS,
        season=4,
        min_history=model.spec.min_steps,
    )
    theta = np.stack(
        [
            forecast_component(
                THETA, [series.y[: len(series) - offset] for offset in result.origin_offsets], season=4, horizon=HORIZON
            ).forecasts
            for series in panel.series
        ]
    )
    expected = choose_weights(result.actual, {NETWORK: result.forecasts[NETWORK], THETA: theta}, result.scale)
    assert blended.weights == expected
    assert blended.model.blend_weights == expected.weights
    assert expected.weights[THETA] > 0, "random weights forecast worse than Theta"
    assert blended.model.calibration is not None
    residuals = result.actual - (
        expected.weights[NETWORK] * result.forecasts[NETWORK] + expected.weights[THETA] * theta
    )
    calibration = blend_weights.calibrate_on_backtest(
        model, replace(result, forecasts={"model": result.actual - residuals}), "model"
    ).calibration
    assert blended.model.calibration == calibration


def test_weights_do_not_depend_on_data_after_the_panel() -> None:
    spec = make_spec(horizon=HORIZON, blend=[THETA], training={"valid_windows": WINDOWS})
    panel = make_seasonal_panel()
    extended = Panel([replace(item, y=np.append(item.y, np.full(HORIZON, 1e6))) for item in panel.series], "h")
    truncated = Panel([item.take_first(len(item) - HORIZON) for item in extended.series], "h")
    first, second = (fit_blend(make_fitted_model(spec), data, windows=WINDOWS) for data in (panel, truncated))
    assert first.weights == second.weights
    assert first.model.calibration == second.model.calibration


def test_a_refit_keeps_the_blend() -> None:
    training = {"steps": 2, "epoch_steps": 1, "batch": 4, "valid_windows": 1, "refit": True}
    fitted = train(
        make_seasonal_panel(3), make_spec(horizon=HORIZON, blend=[THETA], training=training), accelerator="cpu"
    )
    blended = fit_blend(fitted.model, make_seasonal_panel(3), windows=1).model
    refitted = refit(make_seasonal_panel(3), fitted._replace(model=blended), accelerator="cpu")
    assert refitted.blend_weights == blended.blend_weights
    assert refitted.blend_weights
    assert refitted.calibration == blended.calibration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blend": [THETA, THETA]}, "every model once"),
        ({"blend": ["prophet"]}, "blend"),
        ({"blend": [THETA], "training": {"valid_windows": 0}}, "validation windows"),
    ],
)
def test_an_invalid_blend_is_rejected(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        make_spec(**fields)  # type: ignore[arg-type]
