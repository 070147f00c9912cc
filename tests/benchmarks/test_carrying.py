"""The same network behind either reading, and how far the two are apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.carrying import carry_gap, read_as
from forecaster.errors import BadSpec, HistoryTooShort
from forecaster.evaluation.backtest import backtest
from forecaster.prediction.predictor import Forecaster, Predictor
from tests.factories import make_forecaster, make_spec, panel_of, wave

PANEL = panel_of(wave(60), 7 * wave(45, seed=1))


@pytest.fixture(scope="module")
def windowed() -> Forecaster:
    return make_forecaster(make_spec(cell="lstm", context=6, season=4))


def test_the_gap_is_that_of_the_two_forecasts_in_errors_of_seasonal_naive(windowed: Forecaster) -> None:
    gap = carry_gap(windowed, PANEL, windows=6, stride=3)
    twin = read_as(windowed, "history")
    asks = {"window": Predictor(windowed).forecast_each, "history": Predictor(twin).forecast_each}
    result = backtest(PANEL, asks, horizon=5, windows=6, season=4, stride=3)
    apart = np.abs(result.forecasts["window"] - result.forecasts["history"]).mean(axis=(1, 2)) / result.scale
    assert gap.distance == pytest.approx(apart.mean(), rel=1e-4)
    assert gap.window == pytest.approx(result.scores("window")["mase"], rel=1e-4)
    assert gap.history == pytest.approx(result.scores("history")["mase"], rel=1e-4)
    assert gap.distance > 0.01


def test_the_gap_is_the_same_from_either_side_and_none_within_the_context(windowed: Forecaster) -> None:
    assert carry_gap(read_as(windowed, "history"), PANEL, windows=2) == carry_gap(windowed, PANEL, windows=2)
    short = panel_of(wave(11), wave(10, seed=1))  # no more than six steps are known
    assert carry_gap(windowed, short, windows=1).distance == pytest.approx(0.0, abs=1e-5)


def test_a_twin_has_the_same_weights_and_leaves_the_first_as_it_was(windowed: Forecaster) -> None:
    twin = read_as(windowed, "history")
    assert (windowed.spec.reads, windowed.network.reads) == ("window", "window")
    assert (twin.spec.reads, twin.network.reads) == ("history", "history")
    pairs = zip(windowed.network.state_dict().values(), twin.network.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_what_cannot_be_read_both_ways_has_no_gap() -> None:
    with pytest.raises(BadSpec, match=r"'small' that reads history.*scaling"):
        carry_gap(make_forecaster(make_spec(scaling="last")), PANEL, windows=1)
    with pytest.raises(HistoryTooShort):
        carry_gap(make_forecaster(make_spec()), PANEL, windows=50)
