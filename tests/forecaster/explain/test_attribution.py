"""Explanations: properties for any weights, and exact values where they are known in advance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.patches import StepPatch

from forecaster.data.windows import Window
from forecaster.errors import HistoryTooShort
from forecaster.explain.attribution import Explanation, explain
from forecaster.explain.plots import plot_explanation
from forecaster.explain.trace import compute_influence, trace_layers
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import start_rollout, warm_up
from forecaster.prediction.predictor import Predictor
from forecaster.series import Series
from tests.factories import START, make_fitted_model, make_network, make_series, make_spec, make_wave

SPECS = {
    "gru": {"cell": "gru"},
    "lstm": {"cell": "lstm"},
    "elman": {"cell": "elman"},
    "relu": {"cell": "relu"},
    "two layers, dilated": {"cell": "gru", "dilations": (1, 3)},
    "lstm, dilated": {"cell": "lstm", "dilations": (2, 3)},
    "segments": {"cell": "gru", "segment": 4, "decoder": "direct"},
}


def make_named_network(name: str) -> Regressor:
    fields = dict(SPECS[name])
    spec = make_spec(cell=str(fields.pop("cell")))
    dilations = fields.pop("dilations", (1,))
    values = spec.model_dump() | fields
    values["network"] |= {"layers": len(dilations), "dilations": dilations}
    return make_network(type(spec).parse(values, where="a test"))


def make_window(steps: int = 16, *, padding: int = 0) -> Window:
    y = make_wave(steps)
    y[:padding] = np.nan
    return Window(torch.from_numpy(y)[None])


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("name", SPECS)
def test_traced_states_equal_those_of_a_step_by_step_pass(name: str, padding: int) -> None:
    network, window = make_named_network(name), make_window(padding=padding)
    state, remaining = start_rollout(network, window)
    with torch.no_grad():
        traces = trace_layers(network, remaining, state)
        for segment in range(16 // network.segment):
            state = warm_up(
                network, remaining.slice_steps(slice(segment * network.segment, (segment + 1) * network.segment)), state
            )
            slots = np.cumsum(network.recurrent.dilations) - 1  # slots of the latest step
            for layer, slot in zip(traces, slots, strict=True):
                if (segment + 1) * network.segment <= padding:
                    assert layer.norm[segment].isnan()
                else:
                    assert layer.norm[segment].item() == pytest.approx(
                        state.recurrent_state.hidden[slot, 0].norm().item(), rel=1e-4
                    )


def test_traced_gates_follow_the_equations() -> None:
    network, window = make_named_network("gru"), make_window()
    state, remaining = start_rollout(network, window)
    with torch.no_grad():
        gates = trace_layers(network, remaining, state)[0].gates
        previous_state = warm_up(network, remaining.slice_steps(slice(15)), state)
        layer = network.recurrent.layers[0]
        scaled = state.scale.apply(remaining.values)[:, 15:]
        inputs = torch.cat([scaled, torch.ones_like(scaled)], dim=1)
        preactivations = (
            inputs @ layer.weight_ih_l0.T
            + layer.bias_ih_l0
            + previous_state.recurrent_state.hidden[0] @ layer.weight_hh_l0.T
            + layer.bias_hh_l0
        )
    r, z, _ = preactivations.sigmoid().chunk(3, dim=1)
    assert gates["reset"][15].item() == pytest.approx(r.mean().item(), rel=1e-4)
    assert gates["update"][15].item() == pytest.approx(z.mean().item(), rel=1e-4)
    assert set(gates) == {"reset", "update"}


@pytest.mark.parametrize("name", SPECS)
def test_influence_is_the_norm_of_the_derivative(name: str) -> None:
    network, window = make_named_network(name), make_window()
    state, remaining = start_rollout(network, window)
    estimate = compute_influence(network, remaining, state)
    from forecaster.model.rollout import encode_inputs

    encoded = encode_inputs(network, remaining, state)
    inputs = encoded.inputs.detach().requires_grad_()
    _, final_state = network.recurrent(inputs, state.recurrent_state, encoded.mask)
    flat_state = final_state.hidden if final_state.cell is None else torch.cat([final_state.hidden, final_state.cell])
    squares = sum(
        torch.autograd.grad(component, inputs, retain_graph=True)[0].square().sum((0, 2))
        for component in flat_state.flatten()
    )
    assert isinstance(squares, torch.Tensor)
    exact = squares.sqrt()
    is_large = exact > 0.05 * exact.max()
    assert ((estimate / exact)[is_large] - 1).abs().max() < 0.5, "each value is estimated from 32 projections"
    assert estimate.sum().item() == pytest.approx(exact.sum().item(), rel=0.25)


@pytest.mark.parametrize("decay", [0.5, 0.8, 0.9])
def test_the_half_life_of_a_decaying_state_is_that_of_the_decay(decay: float) -> None:
    spec = make_spec(cell="elman", context=200, min_history=4)
    model = make_fitted_model(spec)
    layer = model.network.recurrent.layers[0]
    with torch.no_grad():
        layer.weight_ih_l0.mul_(1e-3)
        layer.weight_hh_l0.copy_(decay * torch.eye(6))
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
    explanation = explain(model, make_series(make_wave(200)), steps=200)
    assert explanation.half_life == pytest.approx(np.log(0.5) / np.log(decay), rel=0.05)
    assert explanation.influence.sum() == pytest.approx(1.0)


def test_the_half_life_of_a_gate_is_that_of_its_mean() -> None:
    model = make_fitted_model(make_spec(cell="lstm"))
    explanation = explain(model, make_series(make_wave(16)))
    mean_gate = explanation.layers[0].gates["forget"].mean()
    assert explanation.layers[0].half_life == pytest.approx(np.log(0.5) / np.log(mean_gate))
    assert explain(make_fitted_model(make_spec(cell="elman")), make_series(make_wave(16))).layers[0].half_life is None


def test_a_last_value_network_attributes_everything_to_the_last_value() -> None:
    model = make_fitted_model(make_spec(base="last", scaling="none"))
    with torch.no_grad():
        model.network.output.weight.zero_()
        model.network.output.bias.zero_()
    y = make_wave(20)
    explanation = explain(model, make_series(y), steps=12)
    assert (explanation.forecast, explanation.baseline) == (pytest.approx(y[-1], rel=1e-5), 0.0)
    np.testing.assert_allclose(explanation.attribution, [*np.zeros(11), y[-1]], atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"base": "seasonal_naive"},
        {"lags": [4, 7]},
        {"scaling": "level_season"},
        {"scaling": "last", "transform": "log"},
        {"segment": 4, "decoder": "direct"},
        {"reads": "history"},
        {"channels": ["b"]},
        {"head": {"kind": "gaussian"}},
    ],
)
def test_attributions_add_up_to_the_forecast(fields: dict[str, object]) -> None:
    model = make_fitted_model(make_spec(**fields))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the output layer of a network with a baseline starts at zero
        model.network.output.weight.add_(0.3 * torch.randn(model.network.output.weight.shape, generator=generator))
    y = make_wave(60)
    y[[50, 55]] = np.nan
    series = Series("a", START, "h", y, channels={"b": make_wave(60, seed=3)} if "channels" in fields else {})
    explanation = explain(model, series, steps=20)
    assert explanation.forecast == pytest.approx(Predictor(model).forecast(series, 5).mean.mean(), rel=1e-4)
    assert abs(explanation.integration_error) < 0.02 * max(abs(explanation.forecast - explanation.baseline), 1e-3), (
        "the integral is approximated with 32 points"
    )
    assert len(explanation.attribution) == len(explanation.ds) == len(explanation.y) >= 16
    assert np.isfinite(explanation.attribution).all()
    assert (explanation.attribution[[-10, -5]] == 0).all(), "missing values have no attribution"
    assert (
        np.abs(explanation.attribution).sum() + sum(np.abs(values).sum() for values in explanation.channels.values())
        > 0
    )
    assert list(explanation.channels) == (["b"] if "channels" in fields else [])


def test_steps_before_the_context_have_no_attribution_and_a_short_history_is_explained() -> None:
    model = make_fitted_model(make_spec())
    explanation: Explanation = explain(model, make_series(make_wave(40)))
    assert len(explanation.ds) == 16
    assert explanation.ds[-1] == make_series(make_wave(40)).end
    short = explain(model, make_series(make_wave(6)))
    assert len(short.attribution) == len(short.layers[0].norm) == 6
    assert np.isfinite(short.layers[0].norm).all()


def test_attributions_average_over_members_and_report_a_blend() -> None:
    spec = make_spec()
    first, second = make_network(spec, seed=1), make_network(spec, seed=2)
    model = make_fitted_model(spec)
    explanation = explain(replace(model, network=first, other_networks=(second,)), make_series(make_wave(30)))
    explanations = [explain(replace(model, network=network), make_series(make_wave(30))) for network in (first, second)]
    np.testing.assert_allclose(
        explanation.attribution, (explanations[0].attribution + explanations[1].attribution) / 2, atol=1e-6
    )
    assert "2 members" in explanation.notes[0]


def test_a_history_that_cannot_be_forecast_cannot_be_explained() -> None:
    with pytest.raises(HistoryTooShort):
        explain(make_fitted_model(make_spec()), make_series(make_wave(2)))


def test_segments_are_drawn_as_segments_and_the_reading_is_described() -> None:
    model = make_fitted_model(make_spec(segment=4, decoder="direct"))
    explanation = explain(model, make_series(make_wave(40)), steps=14)
    figure = plot_explanation(explanation, title="small: one")
    for axes in figure.axes[2:]:
        assert not axes.lines, "no slopes between segments"
        for steps in axes.patches:
            assert isinstance(steps, StepPatch)
            assert len(steps.get_data().values) == 4, "three whole segments, and the end of one"
    influence = figure.axes[2].patches[0]
    assert isinstance(influence, StepPatch)
    np.testing.assert_allclose(influence.get_data().values[-1], explanation.influence[-4:].sum())
    assert len(figure.axes[-1].patches) == len(explanation.layers)
    assert all(axes.get_ylabel() for axes in figure.axes)
    reading = figure.get_supxlabel()
    assert "segment of 4 steps" in reading
    assert "the update gate is the share of the previous state that is kept" in reading
