"""The laws of the rollout with channels, for every cell, head, decoder, scaling and base, and a slow reference rollout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from forecaster.data.windows import Example, Window, build_window, stack_targets, unstack_targets
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, repeat_state, roll_out, start_rollout, warm_up
from forecaster.model.scaling import measure_scale
from forecaster.training.loss import teacher_forced_loss
from tests.factories import make_network, make_spec, make_wave
from tests.laws.test_every_combination import (
    HORIZON,
    assert_close_scaled,
    every_numeric_value,
    make_networks,
    make_windows,
    promised_equivariance,
    select_rows,
)

pytestmark = pytest.mark.integration

CHANNELS = ("heat", "rain")
ROW_COUNT = 4


def make_channel_windows(network: Regressor) -> tuple[Window, Tensor]:
    """Windows as of `make_windows` with channels: one begins before y, one after it, one has a gap, one is never observed."""
    window, future_covariates = make_windows(network)
    rng = np.random.default_rng(2)
    channels = np.round(40 + 9 * rng.normal(size=(ROW_COUNT, window.values.shape[1], len(CHANNELS))))
    channels[:, :, 1] *= 1000
    channels[1, : network.pre_context + 2] = np.nan
    channels[0, : network.pre_context + 4, 1] = np.nan
    channels[2, network.pre_context + 3 : network.pre_context + 7, 0] = np.nan
    channels[3, :, 1] = np.nan
    return window._replace(channels=torch.from_numpy(channels)), future_covariates


def forecast_window(network: Regressor, window: Window, future_covariates: Tensor, horizon: int = HORIZON) -> Tensor:
    with torch.inference_mode():
        return roll_out(network, warm_up(network, window), horizon=horizon, future_covariates=future_covariates)[0]


class ReferenceRollout:
    """A slow rollout of one row, target by target and step by step, with lists."""

    def __init__(self, network: Regressor, window: Window) -> None:
        self.network = network
        pre_context = network.pre_context
        values = torch.cat([window.values[0][:, None], window.channels[0]], dim=1)  # type: ignore[index]
        self.targets = values.shape[1]
        self.scales = [
            measure_scale(
                values[None, pre_context:, target], network.scaling, season=network.season, transform=network.transform
            )
            for target in range(self.targets)
        ]
        self.time, self.observed_yet = -pre_context, [False] * self.targets
        self.filled: list[list[float]] = [[] if pre_context else [0.0] * network.lookback for _ in range(self.targets)]
        for step in range(pre_context):
            self._append_point([self.scale_value(target, values[step, target]) for target in range(self.targets)])
        self.observed_yet = [False] * self.targets
        self.state = network.recurrent.initial_state(1, like=values)
        self.output = torch.zeros(network.recurrent.hidden_size)
        self.static = network.embed_static(window.static, rows=1)[0].tolist()

    def scale_value(self, target: int, value: Tensor) -> float | None:
        """Scales a value; returns None if it is missing."""
        return None if value.isnan() else float(self.scales[target].apply(value[None, None], time=self.time))

    def _append_point(self, point: Sequence[float | None]) -> None:
        for target, value in enumerate(point):
            filled = self.filled[target]
            filled.append(value if value is not None else filled[-1] if filled else 0.0)
            self.observed_yet[target] |= value is not None
        self.time += 1

    def read_segment(self, points: Sequence[Sequence[float | None]], covariates: Tensor) -> None:
        """Reads one segment."""
        network = self.network
        for point in points:
            self._append_point(point)
        features: list[float] = []
        for target in range(self.targets):
            values = [point[target] for point in points]
            features += [0.0 if value is None else value for value in values]
            features += [float(value is not None) for value in values]
            filled = self.filled[target]
            for lag in network.lags:
                features += [filled[len(filled) + offset - lag] for offset in range(network.segment)]
        features += covariates.flatten().tolist() + self.static
        if any(self.observed_yet):
            outputs, self.state = network.recurrent(
                torch.tensor(features)[None, None], self.state, torch.tensor([[True]])
            )
            self.output = outputs[0, 0]

    def head_params(self, covariates: Tensor) -> list[list[Tensor]]:
        """Returns the head's parameters of each target, for each step of the next block."""
        network, params = self.network, [[] for _ in range(self.targets)]  # type: ignore[var-annotated]
        for index, embedding in enumerate(network.places):
            future_covariates = covariates[index * network.segment : (index + 1) * network.segment].flatten()
            assert network.decoder is not None
            hidden = network.decoder(torch.cat([embedding, future_covariates])[None], self.output[None])[0]
            raw = iter(network.output(hidden).split(network.head.num_params))
            for target in range(self.targets):
                for _ in range(network.segment):
                    params[target].append(self._shift_params(next(raw), target, step_ahead=len(params[target]) + 1))
        return params

    def _shift_params(self, raw: Tensor, target: int, *, step_ahead: int) -> Tensor:
        filled, season = self.filled[target], self.network.season
        offset = {
            "zero": lambda: 0.0,
            "last": lambda: filled[-1],
            "seasonal_naive": lambda: filled[len(filled) - season + (step_ahead - 1) % season],
            "linear": lambda: filled[-1] + step_ahead * (filled[-1] - filled[-1 - season]) / season,
        }[self.network.base]()
        return raw if self.network.base == "zero" else self.network.head.shift(raw, torch.tensor(offset))

    def read_context(self, window: Window) -> None:
        """Reads the context segment by segment."""
        assert window.channels is not None
        assert window.covariates is not None
        for first in range(self.network.pre_context, window.values.shape[1], self.network.segment):
            points = []
            for step in range(first, first + self.network.segment):
                values = [window.values[0, step], *window.channels[0, step]]
                points.append([self.scale_value(target, value) for target, value in enumerate(values)])
                self.time += 1
            self.time -= self.network.segment
            self.read_segment(points, window.covariates[0, first : first + self.network.segment])

    def continue_rollout(self, future_covariates: Tensor, horizon: int, noise: Tensor | None = None) -> list[float]:
        """Predicts the next values of y; every target that was ever observed is fed back."""
        network, forecast = self.network, []
        is_unobserved = [not observed for observed in self.observed_yet]
        for first in range(0, horizon, network.block):
            span = slice(first, first + network.block)
            blocks = [torch.stack(values) for values in self.head_params(future_covariates[span])]
            predictions = [
                network.head.mean(block) if noise is None else network.head.sample(block, noise[target, span])
                for target, block in enumerate(blocks)
            ]
            y = self.scales[0].undo(predictions[0][None], time=self.time)[0]
            forecast += y.tolist()
            for offset in range(0, network.block, network.segment):
                points = [
                    [
                        None if is_unobserved[target] else float(values[step])
                        for target, values in enumerate(predictions)
                    ]
                    for step in range(offset, offset + network.segment)
                ]
                self.read_segment(points, future_covariates[span][offset : offset + network.segment])
        return forecast[:horizon]


@every_numeric_value
def test_a_rollout_equals_a_reference_loop(cell: str, head: str, decoder: str) -> None:
    for index, network in enumerate(make_networks(cell, head, decoder, channels=CHANNELS)):
        window, future_covariates = make_channel_windows(network)
        forecasts = forecast_window(network, window, future_covariates)
        for row in (index % ROW_COUNT, (index + 1) % ROW_COUNT):
            single = select_rows(window, slice(row, row + 1))
            with torch.inference_mode():
                reference = ReferenceRollout(network, single)
                reference.read_context(single)
                expected = torch.tensor(
                    [reference.continue_rollout(future_covariates[row], HORIZON)], dtype=torch.float64
                )
            assert_close_scaled(forecasts[row : row + 1], expected, single)


@every_numeric_value
def test_a_sample_path_equals_a_reference_loop_and_depends_on_the_noise_of_every_target(
    cell: str, head: str, decoder: str
) -> None:
    for network in make_networks(cell, head, decoder, channels=CHANNELS)[:: 1 if head == "neg_binomial" else 5]:
        if not network.head.uniforms_per_draw:
            assert head == "point"
            return
        window, future_covariates = make_channel_windows(network)
        single = select_rows(window, slice(2, 3))
        noise = torch.rand(9, 24, network.head.uniforms_per_draw, generator=torch.Generator().manual_seed(0)).clamp(
            0.01, 0.99
        )
        noise[6] = noise[3]  # the third path differs from the second only in the noise of the channels
        with torch.inference_mode():
            state = repeat_state(warm_up(network, single), copies=3)
            paths = roll_out(
                network, state, horizon=13, future_covariates=future_covariates[2:3].expand(3, -1, -1), noise=noise
            )[0]
            reference = ReferenceRollout(network, single)
            reference.read_context(single)
            expected = reference.continue_rollout(future_covariates[2], 13, noise[3:6])
        assert_close_scaled(paths[1:2], torch.tensor([expected], dtype=torch.float64), single)
        assert_close_scaled(paths[1:2, : network.block], paths[2:, : network.block], single)
        assert not torch.equal(paths[0], paths[1])
        if head != "neg_binomial":  # counts may be equal by chance
            assert not torch.equal(paths[1], paths[2])


@every_numeric_value
def test_the_loss_equals_the_mean_over_targets_and_has_finite_gradients(cell: str, head: str, decoder: str) -> None:
    for index, network in enumerate(make_networks(cell, head, decoder, channels=CHANNELS)):
        window, future_covariates = make_channel_windows(network)
        future = (30 + torch.arange(network.block).double()).expand(ROW_COUNT * 3, -1).clone()
        future[0, 0] = torch.nan
        future[4] = torch.nan
        loss = teacher_forced_loss(network, Example(window, future, future_covariates[:, : network.block]))
        loss.backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        if index % 7 in (0, 5):  # the reference is slow
            with torch.inference_mode():
                assert float(loss) == pytest.approx(
                    reference_loss(network, window, future, future_covariates), rel=1e-4, abs=1e-5
                )


def reference_loss(network: Regressor, window: Window, future: Tensor, future_covariates: Tensor) -> float:
    """Averages the loss over every predicted block, every observed step of it, and every target observed before."""
    losses: list[float] = []
    y, channels = unstack_targets(future, num_targets=3)
    assert channels is not None
    assert window.channels is not None
    assert window.covariates is not None
    for row in range(ROW_COUNT):
        single = select_rows(window, slice(row, row + 1))
        values = torch.cat([single.values[0], y[row]])
        targets = torch.stack([values, *torch.cat([single.channels[0], channels[row]]).unbind(1)], dim=1)  # type: ignore[index]
        covariates = torch.cat([window.covariates[row], future_covariates[row]])
        reference, context = ReferenceRollout(network, single), single.values.shape[1]
        for first in range(network.pre_context, context, network.segment):
            reference.read_context(single.slice_steps(slice(first - network.pre_context, first + network.segment)))
            cutoff = first + network.segment
            if network.decoder_kind != "rollout" and cutoff < context:
                continue
            params = reference.head_params(covariates[cutoff : cutoff + network.block])
            for target in range(reference.targets):
                for offset in range(network.block):
                    actual = targets[cutoff + offset, target]
                    if reference.observed_yet[target] and not actual.isnan():
                        scaled = reference.scales[target].apply(actual[None, None], time=reference.time + offset)[0, 0]
                        losses.append(float(network.head.loss(params[target][offset], scaled)))
    return float(np.mean(losses))


@every_numeric_value
def test_prefix_chunks_resume_and_padding_do_not_change_a_rollout(cell: str, head: str, decoder: str) -> None:
    """A prefix, chunks, resuming from a state, and padding give the same forecast."""
    for network in make_networks(cell, head, decoder, channels=CHANNELS):
        window, future_covariates = make_channel_windows(network)
        steps = network.block + 3
        expected = forecast_window(network, window, future_covariates, steps)
        assert torch.isfinite(expected).all()
        assert_close_scaled(forecast_window(network, window, future_covariates, 4), expected[:, :4], window)
        with torch.inference_mode():
            state, remaining = start_rollout(network, window)
            parts = [remaining.slice_steps(slice(0, 6)), remaining.slice_steps(slice(6, None))]
            chunked = warm_up(network, parts[1], warm_up(network, parts[0], state))
            first_block, state = roll_out(network, chunked, horizon=network.block, future_covariates=future_covariates)
            rest, _ = roll_out(network, state, horizon=3, future_covariates=future_covariates[:, network.block :])
        assert_close_scaled(torch.cat([first_block, rest], dim=1), expected, window)
        assert window.channels is not None
        assert window.covariates is not None
        padded = window.covariates.clone()
        padded[1, network.pre_context : network.pre_context + (2 // network.segment) * network.segment] = 1e3
        assert_close_scaled(
            forecast_window(network, window._replace(covariates=padded), future_covariates, steps), expected, window
        )


@every_numeric_value
def test_the_target_and_every_channel_have_independent_units(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder, channels=CHANNELS):
        if (promise := promised_equivariance(network)) is None:
            continue
        factor, shift = promise
        window, future_covariates = make_channel_windows(network)
        assert window.channels is not None
        expected = forecast_window(network, window, future_covariates)
        transformed = window._replace(values=factor * window.values + shift)
        assert_close_scaled(
            forecast_window(network, transformed, future_covariates), factor * expected + shift, transformed
        )
        channels = window.channels.clone()
        channels[:, :, 1] = factor * channels[:, :, 1] + shift
        assert_close_scaled(
            forecast_window(network, window._replace(channels=channels), future_covariates), expected, window
        )


def make_small_network(*, channels: tuple[str, ...] = CHANNELS, cell: str = "gru", layers: int = 1) -> Regressor:
    return make_network(make_spec(cell=cell, layers=layers, channels=channels))


def state_tensors(state: RolloutState) -> list[Tensor]:
    parts = [*state.recurrent_state, state.output, state.recent, state.begun, state.bound, *state.scale]
    return [part for part in parts if part is not None]


CELLS = pytest.mark.parametrize(("cell", "layers"), [("gru", 1), ("lstm", 2), ("elman", 1)])


@CELLS
@pytest.mark.parametrize("padding", [1, 5, 50])
def test_left_padding_of_any_length_changes_nothing(cell: str, layers: int, padding: int) -> None:
    network = make_small_network(cell=cell, layers=layers)
    y, channel_values = make_wave(9), np.stack([make_wave(9, seed=1), make_wave(9, seed=2)], axis=1)
    y[:3] = np.nan  # the channels begin before y, so this is not padding
    unpadded, padded = (
        build_window([y], context=9 + padding_steps, channels=[channel_values]) for padding_steps in (0, padding)
    )
    for expected, actual in zip(
        state_tensors(warm_up(network, unpadded)), state_tensors(warm_up(network, padded)), strict=True
    ):
        torch.testing.assert_close(expected, actual, rtol=0, atol=1e-6)
    late_channels = channel_values.copy()
    late_channels[:3] = np.nan
    state, late_state = (
        warm_up(network, unpadded),
        warm_up(network, build_window([y], context=9, channels=[late_channels])),
    )
    assert not torch.allclose(state.recurrent_state.hidden, late_state.recurrent_state.hidden, atol=1e-3)


@CELLS
def test_a_row_without_observations_keeps_the_initial_state_exactly(cell: str, layers: int) -> None:
    network, unobserved = make_small_network(cell=cell, layers=layers), np.full((8, 2), np.nan)
    late_channel = unobserved.copy()
    late_channel[5, 1] = 3.0
    window = build_window(
        [np.full(8, np.nan), np.full(8, np.nan), make_wave(8)],
        context=8,
        channels=[unobserved, late_channel, unobserved],
    )
    state = warm_up(network, window)
    assert state.begun.tolist() == [False, False, False, False, False, True, True, False, False]
    assert (state.recurrent_state.hidden[:, 0] == 0).all()
    assert (state.output[0] == 0).all()
    for row in (1, 2):
        assert (state.recurrent_state.hidden[:, row] != 0).any()


def test_flattening_and_unflattening_channels_round_trips() -> None:
    values, channels = torch.arange(6.0).double().reshape(2, 3), torch.arange(10.0, 22.0).double().reshape(2, 3, 2)
    stacked = stack_targets(values, channels)
    assert stacked.tolist() == [[0, 1, 2], [10, 12, 14], [11, 13, 15], [3, 4, 5], [16, 18, 20], [17, 19, 21]]
    assert stack_targets(values, None) is values
    for actual, expected in zip(unstack_targets(stacked, num_targets=3), (values, channels), strict=True):
        assert actual is not None
        assert torch.equal(actual, expected)
    assert unstack_targets(values, num_targets=1) == (values, None)


@pytest.mark.parametrize("num_channels", [None, 1, 3])
def test_a_network_requires_its_number_of_channels(num_channels: int | None) -> None:
    window = Window(
        torch.zeros(2, 8).double(),
        channels=None if num_channels is None else torch.zeros(2, 8, num_channels, dtype=torch.float64),
    )
    with pytest.raises(AssertionError, match="the network reads 2 channels"):
        warm_up(make_small_network(), window)


@pytest.mark.parametrize("decoder", ["rollout", "direct"])
@pytest.mark.parametrize("diverging", ["y", "heat"])
def test_a_row_stops_when_any_target_diverges_without_affecting_others(decoder: str, diverging: str) -> None:
    spec = make_spec(decoder=decoder, scaling="none", base="last", channels=("heat",), segment=1, horizon=3)
    network = make_network(spec)
    with torch.no_grad():  # y or the channel changes by a million where the channel equals one
        for weight in network.parameters():
            weight.zero_()
        network.recurrent.layers[0].weight_ih_l0[2 * 6 :, 2] = 1.0
        network.output.weight[("y", "heat").index(diverging)] = 1e6
    ones, zeros = np.ones((16, 1)), np.zeros((16, 1))
    window = build_window([make_wave(16), make_wave(16)], context=16, channels=[ones, zeros])
    forecasts = forecast_window(network, window, torch.zeros(2, 24, 0), 9)
    assert forecasts[0].isnan().all()
    torch.testing.assert_close(
        forecasts[1], torch.full((9,), make_wave(16)[-1], dtype=torch.float64), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("decoder", ["rollout", "direct"])
def test_an_unobserved_channel_stays_unobserved_in_the_rollout(decoder: str) -> None:
    network = make_network(make_spec(decoder=decoder, channels=("heat",), horizon=3))
    unobserved, rows = np.full((16, 1), np.nan), slice(1, None, 2)
    window = build_window(
        [make_wave(16), make_wave(16)], context=16, channels=[unobserved, make_wave(16, seed=3)[:, None]]
    )
    with torch.inference_mode():
        _, final_state = roll_out(network, warm_up(network, window), horizon=9)
        network.output.bias[network.segment * network.head.num_params :] += 1e9
        biased = forecast_window(network, window, torch.zeros(2, 24, 0), 9)
        assert final_state.begun[rows].tolist() == [False, True]
        assert (final_state.recent[1] == 0).all()
    assert torch.isfinite(biased[0]).all(), "forecasts of an unobserved channel are ignored"
    assert biased[1].isnan().all()
