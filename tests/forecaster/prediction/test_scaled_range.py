"""The range of scaled inputs: measured as the network does, learned by `fit`, and left by histories of another kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from forecaster.model.scaling import measure_scale, settle_scale
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.prediction.scaled_range import (
    SCALED_RANGE_FACT,
    ScaledRange,
    learn_scaled_range,
    read_scaled_range,
    scale_histories,
)
from tests.factories import make_fitted_model, make_panel, make_series, make_spec, make_wave

WORD = "outside the values that the model has learned from"


def make_rows() -> np.ndarray:
    rows = np.stack([make_wave(40, seed=seed) * 10.0**seed for seed in range(4)])
    rows[1, :7], rows[2, [3, 9, 20]], rows[3] = np.nan, np.nan, rows[3] - 1000
    return rows


@pytest.mark.parametrize(
    ("scaling", "transform", "reads"),
    [
        (scaling, transform, reads)
        for scaling in ("none", "mean_abs", "standard", "last", "level_season")
        for transform in ("none", "log")
        for reads in ("window", "history")
        if (scaling, transform) != ("mean_abs", "log") and (scaling, reads) != ("last", "history")
    ],
)
def test_histories_are_scaled_as_by_the_network(scaling: Any, transform: Any, reads: str) -> None:
    spec, rows = make_spec(scaling=scaling, transform=transform, reads=reads), make_rows()
    tensor = torch.from_numpy(rows)
    if reads == "window":
        scale = measure_scale(tensor, scaling, season=4, transform=transform)
    else:
        scale = settle_scale(tensor, scaling, initial_steps=spec.context, season=4, transform=transform).scale
    np.testing.assert_allclose(scale_histories(rows, spec, season=4), scale.apply(tensor).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reads", ["window", "history"])
def test_the_learned_range_covers_the_training_data(reads: str) -> None:
    spec = make_spec(scaling="mean_abs", reads=reads)
    panel = make_panel(make_wave(40), make_wave(9, seed=1), 1000 * make_wave(60, seed=2), np.full(5, np.nan))
    learned = learn_scaled_range(panel, spec, season=4)
    assert learned is not None
    assert 0 < learned.low < 1 < learned.high < 5
    assert learn_scaled_range(make_panel(np.full(5, np.nan)), spec, season=4) is None


@pytest.mark.parametrize(
    ("scaled_range", "exceeds"),
    [
        ((0.4, 2.0), False),
        ((0.38, 2.49), False),
        ((0.37, 2.0), True),
        ((0.5, 2.51), True),
        ((-1.0, -1.0), True),
        ((np.nan, np.nan), False),
        ((0.5, np.inf), True),
    ],
)
def test_a_quarter_further_from_zero_is_outside(scaled_range: tuple[float, float], exceeds: bool) -> None:
    assert ScaledRange(*scaled_range).exceeds(ScaledRange(0.5, 2.0)) is exceeds


def make_model(*, reads: str = "window", **facts: Any) -> FittedModel:
    return replace(make_fitted_model(make_spec(scaling="mean_abs", reads=reads)), facts=facts)


@pytest.mark.parametrize("reads", ["window", "history"])
def test_a_history_of_another_sign_is_a_warning_of_its_series_only(reads: str) -> None:
    panel = make_panel(make_wave(40), make_wave(50, seed=1))
    model = make_model(reads=reads)
    learned = learn_scaled_range(panel, model.spec, season=model.season)
    assert learned is not None
    predictor = Predictor(replace(model, facts={SCALED_RANGE_FACT: list(learned)}))
    assert read_scaled_range(predictor.fitted_model.facts) == learned
    histories = [1000 * make_wave(30), -100 - make_wave(30), np.append(make_wave(29), 50.0), make_wave(30, seed=1)]
    forecasts = [predictor.forecast(make_series(y), 3) for y in histories]
    batch = predictor.forecast_batch([make_series(y) for y in histories], 3)
    counts = [[WORD in warning for warning in forecast.warnings] for forecast in forecasts]
    assert counts == [[], [True], [True], []]
    assert [getattr(forecast, "warnings", None) for forecast in batch] == [forecast.warnings for forecast in forecasts]


def test_a_model_without_a_recorded_range_gives_no_such_warning() -> None:
    assert Predictor(make_model(data="shop")).forecast(make_series(-100 - make_wave(30)), 3).warnings == ()


def test_a_truncated_history_of_a_network_that_reads_whole_histories_gives_no_such_warning() -> None:
    predictor = Predictor(make_model(reads="history", scaled_range=[0.9, 1.1]))
    series = make_series(make_wave(300))
    assert len(predictor.forecast(series, 3).warnings) == 1
    truncated = predictor.truncate_history(series)
    assert truncated.history_summary is not None
    assert predictor.forecast(truncated, 3).warnings == ()
