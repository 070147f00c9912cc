"""Validation, backtest and prediction come to the same numbers; so does a rollout written out by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from forecaster.data.windows import Window, stack
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.validation import exposure_gap, score, trials
from forecaster.model.rollout import begin, roll, warm_up
from forecaster.prediction.predictor import Predictor
from forecaster.spec import Spec
from tests.factories import foretell, make_forecaster, make_spec, next_step, one_series, panel_of, wave

KINDS = list(product(["gru", "lstm", "elman"], [1, 2], ["none", "mean_abs", "standard"]))
SEASON, WINDOWS = 4, 3


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind)))
def spec(request: pytest.FixtureRequest) -> Spec:
    cell, layers, scaling = request.param
    return make_spec(cell=cell, layers=layers, scaling=scaling)


def test_validation_backtest_and_prediction_score_the_same_rollout(spec: Spec) -> None:
    forecaster = make_forecaster(spec)
    predictor = Predictor(forecaster)
    panel = panel_of(wave(60), 5 * wave(41, seed=1), wave(22, seed=2))
    result = backtest(panel, {"net": predictor.forecast_each}, horizon=spec.horizon, windows=WINDOWS, season=SEASON)
    batches = trials(panel.series, context=spec.context, horizon=spec.horizon, windows=WINDOWS, season=SEASON)
    found = [score(forecaster.network, batch) for batch in batches]
    assert len(found) == 1
    assert float(found[0].rollout) == pytest.approx(result.scores("net")["mase"], rel=1e-6)
    for number, one in enumerate(panel.series):
        for window in range(WINDOWS):
            cut = len(one) - (WINDOWS - window) * spec.horizon
            alone = predictor.forecast(one.until(cut), spec.horizon)
            np.testing.assert_allclose(result.forecasts["net"][number, window], alone.mean, rtol=0, atol=1e-5)
            assert result.cutoffs[number][window] == one.stamps[cut - 1]
            assert result.actual[number, window].tolist() == one.y[cut : cut + spec.horizon].tolist()
    gap = exposure_gap(forecaster.networks, batches)
    assert gap == pytest.approx(float(found[0].rollout / found[0].one_step))


def test_the_first_step_of_a_trial_is_the_same_forced_and_free(spec: Spec) -> None:
    network = make_forecaster(spec).network
    batch = trials(panel_of(wave(40)).series, context=16, horizon=1, windows=2, season=SEASON)[0]
    found = score(network, batch)
    assert float(found.rollout) == pytest.approx(float(found.one_step), rel=1e-6)


def test_teacher_forcing_is_a_warm_up_of_every_length(spec: Spec) -> None:
    network, horizon = make_forecaster(spec).network, 4
    y = wave(30)
    batch = trials([one_series(y)], context=16, horizon=horizon, windows=1, season=SEASON)[0]
    start, _ = begin(network, batch.example.window)
    errors = []
    for step in range(horizon):
        seen = Window(torch.from_numpy(y[10 : 26 + step])[None])
        ahead = next_step(network, warm_up(network, seen, start))
        errors.append(float(ahead[0] - start.scale.apply(torch.tensor([[y[26 + step]]]).double())[0, 0]))
    found = score(network, batch)
    assert float(found.loss) == pytest.approx(np.mean(np.square(errors)), rel=1e-4)


def test_a_rollout_is_its_own_output_read_as_if_observed(spec: Spec) -> None:
    network = make_forecaster(spec).network
    y = torch.from_numpy(wave(16))[None]
    memory = warm_up(network, Window(y))
    rolled, end = roll(network, memory, horizon=6)
    followed = memory
    for step in range(6):
        torch.testing.assert_close(followed.scale.undo(next_step(network, followed)[:, None])[:, 0], rolled[:, step])
        followed = warm_up(network, Window(rolled[:, step : step + 1]), followed)
    torch.testing.assert_close(followed.state.hidden, end.state.hidden, rtol=0, atol=2e-6)


def test_the_network_reads_a_value_and_its_presence_and_says_a_linear_map_of_the_top_layer(spec: Spec) -> None:
    network = make_forecaster(spec).network
    window = stack([wave(16)], context=16)
    start, _ = begin(network, window)
    predictions, _ = foretell(network, window, start)
    inputs = torch.stack([start.scale.apply(window.values), torch.ones(1, 16)], dim=-1)
    top = inputs
    for number, layer in enumerate(network.recurrent.layers):
        hidden, cell = start.state.hidden[number : number + 1], start.state.cell
        top, _ = layer(top, hidden if cell is None else (hidden, cell[number : number + 1]))
    expected = top @ network.output.weight[0] + network.output.bias
    torch.testing.assert_close(predictions, expected)


def test_a_trial_with_unobserved_steps_counts_those_it_has() -> None:
    network = make_forecaster(make_spec()).network
    y = wave(40)
    whole = trials([one_series(y)], context=16, horizon=5, windows=1, season=SEASON)[0]
    y[[36, 39]] = np.nan
    gappy = trials([one_series(y)], context=16, horizon=5, windows=1, season=SEASON)[0]
    rolled, _ = roll(network, warm_up(network, whole.example.window), horizon=5)
    errors = (rolled - whole.example.future).abs()[0, [0, 2, 3]]
    assert score(network, gappy).rollout.item() == pytest.approx(float(errors.mean() / whole.seasonal_error[0]))


def test_an_origin_without_any_observation_after_it_is_no_trial() -> None:
    y = wave(40)
    y[30:35] = np.nan
    batch = trials([one_series(y)], context=16, horizon=5, windows=2, season=SEASON)[0]
    assert batch.example.future.tolist() == [y[35:].tolist()]


def test_trials_in_several_batches_are_the_trials_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    series = panel_of(*(wave(40, seed=number) for number in range(4))).series
    whole = trials(series, context=8, horizon=5, windows=2, season=SEASON)
    monkeypatch.setattr("forecaster.evaluation.validation.ROWS_AT_ONCE", 3)
    parts = trials(series, context=8, horizon=5, windows=2, season=SEASON)
    assert [len(part.seasonal_error) for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat([part.example.window.values for part in parts]), whole[0].example.window.values)
    network = make_forecaster(make_spec()).network
    assert exposure_gap([network], parts) == pytest.approx(exposure_gap([network], whole), rel=1e-6)
