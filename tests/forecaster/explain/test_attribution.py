"""Explanations: properties for any weights, and exact values where they are known in advance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.patches import StepPatch

from forecaster.data.encoding import Encoding
from forecaster.data.windows import Window
from forecaster.errors import HistoryTooShort
from forecaster.explain import integrated_gradients
from forecaster.explain.attribution import Explanation, explain
from forecaster.explain.plots import plot_explanation
from forecaster.explain.trace import compute_influence, trace_layers
from forecaster.model.regressor import Regressor, build_network
from forecaster.model.rollout import start_rollout, warm_up
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Series
from forecaster.spec import Spec
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
    start = 0.98 * y[-12:].mean() + 0.02 * y[-1]
    assert (explanation.forecast, explanation.baseline) == (pytest.approx(y[-1], rel=1e-5), pytest.approx(start))
    np.testing.assert_allclose(explanation.attribution, [*np.zeros(11), y[-1] - start], atol=1e-5)


RUNNING = {
    "scaling": "running",
    "features": "seasonal",
    "base": "mixture",
    "segment": 2,
    "head": {"kind": "quantile"},
    "network": {"cell": "lstm", "layers": 2, "hidden": 6, "residual": True},
}
KINDS: dict[str, dict[str, object]] = {
    "standard": {},
    "seasonal naive": {"base": "seasonal_naive"},
    "lags": {"lags": [4, 7]},
    "level and season": {"scaling": "level_season"},
    "log": {"scaling": "last", "transform": "log"},
    "unscaled": {"scaling": "none"},
    "segments, direct": {"segment": 4, "decoder": "direct"},
    "whole history": {"reads": "history"},
    "channels": {"channels": ["b"]},
    "covariates": {"covariates": ["price", "promotion"], "calendar": ["hour"], "channels": ["b"]},
    "gaussian": {"head": {"kind": "gaussian"}},
    "running, direct": {**RUNNING, "decoder": "direct"},
    "running, block, whole history": {**RUNNING, "decoder": "block", "block_steps": 6, "reads": "history"},
    "dilated": {"network": {"cell": "gru", "layers": 2, "hidden": 6, "dilations": [1, 3]}},
    "three members": {"members": 3},
}
ENCODING = Encoding(calendar=("hour",), numeric={"price": (2.0, 0.5)}, categories={"promotion": ("none", "sale")})


def make_model(fields: dict[str, object]) -> FittedModel:
    """Returns a model with random weights of any kind."""
    defaults = {"name": "small", "context": 16, "horizon": 5, "min_history": 4, "season": 4, "scaling": "standard"}
    network = {"cell": "gru", "hidden": 6}
    spec = Spec.parse({**defaults, "network": network, **fields}, where="a test")
    encoding = ENCODING if "covariates" in fields else Encoding()
    networks, generator = [], torch.Generator().manual_seed(0)
    for seed in range(spec.members):
        built = build_network(spec, seed=seed, num_covariates=encoding.num_covariates).eval().requires_grad_(False)
        for weight in built.parameters():
            weight.mul_(1.5)
        built.output.weight.add_(0.3 * torch.randn(built.output.weight.shape, generator=generator))
        networks.append(built)
    return FittedModel(spec, "h", 4, START, encoding, networks[0], other_networks=tuple(networks[1:]))


def make_input(fields: dict[str, object], *, steps: int = 60) -> Series:
    y = make_wave(steps)
    y[[steps - 10, steps - 5]] = np.nan
    covariates = {
        "price": 2 + make_wave(steps + 6, seed=5),
        "promotion": np.array(["none", "sale", "other"])[np.arange(steps + 6) % 3],
    }
    return Series(
        "a",
        START,
        "h",
        y,
        covariates=covariates if "covariates" in fields else {},
        channels={"b": make_wave(steps, seed=3)} if "channels" in fields else {},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_attributions_add_up_to_the_served_forecast(kind: str) -> None:
    fields = KINDS[kind]
    model, series = make_model(fields), make_input(fields)
    explanation = explain(model, series, steps=20)
    assert explanation.forecast == pytest.approx(Predictor(model).forecast(series, 5).mean.mean(), rel=1e-4)
    assert explanation.completeness_error <= 0.01
    total = sum(
        map(np.sum, (explanation.attribution, *explanation.channels.values(), *explanation.covariates.values()))
    )
    change = explanation.forecast - explanation.baseline
    assert total == pytest.approx(change, abs=0.01 * max(abs(change), 0.01))
    assert len(explanation.attribution) == len(explanation.ds) == len(explanation.y) >= 16
    assert (explanation.attribution[[-10, -5]] == 0).all(), "missing values have no attribution"
    assert np.abs(explanation.attribution).max() > 0
    assert list(explanation.channels) == (["b"] if "channels" in fields else [])
    assert list(explanation.covariates) == (["calendar hour", "price", "promotion"] if "covariates" in fields else [])
    for values in explanation.covariates.values():
        assert len(values) == len(explanation.ds) + 5
        assert np.abs(values[-5:]).max() > 0, "the covariates of the horizon count"


def test_an_unseen_category_and_a_covariate_at_its_mean_contribute_nothing() -> None:
    fields = KINDS["covariates"]
    series = make_input(fields)
    price = np.where(np.arange(66) % 2, series.covariates["price"], 2.0)
    explanation = explain(
        make_model(fields), replace(series, covariates={**series.covariates, "price": price}), steps=16
    )
    steps = np.arange(60 - 16, 65)
    is_unseen = steps % 3 == 2
    assert (explanation.covariates["promotion"][is_unseen] == 0).all()
    assert (explanation.covariates["promotion"][~is_unseen] != 0).all()
    assert (explanation.covariates["price"][steps % 2 == 0] == 0).all()


def test_a_path_that_cannot_be_integrated_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrated_gradients, "MAX_POINTS", 0)
    monkeypatch.setattr(integrated_gradients, "_ORDER", 1)
    explanation = explain(make_model(KINDS["running, direct"]), make_input({}))
    assert explanation.completeness_error > 0.01
    assert any("The attributions miss forecast minus baseline by" in note for note in explanation.notes)


def test_steps_before_the_context_have_no_attribution_and_a_short_history_is_explained() -> None:
    model = make_fitted_model(make_spec())
    explanation: Explanation = explain(model, make_series(make_wave(40)))
    assert len(explanation.ds) == 16
    assert explanation.ds[-1] == make_series(make_wave(40)).end
    short = explain(model, make_series(make_wave(6)))
    assert len(short.attribution) == len(short.layers[0].norm) == 6
    assert np.isfinite(short.layers[0].norm).all()


def test_members_are_explained_by_their_median_and_traced_by_their_mean() -> None:
    spec = make_spec()
    first, second = make_network(spec, seed=1), make_network(spec, seed=2)
    model, series = make_fitted_model(spec), make_series(make_wave(30))
    both = explain(replace(model, network=first, other_networks=(second,)), series)
    alone = [explain(replace(model, network=network), series) for network in (first, second)]
    np.testing.assert_allclose(both.attribution, (alone[0].attribution + alone[1].attribution) / 2, atol=1e-5)
    np.testing.assert_allclose(both.layers[0].norm, (alone[0].layers[0].norm + alone[1].layers[0].norm) / 2, rtol=1e-5)
    assert "2 members" in both.notes[0]
    same = explain(replace(model, network=second, other_networks=(first, second)), series)
    np.testing.assert_allclose(same.attribution, alone[1].attribution, atol=1e-5)


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
