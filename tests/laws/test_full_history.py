"""Reading a whole history: state and scale are carried from its start, and how it is read does not change what is said."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from forecaster.data.encoding import PLAIN
from forecaster.data.windows import Window
from forecaster.errors import BadSpec
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.validation import score, trials
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import begin, read, roll, warm_up
from forecaster.model.scaling import measure, settle
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Series
from forecaster.spec import Spec
from forecaster.training.datamodule import Windows
from forecaster.training.fit import fit
from tests.factories import make_forecaster, make_network, make_spec, one_series, panel_of, wave
from tests.laws.test_every_combination import scaled

SCALINGS = ["none", "mean_abs", "standard", "level_season", "standard of log"]
BASES = ["zero", "last", "seasonal_naive", "linear"]
CLOSE = 2e-5

every_kind = pytest.mark.parametrize(
    ("cell", "decoder"), list(product(["gru", "lstm", "elman"], ["rollout", "direct"]))
)


def specs(cell: str, decoder: str, *, reads: str = "history", segment: int | None = None) -> list[Spec]:
    """One for each scaling and base, of alternating segments."""
    return [
        make_spec(
            cell=cell,
            decoder=decoder,
            **scaled(scaling),
            base=base,
            reads=reads,
            context=6,
            segment=segment or (1, 2, 3)[number % 3],
            lags=(5,) if number % 4 == 0 else (),
        )
        for number, (scaling, base) in enumerate(product(SCALINGS, BASES))
    ]


def network_of(spec: Spec) -> Regressor:
    """Random weights in the output layer too, which begins at zero where there is a base."""
    network, draw = make_network(spec), torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw))
    return network


def predictor_of(spec: Spec) -> Predictor:
    return Predictor(replace(make_forecaster(spec), network=network_of(spec)))


def whole(network: Regressor, *histories: np.ndarray) -> Window:
    """Histories from their starts, ends together, nothing before them."""
    shown = network.shown(max(map(len, histories)))
    values = np.full((len(histories), shown), np.nan)
    for row, y in enumerate(histories):
        values[row, shown - len(y) :] = y
    return Window(torch.from_numpy(values))


def mean_of(predictor: Predictor, y: np.ndarray, horizon: int = 7) -> np.ndarray:
    return predictor.forecast(one_series(y), horizon).mean


@every_kind
def test_a_history_read_in_pieces_is_the_history_read_at_once(
    cell: str, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = [wave(40), np.append(np.full(3, np.nan), wave(20, seed=1)), wave(31, seed=2)]
    histories[2][[4, 9, 10, 11]] = np.nan
    for spec in specs(cell, decoder):
        network = network_of(spec)
        window = whole(network, *histories)
        memory, rest = begin(network, window)
        at_once = read(network, rest, memory).memory
        expected = roll(network, at_once, horizon=7)[0]
        for cut in (1, 4):
            first = warm_up(network, rest.part(slice(cut * spec.segment)), memory)
            pieces = warm_up(network, rest.part(slice(cut * spec.segment, None)), first)
            torch.testing.assert_close(roll(network, pieces, horizon=7)[0], expected, rtol=0, atol=CLOSE)
            torch.testing.assert_close(pieces.bound, at_once.bound)
        with monkeypatch.context() as patch:
            patch.setattr("forecaster.model.rollout.SEGMENTS_AT_ONCE", 5)
            bounded = warm_up(network, window)
        torch.testing.assert_close(roll(network, bounded, horizon=7)[0], expected, rtol=0, atol=CLOSE)


@every_kind
def test_a_memory_goes_on_with_what_came_later_as_if_all_had_been_read(cell: str, decoder: str) -> None:
    y = wave(40)
    for spec in specs(cell, decoder):
        network = network_of(spec)
        memory = warm_up(network, whole(network, y[:28]))
        later = Window(torch.from_numpy(y[None, 28:]))  # twelve steps: whole segments of any length here
        found = roll(network, warm_up(network, later, memory), horizon=7)[0]
        torch.testing.assert_close(
            found, roll(network, warm_up(network, whole(network, y)), horizon=7)[0], rtol=0, atol=CLOSE
        )


@every_kind
def test_up_to_the_context_both_readings_are_one_and_beyond_it_they_part(cell: str, decoder: str) -> None:
    for spec, other in zip(specs(cell, decoder), specs(cell, decoder, reads="window"), strict=True):
        carried, windowed = predictor_of(spec), predictor_of(other)
        for steps in (4, 6):
            expected = mean_of(windowed, wave(steps))
            np.testing.assert_allclose(mean_of(carried, wave(steps)), expected, rtol=0, atol=CLOSE)
        late = np.append(np.full(9, np.nan), wave(5))
        np.testing.assert_allclose(mean_of(carried, late), mean_of(windowed, late), rtol=0, atol=CLOSE)
        assert not np.allclose(mean_of(carried, wave(30)), mean_of(windowed, wave(30)), rtol=1e-4)


@every_kind
def test_a_forecast_depends_on_all_of_a_history_and_on_no_padding_or_company(cell: str, decoder: str) -> None:
    histories = [wave(30), wave(9, seed=1), 1e3 * wave(17, seed=2), np.append(np.full(8, np.nan), wave(12, seed=3))]
    for spec in specs(cell, decoder):
        predictor = predictor_of(spec)
        together = predictor.forecast_each([one_series(y) for y in histories], 7)
        for y, outcome in zip(histories, together, strict=True):
            assert isinstance(outcome, Forecast)
            alone = mean_of(predictor, y)
            np.testing.assert_allclose(outcome.mean, alone, rtol=0, atol=CLOSE * np.nanmax(np.abs([*y, *alone])))
            padded = mean_of(predictor, np.append(np.full(5, np.nan), y))
            np.testing.assert_allclose(padded, alone, rtol=0, atol=CLOSE * np.nanmax(np.abs([*y, *alone])))
        first = wave(12)
        first[0] += 1.0
        assert not np.array_equal(mean_of(predictor, first), mean_of(predictor, wave(12)))


@pytest.mark.parametrize("scaling", SCALINGS[1:4])
def test_the_scale_is_that_of_the_first_context_and_stays(scaling: str) -> None:
    spec = make_spec(scaling=scaling, reads="history", context=8)
    network, y = network_of(spec), 5 * wave(50)
    late = np.append(np.full(3, np.nan), y)
    for history in (y[:8], y[:9], y, late):
        scale = warm_up(network, whole(network, history)).scale
        expected = measure(torch.from_numpy(y[None, :8]), network.scaling, season=4)
        torch.testing.assert_close(scale.shift, expected.shift, rtol=1e-12, atol=0)
        torch.testing.assert_close(scale.width, expected.width, rtol=1e-12, atol=0)
    shorter = warm_up(network, whole(network, y[:7])).scale
    torch.testing.assert_close(shorter.width, measure(torch.from_numpy(y[None, :7]), network.scaling, season=4).width)


def test_a_seasonal_profile_keeps_its_phase_wherever_a_history_begins_and_ends() -> None:
    season = np.array([0.0, 5.0, -3.0, 1.0])
    y = np.tile(season, 12) + 0.01 * np.random.default_rng(0).normal(size=48)
    for start, end in product((0, 1, 2), (37, 38, 40)):
        spec = make_spec(scaling="level_season", reads="history", context=24, segment=2, min_history=1)
        forecaster = make_forecaster(spec)
        forecaster.network.output.weight.zero_()
        forecaster.network.output.bias.zero_()
        expected = np.tile(season, 20)[end : end + 9]
        found = mean_of(Predictor(forecaster), y[start:end], 9)
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.4)


def test_a_flat_start_does_not_make_a_scale_without_width() -> None:
    y = np.append(np.full(21, 3.0), 3 + np.arange(40) % 5)
    rows = torch.from_numpy(np.stack([y, np.full(61, 3.0), np.append(np.full(30, np.nan), y[:31])]))
    found = settle(rows, "standard", steps=8)
    assert found.since.tolist() == [32, 62, 62], "8, 16, 32 steps; never; not among the 31 there are"
    torch.testing.assert_close(found.scale.width[0], measure(rows[:1, :32], "standard").width[0])
    assert found.scale.width[1] == 0
    torch.testing.assert_close(found.scale.width[2], measure(rows[2:, 30:], "standard").width[0])
    predictor = predictor_of(make_spec(reads="history", context=8))
    assert mean_of(predictor, y[:20]).tolist() == [3.0] * 7
    assert len(np.unique(mean_of(predictor, y))) > 1
    nothing = settle(torch.from_numpy(y)[None], "none", steps=8)
    assert nothing.since.tolist() == [0]


def test_rounding_does_not_pass_for_a_change() -> None:
    flat = torch.full((1, 400), 0.1, dtype=torch.float64)
    for scaling in ("standard", "level_season"):
        assert settle(flat, scaling, steps=7, season=4).since.tolist() == [401]  # type: ignore[arg-type]
    large = 1e12 + torch.arange(20, dtype=torch.float64)[None] % 3
    assert settle(large, "standard", steps=7).since.tolist() == [7]


def test_validation_and_backtest_read_the_history_that_users_send() -> None:
    spec = make_spec(cell="lstm", reads="history", segment=2, base="last", lags=(6,))
    network, panel = network_of(spec), panel_of(wave(60), 5 * wave(41, seed=1), wave(22, seed=2))
    result = backtest(panel, {"net": predictor_of(spec)}, horizon=5, windows=3, season=4)
    [batch] = trials(panel.series, context=network.shown(60), horizon=5, windows=3, season=4)
    assert float(score(network, batch).rollout) == pytest.approx(result.scores("net")["mase"], rel=1e-5)


def test_training_starts_from_windows_and_validation_from_whole_histories() -> None:
    training = {"steps": 4, "epoch_steps": 2, "batch": 4, "valid_windows": 2}
    spec = make_spec(reads="history", base="last", lags=(6,), training=training)
    network, panel = make_network(spec), panel_of(wave(60), wave(41, seed=1))
    windows = Windows(panel, spec, network, PLAIN, season=4)
    assert windows.context == network.lead + spec.context
    [trial] = windows.trials
    assert trial.example.window.values.shape == (4, network.lead + 60)
    known = trial.example.window.values[0]
    assert known[~known.isnan()].tolist() == wave(60)[:50].tolist()
    fitted = fit(panel, spec, accelerator="cpu")
    assert np.isfinite(list(fitted.scores.values())).all()
    assert fitted.forecaster.network.reads == "history"


def test_a_long_gap_at_the_end_is_refused_as_it_is_for_windows() -> None:
    predictor = predictor_of(make_spec(reads="history"))
    [outcome] = predictor.forecast_each([one_series(np.append(wave(40), np.full(16, np.nan)))], 3)
    assert "no observed value among its last 16" in str(outcome)


def test_sampled_paths_come_from_the_whole_history() -> None:
    spec = make_spec(reads="history", head={"kind": "gaussian"})
    predictor = predictor_of(spec)
    other = wave(60)
    other[0] += 1.0
    one, again, moved = (
        predictor.sample_each([one_series(y)], 5, paths=3, seed=0)[0] for y in (wave(60), wave(60), other)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, moved)


def test_a_scale_that_follows_the_last_value_does_not_go_with_whole_histories() -> None:
    with pytest.raises(
        BadSpec, match=r"keeps the scale of its first steps.*Choose standard or mean_abs with base last"
    ):
        make_spec(reads="history", scaling="last")
    assert make_spec(scaling="last").reads == "window"


def test_requests_of_very_different_lengths_are_answered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(make_spec(reads="history"))
    many: list[Series] = [one_series(wave(steps, seed=steps), name=str(steps)) for steps in (90, 4, 33, 5, 60, 8)]
    expected = [predictor.forecast(one, 3) for one in many]
    monkeypatch.setattr("forecaster.prediction.predictor.VALUES_AT_ONCE", 70)
    for one, other in zip(predictor.forecast_each(many, 3), expected, strict=True):
        assert isinstance(one, Forecast)
        assert one.id == other.id
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5)
