"""The same weights with windows and with whole histories, and the gap between their forecasts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.carrying import measure_carry_gap, with_reads
from forecaster.bundle.pretrained.base import specialize_base
from forecaster.errors import BadSpec, HistoryTooShort
from forecaster.evaluation.backtest import backtest
from forecaster.prediction.predictor import FittedModel, Predictor
from tests.factories import make_fitted_model, make_panel, make_spec, make_wave

pytestmark = pytest.mark.integration

PANEL = make_panel(make_wave(60), 7 * make_wave(45, seed=1))


@pytest.fixture(scope="module")
def windowed_model() -> FittedModel:
    return make_fitted_model(make_spec(cell="lstm", context=6, season=4))


def test_the_gap_is_the_scaled_difference_of_the_two_forecasts(windowed_model: FittedModel) -> None:
    gap = measure_carry_gap(windowed_model, PANEL, windows=6, stride=3)
    history_model = with_reads(windowed_model, "history")
    predictors = {
        "window": Predictor(windowed_model).forecast_batch,
        "history": Predictor(history_model).forecast_batch,
    }
    result = backtest(PANEL, predictors, horizon=5, windows=6, season=4, stride=3)
    distance = np.abs(result.forecasts["window"] - result.forecasts["history"]).mean(axis=(1, 2)) / result.scale
    assert gap.distance == pytest.approx(distance.mean(), rel=1e-4)
    assert gap.window == pytest.approx(result.scores("window")["mase"], rel=1e-4)
    assert gap.history == pytest.approx(result.scores("history")["mase"], rel=1e-4)
    assert gap.distance > 0.01


def test_the_gap_is_symmetric_and_zero_within_the_context(windowed_model: FittedModel) -> None:
    assert measure_carry_gap(with_reads(windowed_model, "history"), PANEL, windows=2) == measure_carry_gap(
        windowed_model, PANEL, windows=2
    )
    short = make_panel(make_wave(11), make_wave(10, seed=1))  # at most six steps of history
    assert measure_carry_gap(windowed_model, short, windows=1).distance == pytest.approx(0.0, abs=1e-5)


def test_the_copy_shares_the_weights_and_leaves_the_original_unchanged(windowed_model: FittedModel) -> None:
    history_model = with_reads(windowed_model, "history")
    assert (windowed_model.spec.reads, windowed_model.network.reads) == ("window", "window")
    assert (history_model.spec.reads, history_model.network.reads) == ("history", "history")
    pairs = zip(windowed_model.network.state_dict().values(), history_model.network.state_dict().values(), strict=True)
    assert all(torch.equal(weight, copied_weight) for weight, copied_weight in pairs)


def test_the_pretrained_network_reads_windows_and_whole_histories_with_the_same_weights() -> None:
    base = specialize_base("h", horizon=5, season=4).to_fitted_model()
    assert measure_carry_gap(with_reads(base, "window", context=60), PANEL, windows=3).distance < 1e-5
    assert measure_carry_gap(with_reads(base, "window", context=8), PANEL, windows=3).distance > 0.01


def test_a_model_without_both_modes_has_no_gap() -> None:
    with pytest.raises(BadSpec, match=r"'small' that reads history.*scaling"):
        measure_carry_gap(make_fitted_model(make_spec(scaling="last")), PANEL, windows=1)
    with pytest.raises(HistoryTooShort):
        measure_carry_gap(make_fitted_model(make_spec()), PANEL, windows=50)
