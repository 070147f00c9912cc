"""Laws of networks with a running scale: what a step reads depends on its past alone, in the units of that past."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forecaster.bundle import artifact
from forecaster.data.windows import Example, Window
from forecaster.engines.kernel import build_kernel_engine
from forecaster.errors import BadSpec
from forecaster.model import running, running_sizes
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import encode_inputs, roll_out, run_over_window, start_rollout, warm_up
from forecaster.model.running_statistics import update_statistics
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast
from forecaster.spec import Spec, running_lookback
from forecaster.training.fit import fit
from forecaster.training.loss import compute_loss, prepare_batches
from tests.factories import make_fitted_model, make_panel, make_series, make_spec, make_wave

TOLERANCE = 2e-5
KINDS: dict[str, dict[str, Any]] = {
    "mixture": {"features": "seasonal", "base": "mixture", "decoder": "direct"},
    "mixture of blocks": {"features": "seasonal", "base": "mixture", "segment": 2},
    "values": {"base": "zero", "decoder": "direct", "lags": (5,)},
    "seasonal naive": {"base": "seasonal_naive", "segment": 2, "reads": "history"},
    "history": {"features": "seasonal", "base": "mixture", "decoder": "direct", "reads": "history"},
    "quantiles": {"features": "seasonal", "base": "mixture", "decoder": "direct", "head": {"kind": "quantile"}},
    "block": {
        "features": "seasonal",
        "base": "mixture",
        "decoder": "block",
        "block_steps": 4,
        "head": {"kind": "quantile"},
    },
    "block, segments": {"features": "seasonal", "base": "mixture", "decoder": "block", "block_steps": 6, "segment": 2},
    "long season": {
        "features": "seasonal",
        "base": "mixture",
        "decoder": "block",
        "long_season": 8,
        "reads": "history",
    },
    "no season": {"features": "seasonal", "base": "mixture", "decoder": "direct", "season": 1, "cell": "lstm"},
}


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def spec(request: pytest.FixtureRequest) -> Spec:
    return make_spec(**{"scaling": "running", "context": 24, **request.param})


@pytest.fixture
def network(spec: Spec) -> Regressor:
    """A network whose outputs are random too; they start at zero."""
    network, generator = make_fitted_model(spec).network, torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture
def model(spec: Spec, network: Regressor) -> FittedModel:
    fitted_model = make_fitted_model(spec)
    fitted_model.network.load_state_dict(network.state_dict())
    return fitted_model


def make_window(network: Regressor, *histories: np.ndarray) -> Window:
    steps = network.window_length(max(map(len, histories)))
    values = np.full((len(histories), steps), np.nan)
    for row, y in enumerate(histories):
        values[row, max(0, steps - len(y)) :] = y[-steps:]
    return Window(torch.from_numpy(values))


def forecast_mean(model: FittedModel, y: np.ndarray, horizon: int = 7) -> np.ndarray:
    return Predictor(model).forecast(make_series(y), horizon).mean


def test_a_history_read_in_chunks_equals_one_pass(network: Regressor) -> None:
    gappy = make_wave(31, seed=2)
    gappy[[4, 9, 10, 11]] = np.nan
    window = make_window(network, make_wave(40), np.append(np.full(3, np.nan), make_wave(20, seed=1)), gappy)
    state, remaining = start_rollout(network, window)
    one_pass = run_over_window(network, remaining, state).state
    expected = roll_out(network, one_pass, horizon=7)[0]
    for steps in (network.segment, 4 * network.segment):
        first = warm_up(network, remaining.slice_steps(slice(steps)), state)
        chunked = warm_up(network, remaining.slice_steps(slice(steps, None)), first)
        torch.testing.assert_close(chunked.statistics, one_pass.statistics, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(roll_out(network, chunked, horizon=7)[0], expected, rtol=0, atol=TOLERANCE)


def test_what_a_step_reads_does_not_depend_on_later_values(network: Regressor) -> None:
    y, changed = make_wave(24), make_wave(24)
    changed[12:] = 100 * make_wave(24, seed=5)[12:]
    inputs = []
    for values in (y, changed):
        state, remaining = start_rollout(network, make_window(network, values))
        inputs.append(encode_inputs(network, remaining, state).inputs[:, : 12 // network.segment])
    torch.testing.assert_close(*inputs, rtol=0, atol=0)


@pytest.mark.parametrize(("factor", "shift"), [(1e-9, 0.0), (3.0, 1e3), (1e9, -1e6)])
def test_a_forecast_is_equivariant_to_scale_and_shift(model: FittedModel, factor: float, shift: float) -> None:
    y = make_wave(30)
    expected = forecast_mean(model, y)
    actual = (forecast_mean(model, factor * (y + shift)) / factor) - shift
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * 10)


def test_a_forecast_does_not_depend_on_padding_or_batch(model: FittedModel) -> None:
    histories = [make_wave(30), make_wave(9, seed=1), 1e3 * make_wave(17, seed=2)]
    outcomes = Predictor(model).forecast_batch([make_series(y) for y in histories], 7)
    for y, outcome in zip(histories, outcomes, strict=True):
        assert isinstance(outcome, Forecast)
        expected, size = forecast_mean(model, y), TOLERANCE * np.abs(y).max()
        np.testing.assert_allclose(outcome.mean, expected, rtol=0, atol=size)
        padded = forecast_mean(model, np.append(np.full(4, np.nan), y))
        np.testing.assert_allclose(padded, expected, rtol=0, atol=size)


def test_histories_with_gaps_and_without_changes_get_finite_forecasts(model: FittedModel) -> None:
    gappy = make_wave(30)
    gappy[[3, 4, 5, 6, 7, 20]] = np.nan
    late_change = np.append(np.full(29, 5.0), 6.0)
    for y in (gappy, late_change, np.tile([0.0, 0.0, 3.0], 10), 1e12 * make_wave(30), make_wave(4)):
        assert np.isfinite(forecast_mean(model, y)).all()
    assert forecast_mean(model, np.full(30, 7.0)).tolist() == [7.0] * 7


def test_a_carried_state_continues_as_if_the_whole_history_had_been_read(network: Regressor) -> None:
    y = make_wave(48)
    whole = Window(torch.from_numpy(y[None]))
    state, remaining = start_rollout(network, whole)
    carried = warm_up(network, remaining.slice_steps(slice(24)), state)
    later = warm_up(network, remaining.slice_steps(slice(24, None)), carried)
    expected = roll_out(network, warm_up(network, whole), horizon=7)[0]
    torch.testing.assert_close(roll_out(network, later, horizon=7)[0], expected, rtol=0, atol=TOLERANCE)


def test_a_loaded_bundle_gives_equal_forecasts_and_has_no_graph(model: FittedModel, tmp_path: Path) -> None:
    artifact.save_bundle(model, tmp_path / "bundle", card="# small\n")
    loaded = artifact.load_bundle(tmp_path / "bundle")
    assert not loaded.onnx_models
    assert np.array_equal(forecast_mean(loaded, make_wave(30)), forecast_mean(model, make_wave(30)))
    assert build_kernel_engine(model.spec, model.weights[0], season=model.season, num_features=0) is None


def make_untrained_model(season: int) -> FittedModel:
    spec = make_spec(
        scaling="running", features="seasonal", base="mixture", decoder="direct", season=season, context=48, horizon=9
    )
    return make_fitted_model(spec)


def test_an_untrained_mixture_repeats_a_season_and_continues_a_line() -> None:
    pattern = np.array([0.0, 5.0, -3.0, 1.0])
    seasonal = make_untrained_model(4)
    seasonal.network.output.weight.zero_()
    seasonal.network.output.bias.zero_()
    for end in (37, 38, 40):
        expected = np.tile(pattern, 20)[end : end + 9]
        np.testing.assert_allclose(forecast_mean(seasonal, np.tile(pattern, 20)[:end], 9), expected, atol=0.05)
    line = make_untrained_model(1)
    line.network.output.weight.zero_()
    line.network.output.bias.zero_()
    rising = forecast_mean(line, 10 + 2.0 * np.arange(40), 9)
    np.testing.assert_allclose(np.diff(rising), 2 * 0.4, rtol=1e-4)  # the prior weights of the two long slopes


def test_statistics_and_scale_equal_their_definitions() -> None:
    """Parity with a loop over the steps."""
    season, rng = 3, np.random.default_rng(0)
    lookback = running_lookback(season)
    values = np.round(rng.normal(size=20), 2)
    values[0] = 0.0
    padded = torch.from_numpy(np.append(np.zeros(lookback), values))[None].float()
    started = torch.ones(1, 20, dtype=torch.bool)
    statistics = update_statistics(
        torch.zeros(1, running_sizes.NUM_STATISTICS, dtype=torch.float64), padded, started, ~started, season=season
    )
    for end in range(1, 21):
        seen = values[:end]
        seasonal_changes = seen[season:] - seen[:-season] if end > season else np.zeros(0)
        expected = [
            end,
            np.abs(np.diff(seen)).sum(),
            np.abs(seasonal_changes).sum(),
            seen[:season].sum(),
            min(seen.min(), 0.0),
            max(seen.max(), 0.0),
            0.0,
            (np.diff(seen) ** 2).sum(),
            (np.diff(seen)[1:] * np.diff(seen)[:-1]).sum(),
            (seasonal_changes**2).sum(),
            (seasonal_changes[1:] * seasonal_changes[:-1]).sum(),
            ((seen[4 * season :] - seen[: -4 * season]) ** 2).sum() if end > 4 * season else 0.0,
        ]
        np.testing.assert_allclose(statistics[0, end - 1].numpy(), expected, atol=1e-6)
        scale = running.measure_running_scale(padded[:, end : end + lookback], statistics[:, end - 1], season=season)
        assert float(scale.level) == pytest.approx(seen[-season:].mean(), abs=1e-6)
        mean_change = expected[1] / max(end - 1, 1)
        unit = (expected[2] + mean_change) / (max(end - season, 0) + 1) + 0.02 * mean_change
        assert float(scale.unit) == pytest.approx(unit if unit > 0 else 1.0, rel=1e-5)


def test_simple_forecasts_equal_their_definitions() -> None:
    season, block, y = 4, 6, np.append(0.0, np.cumsum(np.random.default_rng(1).normal(size=39)))
    lookback = running_lookback(season)
    padded = torch.from_numpy(np.append(np.zeros(lookback), y))[None].float()
    started = torch.ones(1, 40, dtype=torch.bool)
    statistics = update_statistics(
        torch.zeros(1, running_sizes.NUM_STATISTICS, dtype=torch.float64), padded, started, ~started, season=season
    )[:, -1]
    recent = padded[:, -lookback:]
    level, unit = (float(part) for part in running.measure_running_scale(recent, statistics, season=season))
    view = running.view_past(recent, statistics, season=season, block=block)
    assert view.features.shape == (1, running_sizes.num_features(block=block))
    forecasts = level + unit * view.forecasts[0].numpy()
    np.testing.assert_allclose(forecasts[:, 0], [y[-4 + step % 4] for step in range(6)], rtol=1e-4)
    levels = np.array([y[end - 4 : end].mean() for end in range(4, 41)])  # of the season that ends there
    index = np.zeros(4)
    for phase in range(4):  # the age of a phase
        weights = 0.9 ** np.arange(5)
        deviations = [y[-1 - phase - 4 * cycle] - levels[-1 - phase - 4 * cycle] for cycle in range(5)]
        index[phase] = (weights * deviations).sum() / weights.sum()
    index -= index.mean()
    np.testing.assert_allclose(forecasts[:, 1], level + index[[3, 2, 1, 0, 3, 2]], rtol=1e-4)
    np.testing.assert_allclose(forecasts[:, 3], y[-1] - index[0], rtol=1e-4)
    distance = np.arange(1, 7) + 1.5
    np.testing.assert_allclose(forecasts[:, 5], level + (levels[-1] - levels[-5]) / 4 * distance, rtol=1e-3)
    np.testing.assert_allclose(forecasts[:, 7], level + (levels[-1] - levels[0]) / 36 * distance, rtol=1e-3)


def test_training_from_several_origins_is_the_mean_of_the_losses_at_each() -> None:
    spec = make_spec(
        scaling="running",
        features="seasonal",
        base="mixture",
        decoder="direct",
        context=24,
        segment=2,
        training={"origins": 3},
    )
    network = make_fitted_model(spec).network
    y = torch.from_numpy(np.stack([make_wave(30), 5 * make_wave(30, seed=1)]))
    [batch] = prepare_batches(network, Example(Window(y[:, :24]), y[:, 24:]), batch_size=2)
    losses = []
    for end in (20, 22, 24):
        state = warm_up(network, Window(y[:, :end]))
        params = network.decode(state.output, state.recent, None, state.statistics)
        level, unit = network.measure_units(state.recent, state.statistics)
        target = (state.scale.apply(y[:, end : end + 6]) - level[:, None]) / unit[:, None]
        losses.append(network.head.loss(params, target).mean())
    torch.testing.assert_close(compute_loss(network, batch), torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_members_are_trained_in_parallel_and_improve() -> None:
    training = {"steps": 12, "epoch_steps": 6, "batch": 8, "valid_windows": 1, "origins": 2, "learning_rate": 0.01}
    spec = make_spec(
        scaling="running", features="seasonal", base="mixture", decoder="direct", members=2, training=training
    )
    result = fit(make_panel(make_wave(60), 3 * make_wave(50, seed=1)), spec, accelerator="cpu")
    assert len(result.model.networks) == 2
    assert 0 < result.scores["valid/rollout"] < 2
    assert result.model.freq == "h"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scaling": "standard", "base": "mixture"}, "base mixture is defined in units of the running scale"),
        ({"scaling": "standard", "features": "seasonal"}, "features seasonal is defined in units of the running scale"),
        ({"scaling": "running", "transform": "log"}, "the running scale has no log transform"),
        ({"scaling": "running", "head": {"kind": "categorical"}}, "takes no head with a fixed support"),
        ({"scaling": "running", "training": {"unroll": 2}}, "is not unrolled"),
        ({"training": {"origins": 2}}, "for a direct or block decoder; found 2 with decoder rollout"),
        ({"decoder": "direct", "training": {"origins": 17}}, "at most one origin per segment of the context"),
    ],
)
def test_incompatible_choices_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        make_spec(**fields)
