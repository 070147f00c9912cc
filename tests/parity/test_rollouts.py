"""Validation, backtest and prediction give the same numbers, and so does a rollout that is written out step by step."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from forecaster.data.windows import Window, build_window
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.validation import build_validation_batches, compute_exposure_gap, score_batch
from forecaster.model.rollout import roll_out, start_rollout, warm_up
from forecaster.prediction.predictor import Predictor
from forecaster.spec import Spec
from tests.factories import (
    make_fitted_model,
    make_panel,
    make_series,
    make_spec,
    make_wave,
    predict_next_step,
    teacher_forced_predictions,
)

NETWORK_KINDS = list(product(["gru", "lstm", "elman"], [1, 2], ["none", "mean_abs", "standard"]))
SEASON, WINDOWS = 4, 3


@pytest.fixture(params=NETWORK_KINDS, ids=lambda kind: "-".join(map(str, kind)))
def spec(request: pytest.FixtureRequest) -> Spec:
    cell, layers, scaling = request.param
    return make_spec(cell=cell, layers=layers, scaling=scaling)


def test_validation_backtest_and_prediction_score_the_same_rollout(spec: Spec) -> None:
    model = make_fitted_model(spec)
    predictor = Predictor(model)
    panel = make_panel(make_wave(60), 5 * make_wave(41, seed=1), make_wave(22, seed=2))
    result = backtest(panel, {"net": predictor.forecast_batch}, horizon=spec.horizon, windows=WINDOWS, season=SEASON)
    batches = build_validation_batches(
        panel.series, context=spec.context, horizon=spec.horizon, windows=WINDOWS, season=SEASON
    )
    scores = [score_batch(model.network, batch) for batch in batches]
    assert len(scores) == 1
    assert float(scores[0].rollout) == pytest.approx(result.scores("net")["mase"], rel=1e-6)
    for index, series in enumerate(panel.series):
        for window in range(WINDOWS):
            cutoff = len(series) - (WINDOWS - window) * spec.horizon
            forecast = predictor.forecast(series.take_first(cutoff), spec.horizon)
            np.testing.assert_allclose(result.forecasts["net"][index, window], forecast.mean, rtol=0, atol=1e-5)
            assert result.cutoffs[index][window] == series.timestamps[cutoff - 1]
            assert result.actual[index, window].tolist() == series.y[cutoff : cutoff + spec.horizon].tolist()
    gap = compute_exposure_gap(model.networks, batches)
    assert gap == pytest.approx(float(scores[0].rollout / scores[0].one_step))


def test_the_first_step_of_a_validation_batch_is_equal_teacher_forced_and_free_running(spec: Spec) -> None:
    network = make_fitted_model(spec).network
    batch = build_validation_batches(make_panel(make_wave(40)).series, context=16, horizon=1, windows=2, season=SEASON)[
        0
    ]
    scores = score_batch(network, batch)
    assert float(scores.rollout) == pytest.approx(float(scores.one_step), rel=1e-6)


def test_teacher_forcing_equals_a_warm_up_of_every_length(spec: Spec) -> None:
    network, horizon = make_fitted_model(spec).network, 4
    y = make_wave(30)
    batch = build_validation_batches([make_series(y)], context=16, horizon=horizon, windows=1, season=SEASON)[0]
    start, _ = start_rollout(network, batch.example.window)
    errors = []
    for step in range(horizon):
        window = Window(torch.from_numpy(y[10 : 26 + step])[None])
        prediction = predict_next_step(network, warm_up(network, window, start))
        errors.append(float(prediction[0] - start.scale.apply(torch.tensor([[y[26 + step]]]).double())[0, 0]))
    scores = score_batch(network, batch)
    assert float(scores.loss) == pytest.approx(np.mean(np.square(errors)), rel=1e-4)


def test_a_rollout_equals_reading_its_own_output_as_observed(spec: Spec) -> None:
    network = make_fitted_model(spec).network
    y = torch.from_numpy(make_wave(16))[None]
    state = warm_up(network, Window(y))
    forecast, final_state = roll_out(network, state, horizon=6)
    current_state = state
    for step in range(6):
        torch.testing.assert_close(
            current_state.scale.undo(predict_next_step(network, current_state)[:, None])[:, 0], forecast[:, step]
        )
        current_state = warm_up(network, Window(forecast[:, step : step + 1]), current_state)
    torch.testing.assert_close(
        current_state.recurrent_state.hidden, final_state.recurrent_state.hidden, rtol=0, atol=2e-6
    )


def test_the_network_reads_value_and_mask_and_outputs_a_linear_map_of_the_top_layer(spec: Spec) -> None:
    network = make_fitted_model(spec).network
    window = build_window([make_wave(16)], context=16)
    start, _ = start_rollout(network, window)
    predictions, _ = teacher_forced_predictions(network, window, start)
    inputs = torch.stack([start.scale.apply(window.values), torch.ones(1, 16)], dim=-1)
    outputs = inputs
    for index, layer in enumerate(network.recurrent.layers):
        hidden, cell = start.recurrent_state.hidden[index : index + 1], start.recurrent_state.cell
        outputs, _ = layer(outputs, hidden if cell is None else (hidden, cell[index : index + 1]))
    expected = outputs @ network.output.weight[0] + network.output.bias
    torch.testing.assert_close(predictions, expected)


def test_a_validation_batch_counts_observed_steps_only() -> None:
    network = make_fitted_model(make_spec()).network
    y = make_wave(40)
    whole = build_validation_batches([make_series(y)], context=16, horizon=5, windows=1, season=SEASON)[0]
    y[[36, 39]] = np.nan
    with_gaps = build_validation_batches([make_series(y)], context=16, horizon=5, windows=1, season=SEASON)[0]
    forecast, _ = roll_out(network, warm_up(network, whole.example.window), horizon=5)
    errors = (forecast - whole.example.future).abs()[0, [0, 2, 3]]
    assert score_batch(network, with_gaps).rollout.item() == pytest.approx(
        float(errors.mean() / whole.seasonal_error[0])
    )


def test_an_origin_without_later_observations_is_not_validated() -> None:
    y = make_wave(40)
    y[30:35] = np.nan
    batch = build_validation_batches([make_series(y)], context=16, horizon=5, windows=2, season=SEASON)[0]
    assert batch.example.future.tolist() == [y[35:].tolist()]


def test_validation_in_several_batches_equals_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    series = make_panel(*(make_wave(40, seed=index) for index in range(4))).series
    whole = build_validation_batches(series, context=8, horizon=5, windows=2, season=SEASON)
    monkeypatch.setattr("forecaster.evaluation.validation.MAX_BATCH_ROWS", 3)
    parts = build_validation_batches(series, context=8, horizon=5, windows=2, season=SEASON)
    assert [len(part.seasonal_error) for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat([part.example.window.values for part in parts]), whole[0].example.window.values)
    network = make_fitted_model(make_spec()).network
    assert compute_exposure_gap([network], parts) == pytest.approx(compute_exposure_gap([network], whole), rel=1e-6)
