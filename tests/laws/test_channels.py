"""The laws of the rollout with channels, for every cell, head, decoder, scaling and base; against one written out by hand."""

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
    every_triple,
    make_networks,
    promised_equivariance,
    select_rows,
)
from tests.laws.test_every_combination import make_windows as of_values

pytestmark = pytest.mark.integration

CHANNELS = ("heat", "rain")
ROW_COUNT = 4


def make_channel_windows(network: Regressor) -> tuple[Window, Tensor]:
    """Y of a whole history, one that begins late, one with a gap, a large one; a channel that begins before y, one after
    it, one with a gap, one that was never observed.
    """
    window, ahead = of_values(network)
    rng = np.random.default_rng(2)
    channels = np.round(40 + 9 * rng.normal(size=(ROW_COUNT, window.values.shape[1], len(CHANNELS))))
    channels[:, :, 1] *= 1000
    channels[1, : network.pre_context + 2] = np.nan
    channels[0, : network.pre_context + 4, 1] = np.nan
    channels[2, network.pre_context + 3 : network.pre_context + 7, 0] = np.nan
    channels[3, :, 1] = np.nan
    return window._replace(channels=torch.from_numpy(channels)), ahead


def forecast_window(network: Regressor, window: Window, ahead: Tensor, horizon: int = HORIZON) -> Tensor:
    with torch.inference_mode():
        return roll_out(network, warm_up(network, window), horizon=horizon, future_covariates=ahead)[0]


class ReferenceRollout:
    """The rollout of one row, target by target and point by point, in lists."""

    def __init__(self, network: Regressor, window: Window) -> None:
        self.network = network
        lead = network.pre_context
        values = torch.cat([window.values[0][:, None], window.channels[0]], dim=1)  # type: ignore[index]
        self.targets = values.shape[1]
        self.scales = [
            measure_scale(
                values[None, lead:, target], network.scaling, season=network.season, transform=network.transform
            )
            for target in range(self.targets)
        ]
        self.time, self.observed_yet = -lead, [False] * self.targets
        self.filled: list[list[float]] = [[] if lead else [0.0] * network.lookback for _ in range(self.targets)]
        for step in range(lead):
            self._append_point([self.scale_value(target, values[step, target]) for target in range(self.targets)])
        self.observed_yet = [False] * self.targets
        self.state = network.recurrent.initial_state(1, like=values)
        self.output = torch.zeros(network.recurrent.hidden_size)
        self.static = network.embed_static(window.static, rows=1)[0].tolist()

    def scale_value(self, target: int, value: Tensor) -> float | None:
        """A value in the network's units; None if it was not observed."""
        return None if value.isnan() else float(self.scales[target].apply(value[None, None], time=self.time))

    def _append_point(self, point: Sequence[float | None]) -> None:
        for target, value in enumerate(point):
            past = self.filled[target]
            past.append(value if value is not None else past[-1] if past else 0.0)
            self.observed_yet[target] |= value is not None
        self.time += 1

    def read_segment(self, points: Sequence[Sequence[float | None]], covariates: Tensor) -> None:
        """One segment."""
        network = self.network
        for point in points:
            self._append_point(point)
        features: list[float] = []
        for target in range(self.targets):
            own = [point[target] for point in points]
            features += [0.0 if value is None else value for value in own]
            features += [float(value is not None) for value in own]
            past = self.filled[target]
            for lag in network.lags:
                features += [past[len(past) + place - lag] for place in range(network.segment)]
        features += covariates.flatten().tolist() + self.static
        if any(self.observed_yet):
            outputs, self.state = network.recurrent(
                torch.tensor(features)[None, None], self.state, torch.tensor([[True]])
            )
            self.output = outputs[0, 0]

    def head_params(self, covariates: Tensor) -> list[list[Tensor]]:
        """The head's parameters of each target, for each point of the next block."""
        network, found = self.network, [[] for _ in range(self.targets)]  # type: ignore[var-annotated]
        for count, place in enumerate(network.places):
            ahead = covariates[count * network.segment : (count + 1) * network.segment].flatten()
            assert network.decoder is not None
            hidden = network.decoder(torch.cat([place, ahead])[None], self.output[None])[0]
            raw = iter(network.output(hidden).split(network.head.num_params))
            for target in range(self.targets):
                for _ in range(network.segment):
                    found[target].append(self._shift_params(next(raw), target, ahead=len(found[target]) + 1))
        return found

    def _shift_params(self, raw: Tensor, target: int, *, ahead: int) -> Tensor:
        past, season = self.filled[target], self.network.season
        by = {
            "zero": lambda: 0.0,
            "last": lambda: past[-1],
            "seasonal_naive": lambda: past[len(past) - season + (ahead - 1) % season],
            "linear": lambda: past[-1] + ahead * (past[-1] - past[-1 - season]) / season,
        }[self.network.base]()
        return raw if self.network.base == "zero" else self.network.head.shift(raw, torch.tensor(by))

    def read_context(self, window: Window) -> None:
        """The context, segment by segment."""
        assert window.channels is not None
        assert window.covariates is not None
        for first in range(self.network.pre_context, window.values.shape[1], self.network.segment):
            points = []
            for step in range(first, first + self.network.segment):
                here = [window.values[0, step], *window.channels[0, step]]
                points.append([self.scale_value(target, value) for target, value in enumerate(here)])
                self.time += 1
            self.time -= self.network.segment
            self.read_segment(points, window.covariates[0, first : first + self.network.segment])

    def continue_rollout(self, ahead: Tensor, horizon: int, noise: Tensor | None = None) -> list[float]:
        """The next values of y; every target that was ever observed is fed back."""
        network, found = self.network, []
        silent = [not observed for observed in self.observed_yet]
        for first in range(0, horizon, network.block):
            span = slice(first, first + network.block)
            blocks = [torch.stack(one) for one in self.head_params(ahead[span])]
            told = [
                network.head.mean(block) if noise is None else network.head.sample(block, noise[target, span])
                for target, block in enumerate(blocks)
            ]
            y = self.scales[0].undo(told[0][None], time=self.time)[0]
            found += y.tolist()
            for place in range(0, network.block, network.segment):
                points = [
                    [None if silent[target] else float(one[step]) for target, one in enumerate(told)]
                    for step in range(place, place + network.segment)
                ]
                self.read_segment(points, ahead[span][place : place + network.segment])
        return found[:horizon]


@every_triple
def test_a_rollout_equals_a_reference_loop(cell: str, head: str, decoder: str) -> None:
    for number, network in enumerate(make_networks(cell, head, decoder, channels=CHANNELS)):
        window, ahead = make_channel_windows(network)
        found = forecast_window(network, window, ahead)
        for row in (number % ROW_COUNT, (number + 1) % ROW_COUNT):
            one = select_rows(window, slice(row, row + 1))
            with torch.inference_mode():
                slow = ReferenceRollout(network, one)
                slow.read_context(one)
                expected = torch.tensor([slow.continue_rollout(ahead[row], HORIZON)], dtype=torch.float64)
            assert_close_scaled(found[row : row + 1], expected, one)


@every_triple
def test_a_sample_path_equals_a_reference_loop_and_depends_on_the_noise_of_every_target(
    cell: str, head: str, decoder: str
) -> None:
    for network in make_networks(cell, head, decoder, channels=CHANNELS)[:: 1 if head == "neg_binomial" else 5]:
        if not network.head.uniforms_per_draw:
            assert head == "point"
            return
        window, ahead = make_channel_windows(network)
        one = select_rows(window, slice(2, 3))
        noise = torch.rand(9, 24, network.head.uniforms_per_draw, generator=torch.Generator().manual_seed(0)).clamp(
            0.01, 0.99
        )
        noise[6] = noise[3]  # the third path has the noise of the second, but for the channels
        with torch.inference_mode():
            memory = repeat_state(warm_up(network, one), copies=3)
            paths = roll_out(network, memory, horizon=13, future_covariates=ahead[2:3].expand(3, -1, -1), noise=noise)[
                0
            ]
            slow = ReferenceRollout(network, one)
            slow.read_context(one)
            expected = slow.continue_rollout(ahead[2], 13, noise[3:6])
        assert_close_scaled(paths[1:2], torch.tensor([expected], dtype=torch.float64), one)
        assert_close_scaled(paths[1:2, : network.block], paths[2:, : network.block], one)
        assert not torch.equal(paths[0], paths[1])
        if head != "neg_binomial":  # counts may well be the same
            assert not torch.equal(paths[1], paths[2])


@every_triple
def test_the_loss_equals_the_mean_over_targets_and_has_finite_gradients(cell: str, head: str, decoder: str) -> None:
    for number, network in enumerate(make_networks(cell, head, decoder, channels=CHANNELS)):
        window, ahead = make_channel_windows(network)
        future = (30 + torch.arange(network.block).double()).expand(ROW_COUNT * 3, -1).clone()
        future[0, 0] = torch.nan
        future[4] = torch.nan
        loss = teacher_forced_loss(network, Example(window, future, ahead[:, : network.block]))
        loss.backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        if number % 7 in (0, 5):  # it is slow
            with torch.inference_mode():
                assert float(loss) == pytest.approx(reference_loss(network, window, future, ahead), rel=1e-4, abs=1e-5)


def reference_loss(network: Regressor, window: Window, future: Tensor, ahead: Tensor) -> float:
    """Every block that is foretold, every observed point of it, every target that was observed before."""
    losses: list[float] = []
    y, channels = unstack_targets(future, num_targets=3)
    assert channels is not None
    assert window.channels is not None
    assert window.covariates is not None
    for row in range(ROW_COUNT):
        one = select_rows(window, slice(row, row + 1))
        values = torch.cat([one.values[0], y[row]])
        whole = torch.stack([values, *torch.cat([one.channels[0], channels[row]]).unbind(1)], dim=1)  # type: ignore[index]
        covariates = torch.cat([window.covariates[row], ahead[row]])
        slow, context = ReferenceRollout(network, one), one.values.shape[1]
        for first in range(network.pre_context, context, network.segment):
            slow.read_context(one.slice_steps(slice(first - network.pre_context, first + network.segment)))
            cut = first + network.segment
            if network.is_direct and cut < context:
                continue
            params = slow.head_params(covariates[cut : cut + network.block])
            for target in range(slow.targets):
                for place in range(network.block):
                    actual = whole[cut + place, target]
                    if slow.observed_yet[target] and not actual.isnan():
                        scaled = slow.scales[target].apply(actual[None, None], time=slow.time + place)[0, 0]
                        losses.append(float(network.head.loss(params[target][place], scaled)))
    return float(np.mean(losses))


@every_triple
def test_prefix_chunks_resume_and_padding_do_not_change_a_rollout(cell: str, head: str, decoder: str) -> None:
    """Prefix, chunks, going on from a memory, padding."""
    for network in make_networks(cell, head, decoder, channels=CHANNELS):
        window, ahead = make_channel_windows(network)
        steps = network.block + 3
        expected = forecast_window(network, window, ahead, steps)
        assert torch.isfinite(expected).all()
        assert_close_scaled(forecast_window(network, window, ahead, 4), expected[:, :4], window)
        with torch.inference_mode():
            memory, rest = start_rollout(network, window)
            halves = [rest.slice_steps(slice(0, 6)), rest.slice_steps(slice(6, None))]
            chunked = warm_up(network, halves[1], warm_up(network, halves[0], memory))
            before, memory = roll_out(network, chunked, horizon=network.block, future_covariates=ahead)
            after, _ = roll_out(network, memory, horizon=3, future_covariates=ahead[:, network.block :])
        assert_close_scaled(torch.cat([before, after], dim=1), expected, window)
        assert window.channels is not None
        assert window.covariates is not None
        padded = window.covariates.clone()
        padded[1, network.pre_context : network.pre_context + (2 // network.segment) * network.segment] = 1e3
        assert_close_scaled(
            forecast_window(network, window._replace(covariates=padded), ahead, steps), expected, window
        )


@every_triple
def test_the_target_and_every_channel_have_independent_units(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder, channels=CHANNELS):
        if (both := promised_equivariance(network)) is None:
            continue
        factor, shift = both
        window, ahead = make_channel_windows(network)
        assert window.channels is not None
        expected = forecast_window(network, window, ahead)
        moved = window._replace(values=factor * window.values + shift)
        assert_close_scaled(forecast_window(network, moved, ahead), factor * expected + shift, moved)
        other = window.channels.clone()
        other[:, :, 1] = factor * other[:, :, 1] + shift
        assert_close_scaled(forecast_window(network, window._replace(channels=other), ahead), expected, window)


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
    y, beside = make_wave(9), np.stack([make_wave(9, seed=1), make_wave(9, seed=2)], axis=1)
    y[:3] = np.nan  # the channels are there before y: that is no padding
    bare, padded = (build_window([y], context=9 + more, channels=[beside]) for more in (0, padding))
    for a, b in zip(state_tensors(warm_up(network, bare)), state_tensors(warm_up(network, padded)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    late = beside.copy()
    late[:3] = np.nan
    one, other = warm_up(network, bare), warm_up(network, build_window([y], context=9, channels=[late]))
    assert not torch.allclose(one.recurrent_state.hidden, other.recurrent_state.hidden, atol=1e-3)


@CELLS
def test_a_row_without_observations_keeps_the_initial_state_exactly(cell: str, layers: int) -> None:
    network, nothing = make_small_network(cell=cell, layers=layers), np.full((8, 2), np.nan)
    beside = nothing.copy()
    beside[5, 1] = 3.0
    window = build_window(
        [np.full(8, np.nan), np.full(8, np.nan), make_wave(8)], context=8, channels=[nothing, beside, nothing]
    )
    memory = warm_up(network, window)
    assert memory.begun.tolist() == [False, False, False, False, False, True, True, False, False]
    assert (memory.recurrent_state.hidden[:, 0] == 0).all()
    assert (memory.output[0] == 0).all()
    for row in (1, 2):
        assert (memory.recurrent_state.hidden[:, row] != 0).any()


def test_flattening_and_unflattening_channels_round_trips() -> None:
    values, channels = torch.arange(6.0).double().reshape(2, 3), torch.arange(10.0, 22.0).double().reshape(2, 3, 2)
    tracks = stack_targets(values, channels)
    assert tracks.tolist() == [[0, 1, 2], [10, 12, 14], [11, 13, 15], [3, 4, 5], [16, 18, 20], [17, 19, 21]]
    assert stack_targets(values, None) is values
    for one, other in zip(unstack_targets(tracks, num_targets=3), (values, channels), strict=True):
        assert one is not None
        assert torch.equal(one, other)
    assert unstack_targets(values, num_targets=1) == (values, None)


@pytest.mark.parametrize("given", [None, 1, 3])
def test_a_network_requires_its_number_of_channels(given: int | None) -> None:
    window = Window(
        torch.zeros(2, 8).double(), channels=None if given is None else torch.zeros(2, 8, given, dtype=torch.float64)
    )
    with pytest.raises(AssertionError, match="the network reads 2 channels"):
        warm_up(make_small_network(), window)


@pytest.mark.parametrize("decoder", ["rollout", "direct"])
@pytest.mark.parametrize("explodes", ["y", "heat"])
def test_a_row_stops_when_any_target_diverges_without_affecting_others(decoder: str, explodes: str) -> None:
    spec = make_spec(decoder=decoder, scaling="none", base="last", channels=("heat",), segment=1, horizon=3)
    network = make_network(spec)
    with torch.no_grad():  # y or the channel moves by a million where the channel is at one
        for weight in network.parameters():
            weight.zero_()
        network.recurrent.layers[0].weight_ih_l0[2 * 6 :, 2] = 1.0
        network.output.weight[("y", "heat").index(explodes)] = 1e6
    wild, calm = np.ones((16, 1)), np.zeros((16, 1))
    window = build_window([make_wave(16), make_wave(16)], context=16, channels=[wild, calm])
    found = forecast_window(network, window, torch.zeros(2, 24, 0), 9)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1], torch.full((9,), make_wave(16)[-1], dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("decoder", ["rollout", "direct"])
def test_an_unobserved_channel_stays_unobserved_in_the_rollout(decoder: str) -> None:
    network = make_network(make_spec(decoder=decoder, channels=("heat",), horizon=3))
    never, rows = np.full((16, 1), np.nan), slice(1, None, 2)
    window = build_window([make_wave(16), make_wave(16)], context=16, channels=[never, make_wave(16, seed=3)[:, None]])
    with torch.inference_mode():
        _, after = roll_out(network, warm_up(network, window), horizon=9)
        network.output.bias[network.segment * network.head.num_params :] += 1e9
        biased = forecast_window(network, window, torch.zeros(2, 24, 0), 9)
        assert after.begun[rows].tolist() == [False, True]
        assert (after.recent[1] == 0).all()
    assert torch.isfinite(biased[0]).all(), "what is said of it is not even looked at"
    assert biased[1].isnan().all()
