"""Neither horizon, batch, chunks, threads nor earlier calls change a forecast."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from forecaster.data.windows import Window, build_window
from forecaster.errors import FrequencyMismatch, HistoryTooShort, NotANumber
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, roll_out, start_rollout, warm_up
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast
from forecaster.spec import Spec
from tests.factories import make_fitted_model, make_series, make_spec, make_wave

pytestmark = pytest.mark.integration

TOLERANCE = 1e-6


def assert_equal_states(first: RolloutState, second: RolloutState, *, tolerance: float) -> None:
    pairs = [
        (first.recurrent_state.hidden, second.recurrent_state.hidden),
        (first.output, second.output),
        (first.recent, second.recent),
        (first.begun, second.begun),
    ]
    if first.recurrent_state.cell is not None and second.recurrent_state.cell is not None:
        pairs.append((first.recurrent_state.cell, second.recurrent_state.cell))
    assert (first.recurrent_state.cell is None) == (second.recurrent_state.cell is None)
    for first_part, second_part in [*pairs, *zip(first.scale, second.scale, strict=True)]:
        torch.testing.assert_close(first_part, second_part, rtol=tolerance, atol=tolerance)


def test_a_longer_horizon_starts_with_the_shorter_one(model: FittedModel) -> None:
    predictor, history = Predictor(model), make_series(make_wave(20))
    long = predictor.forecast(history, 30)
    assert len(np.unique(long.mean)) > 1
    for horizon in (1, 2, 29):
        short = predictor.forecast(history, horizon)
        assert np.array_equal(short.mean, long.mean[:horizon])
        assert short.ds.equals(long.ds[:horizon])


def test_a_forecast_of_a_series_does_not_depend_on_its_batch(spec: Spec, model: FittedModel) -> None:
    predictor = Predictor(model)
    with_gaps = make_wave(16, seed=3)
    with_gaps[[4, 5, 15]] = np.nan
    leading = np.append(np.full(10, np.nan), make_wave(6, seed=4))
    series = [
        make_series(make_wave(40)),
        make_series(make_wave(5, seed=1)),
        make_series(1e9 * make_wave(16, seed=2)),
        make_series(with_gaps),
        make_series(leading),
        make_series(np.zeros(16)),
        make_series(1e-9 * make_wave(7, seed=5)),
    ]
    batched = predictor.forecast_batch(series, 8)
    for item, outcome in zip(series, batched, strict=True):
        assert isinstance(outcome, Forecast)
        single = predictor.forecast(item, 8)
        magnitudes = [np.nanmean(np.abs(item.y)), np.abs(single.mean).max(), 1.0 if spec.scaling == "none" else 0.0]
        scale = float(max(magnitudes))
        np.testing.assert_allclose(outcome.mean, single.mean, rtol=0, atol=TOLERANCE * scale)


def test_a_bad_series_never_affects_its_neighbours() -> None:
    predictor, good = Predictor(make_fitted_model(make_spec())), make_series(make_wave(20), name="good")
    infinite = make_wave(20)
    infinite[-1] = np.inf
    unobserved = np.append(make_wave(20), np.full(16, np.nan))
    outcomes = predictor.forecast_batch(
        [
            make_series(make_wave(3), name="short"),
            good,
            make_series(infinite, name="infinite"),
            make_series(unobserved, name="unobserved"),
            make_series(make_wave(20), name="daily", freq="D"),
            good,
        ],
        4,
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [HistoryTooShort, Forecast, NotANumber, HistoryTooShort, FrequencyMismatch, Forecast]
    for outcome, name in zip(outcomes, ["short", "good", "infinite", "unobserved", "daily", "good"], strict=True):
        if isinstance(outcome, Forecast):
            np.testing.assert_allclose(outcome.mean, predictor.forecast(good, 4).mean, rtol=TOLERANCE)
        else:
            assert outcome.where == name
            assert repr(name) in outcome.message
    with pytest.raises(HistoryTooShort, match="'short' has 3 steps; this model needs at least 4"):
        predictor.forecast(make_series(make_wave(3), name="short"), 4)


def test_a_request_larger_than_one_batch_is_returned_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(make_fitted_model(make_spec()))
    series = [make_series(make_wave(20, seed=index), name=str(index)) for index in range(7)]
    expected_batch = predictor.forecast_batch(series, 3)
    monkeypatch.setattr("forecaster.prediction.length_batches.MAX_BATCH_ROWS", 3)
    for actual, expected in zip(predictor.forecast_batch(series, 3), expected_batch, strict=True):
        assert isinstance(actual, Forecast)
        assert isinstance(expected, Forecast)
        assert actual.id == expected.id
        np.testing.assert_allclose(actual.mean, expected.mean, rtol=TOLERANCE)


@pytest.mark.parametrize("cutoff", [1, 6, 12, 19])
def test_a_warm_up_in_chunks_equals_one_pass(network: Regressor, cutoff: int) -> None:
    rows = [make_wave(20), np.append(np.full(9, np.nan), make_wave(11, seed=1)), make_wave(20, seed=2)]
    rows[2][[6, 7, 12, 19]] = np.nan  # a chunk that begins with NaN is not padding
    window = build_window(rows, context=20)
    expected = warm_up(network, window)
    start, _ = start_rollout(network, window)
    first_state = warm_up(network, Window(window.values[:, :cutoff]), start)
    second_state = warm_up(network, Window(window.values[:, cutoff:]), first_state)
    assert_equal_states(second_state, expected, tolerance=TOLERANCE)


def test_resuming_a_rollout_equals_one_rollout(network: Regressor) -> None:
    state = warm_up(network, build_window([make_wave(16), make_wave(5, seed=1)], context=16))
    expected, expected_state = roll_out(network, state, horizon=10)
    first, middle_state = roll_out(network, state, horizon=5)
    second, final_state = roll_out(network, middle_state, horizon=5)
    assert torch.equal(torch.cat([first, second], dim=1), expected)
    assert_equal_states(final_state, expected_state, tolerance=0.0)


def test_a_rollout_does_not_modify_its_input_state(network: Regressor) -> None:
    state = warm_up(network, build_window([make_wave(16)], context=16))
    hidden = state.recurrent_state.hidden.clone()
    first, second = roll_out(network, state, horizon=5)[0], roll_out(network, state, horizon=5)[0]
    assert torch.equal(first, second)
    assert torch.equal(state.recurrent_state.hidden, hidden)


def test_the_forecast_depends_on_exactly_the_context(spec: Spec) -> None:
    predictor, y = Predictor(make_fitted_model(spec.model_copy(update={"context": 4}))), make_wave(40)
    changed_before, changed_first = np.append(1e6 * np.ones(36), y[-4:]), y.copy()
    changed_first[-4] += 1
    expected, actual, changed = (
        predictor.forecast(make_series(history), 4).mean for history in (y, changed_before, changed_first)
    )
    assert np.array_equal(expected, actual)
    assert not np.allclose(expected, changed, rtol=1e-5)


def test_dropout_is_off_in_prediction() -> None:
    with_dropout = make_fitted_model(make_spec(layers=2, dropout=0.5))
    without_dropout = make_fitted_model(make_spec(layers=2, dropout=0.0))
    with_dropout.network.train()
    history = make_series(make_wave(20))
    expected = Predictor(without_dropout).forecast(history, 6).mean
    predictor = Predictor(with_dropout)
    for _ in range(2):
        assert np.array_equal(predictor.forecast(history, 6).mean, expected)


def test_threads_sharing_a_predictor_get_the_single_thread_results() -> None:
    predictor = Predictor(make_fitted_model(make_spec(cell="lstm", layers=2)))
    series = [make_series(make_wave(8 + index, seed=index), name=str(index)) for index in range(24)]
    expected = [predictor.forecast(item, 12).mean for item in series]
    with ThreadPoolExecutor(6) as pool:
        actual = list(pool.map(lambda item: predictor.forecast(item, 12).mean, series * 3))
    for index, forecast in enumerate(actual):
        assert np.array_equal(forecast, expected[index % len(series)])
