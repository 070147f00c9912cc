"""Padding never changes a state; a missing value does, but its value is not read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forecaster.data.windows import Example, Window, build_window
from forecaster.model.recurrent import RecurrentState
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, roll_out, run_over_window, start_rollout, warm_up
from forecaster.model.scaling import measure_scale
from forecaster.training.loss import teacher_forced_loss
from tests.factories import make_wave, teacher_forced_predictions

TOLERANCE = 1e-6


def random_state(network: Regressor, rows: int) -> RecurrentState:
    generator = torch.Generator().manual_seed(3)
    shape = (len(network.recurrent.layers), rows, network.recurrent.hidden_size)
    hidden = torch.rand(shape, generator=generator)
    return RecurrentState(hidden, torch.rand(shape, generator=generator) if network.recurrent.has_cell else None)


def compute_loss(network: Regressor, example: Example) -> float:
    return teacher_forced_loss(network, example).item()


@pytest.mark.parametrize("padding", [1, 5, 50])
def test_left_padding_of_any_length_changes_nothing(network: Regressor, padding: int) -> None:
    y = make_wave(9)
    unpadded, padded = build_window([y], context=9), build_window([y], context=9 + padding)
    assert padded.values[0, :padding].isnan().all()
    expected, actual = warm_up(network, unpadded), warm_up(network, padded)
    for expected_part, actual_part in zip(expected.scale, actual.scale, strict=True):
        assert torch.equal(expected_part, actual_part)
    torch.testing.assert_close(expected.recurrent_state.hidden, actual.recurrent_state.hidden, rtol=0, atol=TOLERANCE)
    if expected.recurrent_state.cell is not None:
        torch.testing.assert_close(expected.recurrent_state.cell, actual.recurrent_state.cell, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(
        roll_out(network, expected, horizon=6)[0], roll_out(network, actual, horizon=6)[0], rtol=0, atol=TOLERANCE * 10
    )


def test_padding_preserves_the_state_exactly_and_gives_no_output(network: Regressor) -> None:
    state = random_state(network, 3)
    inputs = torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[1, 4:] = True
    mask[2] = True
    outputs, final_state = network.recurrent(inputs, state, mask)
    assert torch.equal(final_state.hidden[:, 0], state.hidden[:, 0])
    if state.cell is not None and final_state.cell is not None:
        assert torch.equal(final_state.cell[:, 0], state.cell[:, 0])
    assert (outputs[0] == 0).all()
    assert (outputs[1, :4] == 0).all()
    later_state = RecurrentState(state.hidden[:, 1:2], None if state.cell is None else state.cell[:, 1:2])
    alone, expected_state = network.recurrent(inputs[1:2, 4:], later_state, mask[1:2, 4:])
    torch.testing.assert_close(outputs[1:2, 4:], alone, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(final_state.hidden[:, 1:2], expected_state.hidden, rtol=0, atol=TOLERANCE)


def test_padded_values_are_not_read(network: Regressor) -> None:
    state = random_state(network, 2)
    mask = torch.tensor([[False, False, True, True], [False, True, True, True]])
    inputs = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(4))
    outputs, final_state = network.recurrent(inputs, state, mask)
    for garbage in (float("nan"), 1e30):
        changed_inputs = inputs.masked_fill(~mask[:, :, None], garbage)
        changed_outputs, changed_state = network.recurrent(changed_inputs, state, mask)
        assert torch.equal(outputs, changed_outputs)
        assert torch.equal(final_state.hidden, changed_state.hidden)


def test_a_row_without_observations_keeps_the_initial_state_exactly(network: Regressor) -> None:
    state = warm_up(network, build_window([np.full(8, np.nan), make_wave(8)], context=8))
    assert state.begun.tolist() == [False, True]
    assert (state.recurrent_state.hidden[:, 0] == 0).all()
    assert (state.recurrent_state.hidden[:, 1] != 0).any()
    if state.recurrent_state.cell is not None:
        assert (state.recurrent_state.cell[:, 0] == 0).all()


def test_a_missing_value_advances_the_state_unlike_padding(network: Regressor) -> None:
    with_gap = np.array([5.0, 7.0, np.nan, 6.0])
    padded = np.array([np.nan, 5.0, 7.0, 6.0])
    gap_state, padded_state = (
        warm_up(network, build_window([with_gap], context=4)),
        warm_up(network, build_window([padded], context=4)),
    )
    assert not torch.allclose(gap_state.recurrent_state.hidden, padded_state.recurrent_state.hidden, atol=1e-3)


def run_network(
    network: Regressor, values: torch.Tensor, observed: torch.Tensor, rollout_state: RolloutState
) -> tuple[torch.Tensor, RecurrentState]:
    filled_values = torch.cat([rollout_state.recent, values], dim=1)
    inputs = network.encode(values, observed, filled_values, None)
    return network.recurrent(inputs, rollout_state.recurrent_state, torch.ones_like(observed))


def test_a_missing_value_is_read_as_zero_with_an_unobserved_mask(network: Regressor) -> None:
    y = make_wave(10)
    y[[3, 9]] = np.nan
    window = build_window([y], context=10)
    start, _ = start_rollout(network, window)
    actual, _, next_state, _ = run_over_window(network, window, start)
    observed = torch.from_numpy(~np.isnan(y))[None]
    for hidden_value in (0.0, -4.0, 1e6):
        filled = torch.from_numpy(np.where(np.isnan(y), hidden_value, y))[None]
        values = start.scale.apply(filled).where(observed, torch.zeros(()))
        expected, state = run_network(network, values, observed, start)
        assert torch.equal(actual, expected)
        assert torch.equal(next_state.recurrent_state.hidden, state.hidden)
    observed_zero, _ = run_network(network, values, torch.ones_like(observed), start)
    assert not torch.allclose(observed_zero, actual), "an observed zero differs from a missing value"


@pytest.mark.parametrize("scaling", ["none", "mean_abs", "standard"])
def test_the_scale_uses_observed_values_only(scaling: str) -> None:
    y = make_wave(12)
    with_gaps = np.insert(y, [0, 0, 4, 12], np.nan)
    expected, actual = (measure_scale(torch.from_numpy(values)[None], scaling) for values in (y, with_gaps))
    for expected_part, actual_part in zip(expected, actual, strict=True):
        torch.testing.assert_close(expected_part, actual_part, rtol=1e-14, atol=0)


def test_an_unobserved_target_is_excluded_from_the_loss(network: Regressor) -> None:
    y = make_wave(10)
    y[4] = np.nan
    window = Window(torch.from_numpy(y[:9])[None])
    whole = Example(window, torch.from_numpy(y[9:])[None])
    predictions, state = teacher_forced_predictions(network, window, start_rollout(network, window)[0])
    errors = [
        float((predictions[0, step] - state.scale.apply(torch.tensor([[y[step + 1]]]).double())[0, 0]) ** 2)
        for step in range(9)
        if not np.isnan(y[step + 1])
    ]
    assert len(errors) == 8
    assert compute_loss(network, whole) == pytest.approx(np.mean(errors), rel=1e-5)
    missing = Example(window, torch.full((1, 1), float("nan"), dtype=torch.float64))
    assert compute_loss(network, missing) == pytest.approx(np.mean(errors[:-1]), rel=1e-5)


def test_padding_is_excluded_from_the_loss(network: Regressor) -> None:
    y = make_wave(10)
    future = torch.from_numpy(y[9:])[None]
    unpadded, padded = (Example(build_window([y[:9]], context=context), future) for context in (9, 14))
    assert compute_loss(network, unpadded) == pytest.approx(compute_loss(network, padded), rel=1e-5)
