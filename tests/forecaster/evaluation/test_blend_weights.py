"""Weights of a blend: as good as a search through all of them, from the validation windows alone, and careful."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from forecaster.errors import BadSpec
from forecaster.evaluation import blend_weights
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.blend_weights import choose_weights, fit_blend, optimal_weights
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel
from forecaster.statistical.blend import NETWORK, forecast_component
from forecaster.training.fit import fit as train
from forecaster.training.fit import refit
from tests.factories import make_forecaster, make_series, make_spec, make_wave

pytestmark = pytest.mark.integration

THETA, ETS = "dynamic_optimized_theta", "auto_ets"
HORIZON, WINDOWS = 5, 2

pytest.importorskip("statsforecast")


def simulate_mixture(
    true_weights: dict[str, float], *, series: int = 60, noise: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """What came is a known mix of the forecasts and some noise; series are of very different sizes."""
    draw, shape = np.random.default_rng(seed), (series, WINDOWS, 6)
    sizes = 10.0 ** draw.uniform(-3, 3, size=(series, 1, 1))
    forecasts = {name: sizes * draw.normal(size=shape) for name in true_weights}
    mix = sum(weight * forecasts[name] for name, weight in true_weights.items())
    return mix + noise * sizes * draw.standard_t(3, size=shape), forecasts, sizes[:, 0, 0]


def absolute_loss(differences: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> float:
    return float(counts @ np.abs(differences @ weights))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("forecasts", "steps"), [(2, 100), (3, 50), (4, 20)])
@pytest.mark.parametrize("errors", [3, 40, 2000])
def test_no_grid_weights_beat_the_optimal_weights(forecasts: int, steps: int, errors: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    common = draw.standard_t(2, size=(errors, 1))
    gaps = common + draw.normal(size=(errors, forecasts)) * draw.uniform(0.2, 2, size=forecasts)
    counts = draw.uniform(0.1, 1, size=errors)
    counts /= counts.sum()
    found = optimal_weights(gaps, counts)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    grid = [part for part in product(range(steps + 1), repeat=forecasts - 1) if sum(part) <= steps]
    least = min(absolute_loss(gaps, counts, np.array([*part, steps - sum(part)]) / steps) for part in grid)
    assert absolute_loss(gaps, counts, found) <= least + 1e-4
    np.testing.assert_array_equal(found, optimal_weights(gaps, counts))


def test_the_best_weight_of_two_forecasts_is_a_weighted_median() -> None:
    draw = np.random.default_rng(0)
    gaps, counts = draw.normal(size=(301, 2)) + draw.normal(size=(301, 1)), np.full(301, 1 / 301)
    slopes, at = gaps[:, 1] - gaps[:, 0], gaps[:, 1] / (gaps[:, 1] - gaps[:, 0])
    order = np.argsort(at)
    half = np.searchsorted(np.cumsum(np.abs(slopes)[order]), np.abs(slopes).sum() / 2)
    assert optimal_weights(gaps, counts)[0] == pytest.approx(at[order][half].clip(0, 1), abs=0.01)


@pytest.mark.parametrize(
    "gaps",
    [np.zeros((5, 3)), np.ones((5, 3)), np.array([[0.0, 1.0], [0.0, -2.0]]), np.array([[2.0, 0.0], [1.0, 0.0]])],
    ids=["all exact", "all the same", "the first exact", "the second exact"],
)
def test_forecasts_with_zero_error_or_no_difference_get_weights(gaps: np.ndarray) -> None:
    found = optimal_weights(gaps, np.full(len(gaps), 1 / len(gaps)))
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    assert np.abs(gaps @ found).mean() == pytest.approx(np.abs(gaps).mean(axis=0).min(), abs=1e-4)


@pytest.mark.parametrize(
    "truth", [{NETWORK: 0.7, THETA: 0.3}, {NETWORK: 0.1, THETA: 0.6, ETS: 0.3}, {NETWORK: 0.0, THETA: 1.0}]
)
def test_a_known_mixture_is_recovered(truth: dict[str, float]) -> None:
    found = choose_weights(*simulate_mixture(truth))
    assert found.chosen == "optimal"
    assert list(found.weights) == list(truth)
    assert found.weights == pytest.approx(truth, abs=0.03)
    assert sum(round(100 * weight) for weight in found.weights.values()) == 100
    assert found.errors["optimal"] < min(found.errors["network"], found.errors["equal"])
    assert choose_weights(*simulate_mixture(truth)) == found


def test_useless_models_get_no_weight() -> None:
    actual, forecasts, scale = simulate_mixture({NETWORK: 1.0, THETA: 0.0}, noise=0.01)
    assert choose_weights(actual, forecasts, scale).weights == {NETWORK: 1.0, THETA: 0.0}


def test_the_errors_equal_the_backtest_mase_and_a_slow_loop() -> None:
    actual, forecasts, scale = simulate_mixture({NETWORK: 0.5, THETA: 0.5}, series=7)
    actual[2, 0, 3:] = np.nan
    scale[4] = np.nan
    slow = [np.nanmean(np.abs(a - f)) / s for a, f, s in zip(actual, forecasts[NETWORK], scale, strict=True) if s > 0]
    found = choose_weights(actual, forecasts, scale)
    assert found.errors["network"] == pytest.approx(np.mean(slow))


@pytest.mark.parametrize("models", [[THETA], [THETA, ETS], [THETA, ETS, "auto_arima"]])
def test_when_equal_weights_are_correct_others_are_chosen_in_about_one_of_twenty(models: list[str]) -> None:
    truth = dict.fromkeys([NETWORK, *models], 1 / (1 + len(models)))
    found = [choose_weights(*simulate_mixture(truth, series=200, noise=1.0, seed=seed)).chosen for seed in range(100)]
    assert found.count("network") == 0
    assert found.count("optimal") <= 12


def test_no_weights_are_fitted_from_a_single_window() -> None:
    actual, forecasts, scale = simulate_mixture({NETWORK: 0.9, THETA: 0.1}, series=1, noise=0.01)
    once = choose_weights(actual[:, :1], {name: each[:, :1] for name, each in forecasts.items()}, scale)
    assert (once.chosen, once.weights) == ("network", {NETWORK: 1.0, THETA: 0.0})
    assert once.errors["optimal"] < once.errors["network"]


def test_the_network_replaces_a_missing_model_forecast() -> None:
    actual, forecasts, scale = simulate_mixture({NETWORK: 0.7, THETA: 0.3})
    holes = {**forecasts, THETA: forecasts[THETA].copy()}
    holes[THETA][::3] = np.nan
    filled = {**forecasts, THETA: np.where(np.isnan(holes[THETA]), forecasts[NETWORK], forecasts[THETA])}
    assert choose_weights(actual, holes, scale) == choose_weights(actual, filled, scale)
    never = choose_weights(actual, {**forecasts, THETA: np.full(actual.shape, np.nan)}, scale)
    assert never.weights == {NETWORK: 1.0, THETA: 0.0}


@pytest.mark.parametrize("missing", ["actual", "network", "scale"])
def test_without_measurable_errors_only_the_network_is_used(missing: str) -> None:
    actual, forecasts, scale = simulate_mixture({NETWORK: 0.2, THETA: 0.8})
    for values in ({"actual": actual, "network": forecasts[NETWORK], "scale": scale}[missing],):
        values[:] = np.nan
    assert choose_weights(actual, forecasts, scale) == ({NETWORK: 1.0, THETA: 0.0}, "network", {})


def make_seasonal_panel(count: int = 8, steps: int = 60) -> Panel:
    return Panel([make_series(make_wave(steps, seed=number), name=f"s{number}") for number in range(count)], "h")


def test_a_model_is_blended_and_calibrated_on_its_own_validation_windows() -> None:
    whole = make_seasonal_panel()
    forecaster = make_forecaster(make_spec(horizon=HORIZON, blend=[THETA], training={"valid_windows": WINDOWS}))
    found = fit_blend(forecaster, whole, windows=WINDOWS)
    result = backtest(
        whole,
        {NETWORK: Predictor(forecaster)},
        horizon=HORIZON,
        windows=WINDOWS,
        season=4,
        min_history=forecaster.spec.min_steps,
    )
    theta = np.stack(
        [
            forecast_component(
                THETA, [one.y[: len(one) - left] for left in result.origin_offsets], season=4, horizon=HORIZON
            ).forecasts
            for one in whole.series
        ]
    )
    expected = choose_weights(result.actual, {NETWORK: result.forecasts[NETWORK], THETA: theta}, result.scale)
    assert found.weights == expected
    assert found.model.blend_weights == expected.weights
    assert expected.weights[THETA] > 0, "random weights forecast worse than Theta"
    assert found.model.calibration is not None
    apart = result.actual - (expected.weights[NETWORK] * result.forecasts[NETWORK] + expected.weights[THETA] * theta)
    alone = blend_weights.calibrate_on_backtest(
        forecaster, replace(result, forecasts={"own": result.actual - apart}), "own"
    ).calibration
    assert found.model.calibration == alone


def test_weights_do_not_depend_on_data_after_the_panel() -> None:
    spec = make_spec(horizon=HORIZON, blend=[THETA], training={"valid_windows": WINDOWS})
    known = make_seasonal_panel()
    later = Panel([replace(one, y=np.append(one.y, np.full(HORIZON, 1e6))) for one in known.series], "h")
    cut = Panel([one.take_first(len(one) - HORIZON) for one in later.series], "h")
    first, second = (fit_blend(make_forecaster(spec), one, windows=WINDOWS) for one in (known, cut))
    assert first.weights == second.weights
    assert first.model.calibration == second.model.calibration


def test_a_refit_keeps_the_blend() -> None:
    training = {"steps": 2, "epoch_steps": 1, "batch": 4, "valid_windows": 1, "refit": True}
    fitted = train(
        make_seasonal_panel(3), make_spec(horizon=HORIZON, blend=[THETA], training=training), accelerator="cpu"
    )
    found = fit_blend(fitted.model, make_seasonal_panel(3), windows=1).model
    again = refit(make_seasonal_panel(3), fitted._replace(model=found), accelerator="cpu")
    assert again.blend_weights == found.blend_weights
    assert again.blend_weights
    assert again.calibration == found.calibration


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
