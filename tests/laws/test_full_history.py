"""Models that read whole histories: state and scale are carried from the start, and chunks do not change the forecast."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.data.windows import Window
from forecaster.errors import BadSpec
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.validation import build_validation_batches, score_batch
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import roll_out, run_over_window, start_rollout, warm_up
from forecaster.model.scaling import measure_scale, settle_scale
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Series
from forecaster.spec import Spec
from forecaster.training.datamodule import WindowDataModule
from forecaster.training.fit import fit
from tests.factories import make_fitted_model, make_network, make_panel, make_series, make_spec, make_wave
from tests.laws.test_every_combination import scaling_fields

pytestmark = pytest.mark.integration

SCALINGS = ["none", "mean_abs", "standard", "level_season", "standard of log"]
BASES = ["zero", "last", "seasonal_naive", "linear"]
TOLERANCE = 2e-5

every_kind = pytest.mark.parametrize(
    ("cell", "decoder"), list(product(["gru", "lstm", "elman"], ["rollout", "direct"]))
)


def make_specs(cell: str, decoder: str, *, reads: str = "history", segment: int | None = None) -> list[Spec]:
    """Builds one spec for each scaling and base, with alternating segments."""
    return [
        make_spec(
            cell=cell,
            decoder=decoder,
            **scaling_fields(scaling),
            base=base,
            reads=reads,
            context=6,
            segment=segment or (1, 2, 3)[index % 3],
            lags=(5,) if index % 4 == 0 else (),
        )
        for index, (scaling, base) in enumerate(product(SCALINGS, BASES))
    ]


def make_random_network(spec: Spec) -> Regressor:
    """A network whose output layer is random too, since it starts at zero if there is a baseline."""
    network, generator = make_network(spec), torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return network


def make_predictor(spec: Spec) -> Predictor:
    return Predictor(replace(make_fitted_model(spec), network=make_random_network(spec)))


def full_window(network: Regressor, *histories: np.ndarray) -> Window:
    """Histories read from their starts, aligned at their ends and padded at the front."""
    num_steps = network.window_length(max(map(len, histories)))
    values = np.full((len(histories), num_steps), np.nan)
    for row, y in enumerate(histories):
        values[row, num_steps - len(y) :] = y
    return Window(torch.from_numpy(values))


def mean_forecast(predictor: Predictor, y: np.ndarray, horizon: int = 7) -> np.ndarray:
    return predictor.forecast(make_series(y), horizon).mean


@every_kind
def test_a_history_read_in_chunks_equals_one_pass(cell: str, decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = [make_wave(40), np.append(np.full(3, np.nan), make_wave(20, seed=1)), make_wave(31, seed=2)]
    histories[2][[4, 9, 10, 11]] = np.nan
    for spec in make_specs(cell, decoder):
        network = make_random_network(spec)
        window = full_window(network, *histories)
        state, remaining = start_rollout(network, window)
        one_pass = run_over_window(network, remaining, state).state
        expected = roll_out(network, one_pass, horizon=7)[0]
        for num_segments in (1, 4):
            first_state = warm_up(network, remaining.slice_steps(slice(num_segments * spec.segment)), state)
            chunked = warm_up(network, remaining.slice_steps(slice(num_segments * spec.segment, None)), first_state)
            torch.testing.assert_close(roll_out(network, chunked, horizon=7)[0], expected, rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(chunked.bound, one_pass.bound)
        with monkeypatch.context() as patch:
            patch.setattr("forecaster.model.rollout.MAX_SEGMENTS_AT_ONCE", 5)
            bounded = warm_up(network, window)
        torch.testing.assert_close(roll_out(network, bounded, horizon=7)[0], expected, rtol=0, atol=TOLERANCE)


@every_kind
def test_a_state_extended_with_new_values_equals_reading_the_full_history(cell: str, decoder: str) -> None:
    y = make_wave(40)
    for spec in make_specs(cell, decoder):
        network = make_random_network(spec)
        state = warm_up(network, full_window(network, y[:28]))
        later_window = Window(torch.from_numpy(y[None, 28:]))  # twelve steps: whole segments of any length used here
        forecast = roll_out(network, warm_up(network, later_window, state), horizon=7)[0]
        torch.testing.assert_close(
            forecast, roll_out(network, warm_up(network, full_window(network, y)), horizon=7)[0], rtol=0, atol=TOLERANCE
        )


@every_kind
def test_both_modes_agree_up_to_the_context_and_differ_beyond_it(cell: str, decoder: str) -> None:
    for spec, window_spec in zip(make_specs(cell, decoder), make_specs(cell, decoder, reads="window"), strict=True):
        history_predictor, window_predictor = make_predictor(spec), make_predictor(window_spec)
        for steps in (4, 6):
            expected = mean_forecast(window_predictor, make_wave(steps))
            np.testing.assert_allclose(
                mean_forecast(history_predictor, make_wave(steps)), expected, rtol=0, atol=TOLERANCE
            )
        late_start = np.append(np.full(9, np.nan), make_wave(5))
        np.testing.assert_allclose(
            mean_forecast(history_predictor, late_start),
            mean_forecast(window_predictor, late_start),
            rtol=0,
            atol=TOLERANCE,
        )
        assert not np.allclose(
            mean_forecast(history_predictor, make_wave(30)), mean_forecast(window_predictor, make_wave(30)), rtol=1e-4
        )


@every_kind
def test_a_forecast_depends_on_the_full_history_and_not_on_padding_or_batch(cell: str, decoder: str) -> None:
    histories = [
        make_wave(30),
        make_wave(9, seed=1),
        1e3 * make_wave(17, seed=2),
        np.append(np.full(8, np.nan), make_wave(12, seed=3)),
    ]
    for spec in make_specs(cell, decoder):
        predictor = make_predictor(spec)
        batched = predictor.forecast_batch([make_series(y) for y in histories], 7)
        for y, outcome in zip(histories, batched, strict=True):
            assert isinstance(outcome, Forecast)
            expected = mean_forecast(predictor, y)
            np.testing.assert_allclose(
                outcome.mean, expected, rtol=0, atol=TOLERANCE * np.nanmax(np.abs([*y, *expected]))
            )
            padded = mean_forecast(predictor, np.append(np.full(5, np.nan), y))
            np.testing.assert_allclose(padded, expected, rtol=0, atol=TOLERANCE * np.nanmax(np.abs([*y, *expected])))
        changed = make_wave(12)
        changed[0] += 1.0
        assert not np.array_equal(mean_forecast(predictor, changed), mean_forecast(predictor, make_wave(12)))


@pytest.mark.parametrize("scaling", SCALINGS[1:4])
def test_the_scale_is_that_of_the_first_context_and_is_constant(scaling: str) -> None:
    spec = make_spec(scaling=scaling, reads="history", context=8)
    network, y = make_random_network(spec), 5 * make_wave(50)
    late_start = np.append(np.full(3, np.nan), y)
    for history in (y[:8], y[:9], y, late_start):
        scale = warm_up(network, full_window(network, history)).scale
        expected = measure_scale(torch.from_numpy(y[None, :8]), network.scaling, season=4)
        torch.testing.assert_close(scale.shift, expected.shift, rtol=1e-12, atol=0)
        torch.testing.assert_close(scale.width, expected.width, rtol=1e-12, atol=0)
    shorter = warm_up(network, full_window(network, y[:7])).scale
    torch.testing.assert_close(
        shorter.width, measure_scale(torch.from_numpy(y[None, :7]), network.scaling, season=4).width
    )


def test_a_seasonal_profile_keeps_its_phase_for_any_start_and_end() -> None:
    season = np.array([0.0, 5.0, -3.0, 1.0])
    y = np.tile(season, 12) + 0.01 * np.random.default_rng(0).normal(size=48)
    for start, end in product((0, 1, 2), (37, 38, 40)):
        spec = make_spec(scaling="level_season", reads="history", context=24, segment=2, min_history=1)
        model = make_fitted_model(spec)
        model.network.output.weight.zero_()
        model.network.output.bias.zero_()
        expected = np.tile(season, 20)[end : end + 9]
        forecast = mean_forecast(Predictor(model), y[start:end], 9)
        np.testing.assert_allclose(forecast, expected, rtol=0, atol=0.4)


def test_a_constant_start_does_not_give_a_zero_scale() -> None:
    y = np.append(np.full(21, 3.0), 3 + np.arange(40) % 5)
    rows = torch.from_numpy(np.stack([y, np.full(61, 3.0), np.append(np.full(30, np.nan), y[:31])]))
    settled = settle_scale(rows, "standard", initial_steps=8)
    assert settled.settled_at.tolist() == [32, 62, 62], "after 8, 16, 32 steps; never; not within the 31 steps"
    torch.testing.assert_close(settled.scale.width[0], measure_scale(rows[:1, :32], "standard").width[0])
    assert settled.scale.width[1] == 0
    torch.testing.assert_close(settled.scale.width[2], measure_scale(rows[2:, 30:], "standard").width[0])
    predictor = make_predictor(make_spec(reads="history", context=8))
    assert mean_forecast(predictor, y[:20]).tolist() == [3.0] * 7
    assert len(np.unique(mean_forecast(predictor, y))) > 1
    unscaled = settle_scale(torch.from_numpy(y)[None], "none", initial_steps=8)
    assert unscaled.settled_at.tolist() == [0]


def test_rounding_noise_is_not_a_change() -> None:
    flat = torch.full((1, 400), 0.1, dtype=torch.float64)
    for scaling in ("standard", "level_season"):
        assert settle_scale(flat, scaling, initial_steps=7, season=4).settled_at.tolist() == [401]  # type: ignore[arg-type]
    large = 1e12 + torch.arange(20, dtype=torch.float64)[None] % 3
    assert settle_scale(large, "standard", initial_steps=7).settled_at.tolist() == [7]


def test_validation_and_backtest_use_the_full_history_like_serving() -> None:
    spec = make_spec(cell="lstm", reads="history", segment=2, base="last", lags=(6,))
    network, panel = (
        make_random_network(spec),
        make_panel(make_wave(60), 5 * make_wave(41, seed=1), make_wave(22, seed=2)),
    )
    result = backtest(panel, {"net": make_predictor(spec)}, horizon=5, windows=3, season=4)
    [batch] = build_validation_batches(panel.series, context=network.window_length(60), horizon=5, windows=3, season=4)
    assert float(score_batch(network, batch).rollout) == pytest.approx(result.scores("net")["mase"], rel=1e-5)


def test_training_uses_windows_and_validation_uses_full_histories() -> None:
    training = {"steps": 4, "epoch_steps": 2, "batch": 4, "valid_windows": 2}
    spec = make_spec(reads="history", base="last", lags=(6,), training=training)
    network, panel = make_network(spec), make_panel(make_wave(60), make_wave(41, seed=1))
    data = WindowDataModule(panel, spec, network, EMPTY_ENCODING, season=4)
    assert data.context == network.pre_context + spec.context
    [batch] = data.validation_batches
    assert batch.example.window.values.shape == (4, network.pre_context + 60)
    history = batch.example.window.values[0]
    assert history[~history.isnan()].tolist() == make_wave(60)[:50].tolist()
    fitted = fit(panel, spec, accelerator="cpu")
    assert np.isfinite(list(fitted.scores.values())).all()
    assert fitted.model.network.reads == "history"


def test_a_long_trailing_gap_is_rejected_as_for_windows() -> None:
    predictor = make_predictor(make_spec(reads="history"))
    [outcome] = predictor.forecast_batch([make_series(np.append(make_wave(40), np.full(16, np.nan)))], 3)
    assert "no observed value among its last 16" in str(outcome)


def test_sample_paths_use_the_full_history() -> None:
    spec = make_spec(reads="history", head={"kind": "gaussian"})
    predictor = make_predictor(spec)
    changed_history = make_wave(60)
    changed_history[0] += 1.0
    expected, repeated, changed = (
        predictor.sample_batch([make_series(y)], 5, paths=3, seed=0)[0]
        for y in (make_wave(60), make_wave(60), changed_history)
    )
    assert np.array_equal(expected, repeated)
    assert not np.array_equal(expected, changed)


def test_last_value_scaling_is_incompatible_with_full_histories() -> None:
    with pytest.raises(
        BadSpec, match=r"keeps the scale of its first steps.*Choose standard or mean_abs with base last"
    ):
        make_spec(reads="history", scaling="last")
    assert make_spec(scaling="last").reads == "window"


def test_series_of_very_different_lengths_are_returned_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make_predictor(make_spec(reads="history"))
    series: list[Series] = [
        make_series(make_wave(steps, seed=steps), name=str(steps)) for steps in (90, 4, 33, 5, 60, 8)
    ]
    expected_batch = [predictor.forecast(item, 3) for item in series]
    monkeypatch.setattr("forecaster.prediction.length_batches.MAX_BATCH_VALUES", 70)
    for actual, expected in zip(predictor.forecast_batch(series, 3), expected_batch, strict=True):
        assert isinstance(actual, Forecast)
        assert actual.id == expected.id
        np.testing.assert_allclose(actual.mean, expected.mean, rtol=1e-5)
