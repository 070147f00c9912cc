"""The decay of memory: exact derivatives, and half-lives that are known in advance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forecaster.explain.memory import build_memory_table, compute_decay, find_half_life, measure_memory
from forecaster.explain.states import build_network_window
from forecaster.explain.trace import build_layer_inputs
from forecaster.model.recurrent import RecurrentState
from forecaster.model.rollout import encode_inputs, start_rollout
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from tests.factories import make_fitted_model, make_series, make_spec, make_wave
from tests.forecaster.explain.test_states import KINDS, make_long_series, make_model


def make_linear_model(recurrent_weights: np.ndarray, *, context: int) -> FittedModel:
    """An Elman network in its linear regime: its states are so small that tanh is the identity."""
    model = make_fitted_model(make_spec(cell="elman", context=context, min_history=4))
    layer = model.network.recurrent.layers[0]
    with torch.no_grad():
        layer.weight_ih_l0.mul_(1e-3)
        layer.weight_hh_l0.copy_(torch.from_numpy(recurrent_weights))
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
    return model


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.97])
def test_the_half_life_of_a_linear_recurrence_is_that_of_its_decay(decay: float) -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    [memory] = measure_memory(make_linear_model(decay * rotation, context=120), make_series(make_wave(120)))
    expected = np.log(0.5) / np.log(decay)
    assert memory.half_life == pytest.approx(expected, rel=0.01)
    np.testing.assert_allclose(memory.half_lives, expected, rtol=0.01)


def test_each_unit_of_a_gru_with_fixed_update_gates_has_its_own_half_life() -> None:
    gates = np.array([0.3, 0.6, 0.8, 0.9, 0.95, 0.999])
    model = make_fitted_model(make_spec(context=96, min_history=4))
    layer = model.network.recurrent.layers[0]
    with torch.no_grad():
        for weight in (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0):
            weight.zero_()
        layer.bias_ih_l0[6:12] = torch.from_numpy(np.log(gates / (1 - gates)))
    [memory] = measure_memory(model, make_series(make_wave(96)))
    np.testing.assert_allclose(memory.half_lives[0, :5], np.log(0.5) / np.log(gates[:5]), rtol=0.01)
    assert np.isinf(memory.half_lives[0, 5]), "its half-life of 693 steps is beyond the window"
    table = build_memory_table([memory])
    assert table["half_life"].tolist() == memory.half_lives[0].tolist()
    assert (table["window"] == 95).all()


def test_a_segment_counts_all_its_steps_and_an_endless_memory_has_no_half_life() -> None:
    model = make_fitted_model(make_spec(cell="elman", segment=4, decoder="direct", context=80))
    layer = model.network.recurrent.layers[0]
    with torch.no_grad():
        layer.weight_ih_l0.mul_(1e-3)
        layer.weight_hh_l0.copy_(0.5 * torch.eye(6))
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
    assert measure_memory(model, make_series(make_wave(80)))[0].half_life == pytest.approx(4, rel=0.01)
    endless = make_linear_model(0.999 * np.eye(6), context=40)
    assert measure_memory(endless, make_series(make_wave(40)))[0].half_life is None


def test_a_return_of_influence_counts() -> None:
    assert find_half_life(np.array([1.0, 0.5, 0.25])) == pytest.approx(1)
    assert find_half_life(np.array([1.0, 0.1, 0.1, 0.8, 0.2])) == pytest.approx(3 + np.log(1.6) / np.log(4))
    assert find_half_life(np.array([1.0, 0.0])) == pytest.approx(0.5)
    assert find_half_life(np.array([1.0, 0.1, 0.6])) is None


@pytest.mark.parametrize("name", [name for name in KINDS if name != "channels"])
def test_influence_is_the_norm_of_the_rows_of_the_jacobian(name: str) -> None:
    model, lag = make_model(name), 4
    series = make_series(make_long_series(24).y)
    network = model.network
    state, window = start_rollout(network, build_network_window(Predictor(model), series))
    influence = compute_decay(network, window, state, max_lags=lag)
    with torch.no_grad():
        encoded = encode_inputs(network, window, state)
        inputs = build_layer_inputs(network, encoded.inputs, state.static, encoded.mask)
        cut = inputs.shape[1] - (lag := len(influence) - 1)
        _, earlier = network.recurrent(inputs[:, :cut], state.recurrent_state, encoded.mask[:, :cut])
    slots = np.cumsum(network.recurrent.dilations) - 1
    flat = torch.cat([part.flatten() for part in earlier if part is not None])

    def read_on(values: torch.Tensor) -> torch.Tensor:
        parts = values.reshape(2 if earlier.cell is not None else 1, *earlier.hidden.shape)
        start = RecurrentState(parts[0], parts[1] if earlier.cell is not None else None)
        _, after = network.recurrent(inputs[:, cut:], start, encoded.mask[:, cut:])
        return after.hidden[slots, 0].flatten()

    jacobian = torch.autograd.functional.jacobian(read_on, flat)
    np.testing.assert_allclose(influence[lag], jacobian.norm(dim=1), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(influence[0], 1.0)
