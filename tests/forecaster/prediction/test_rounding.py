"""Quantiles of small counts are whole numbers, where that lowers their loss; those of other data are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from forecaster.bundle.pretrained.base import specialize_base
from forecaster.data.split import hold_out
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.calibration import add_quantiles, calibrate_model
from forecaster.metrics import DECILES, weighted_quantile_loss
from forecaster.prediction.bounds import without_bounds
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel
from tests.factories import make_fitted_model, make_panel, make_series, make_spec

HORIZON, LEVELS = 6, (0.1, 0.5, 0.9)


def make_counts(*, rate: float = 0.4, series: int = 60) -> Panel:
    rng = np.random.default_rng(0)
    return make_panel(*(rng.poisson(rate * rng.gamma(2.0), 60).astype(float) for _ in range(series)))


def calibrate_base(panel: Panel) -> FittedModel:
    model = specialize_base(panel.freq, horizon=HORIZON, season=1).to_fitted_model()
    return calibrate_model(model, panel, windows=3)


def test_rounded_quantiles_of_small_counts_have_a_lower_loss_and_no_difficulty() -> None:
    panel = make_counts()
    model = calibrate_base(hold_out(panel, HORIZON).history)
    assert model.calibration is not None
    assert model.calibration.is_rounded
    assert model.calibration.difficulty is None
    losses = {}
    for name, item in {"rounded": model, "exact": without_bounds(model)}.items():
        result = backtest(panel, {name: Predictor(item)}, horizon=HORIZON, windows=1, season=1)
        quantiles = add_quantiles(result, {name: item}, levels=DECILES).quantiles[name]
        assert (quantiles == np.round(quantiles)).all() == (name == "rounded")
        losses[name] = weighted_quantile_loss(result.actual, quantiles, np.array(DECILES)).mean()
    assert losses["rounded"] < 0.97 * losses["exact"]


@pytest.mark.parametrize("decoder", ["block", "direct"])
def test_forecasts_scenarios_and_backtests_are_rounded_alike_and_means_are_not(decoder: str) -> None:
    model = calibrate_base(make_counts())
    if decoder == "direct":
        spec = make_spec(horizon=HORIZON, decoder="direct")
        model = calibrate_model(make_fitted_model(spec), make_counts(), windows=3)
    assert model.calibration is not None
    model = replace(model, calibration=model.calibration.model_copy(update={"is_rounded": True}))
    predictor, series = Predictor(model), make_counts().series[0]
    result = predictor.forecast(series, HORIZON, levels=LEVELS)
    assert any((values % 1 != 0).any() for values in [result.mean])
    assert all((values % 1 == 0).all() for values in result.quantiles.values())
    scenario = predictor.forecast_scenarios([series], HORIZON, levels=LEVELS)[0]
    assert {level: values.tolist() for level, values in scenario.quantiles.items()} == {  # type: ignore[union-attr]
        level: values.tolist() for level, values in result.quantiles.items()
    }


def test_a_history_that_is_no_count_has_exact_quantiles() -> None:
    predictor = Predictor(calibrate_base(make_counts()))
    counts = make_counts().series[0].y
    halves = predictor.forecast(make_series(counts / 2), HORIZON, levels=LEVELS)
    assert any((values % 1 != 0).any() for values in halves.quantiles.values())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (make_counts(rate=20.0), "large counts"),
        (make_panel(*(0.5 * item.y for item in make_counts().series)), "no whole numbers"),
        (make_panel(*(item.y - 1 for item in make_counts().series)), "negative values"),
    ],
)
def test_other_data_are_not_rounded(values: Panel, reason: str) -> None:
    calibration = calibrate_base(values).calibration
    assert calibration is not None, reason
    assert not calibration.is_rounded, reason
