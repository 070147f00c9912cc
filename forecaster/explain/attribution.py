"""Explains a forecast: the memory of the network, its gates, and the attribution of the forecast to the observed values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.data.windows import Window, unstack_targets
from forecaster.engines.engine import RolloutInput
from forecaster.explain.trace import RETENTION_GATE, LayerTrace, compute_influence, trace_layers
from forecaster.frequency.timestamps import Timestamps
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, repeat_state, roll_out, start_rollout, warm_up
from forecaster.model.scaling import Scale
from forecaster.prediction.bounds import without_bounds
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Series
from forecaster.shapes import Bool, Float64

MAX_STEPS = 1024  # largest number of explained steps; earlier steps are read but not explained
_INTEGRATION_POINTS = 32  # of the path integral
METHODS = {
    "half_life": "the number of latest steps that account for half of the total influence on the final state. The influence of "
    "a step is the Frobenius norm of the derivative of that state with respect to the inputs of the recurrence at the step. If "
    "it decays exponentially, this is the half-life",
    "gates": "means over the units of a layer, at each step; the half-life of a layer is what the mean of its update (GRU) or "
    "forget gate (LSTM) alone implies, without the recurrent weights. This interpretation of gates is ours",
    "attribution": "integrated gradients (Sundararajan, Taly and Yan 2017, equation 1) of the mean forecast over the horizon, "
    "from a history that scaling maps to zeros to the given history, by the midpoint rule. Scale, covariates, calendar and "
    "static columns are held constant; the attributions sum to forecast minus baseline, up to `gap`",
}


class LayerDynamics(NamedTuple):
    """The behaviour of one layer, averaged over members.

    Attributes:
        gates: Mean of each gate over the units, by name and step; NaN where the layer read nothing.
        norm: Norm of the hidden state at each step; NaN where the layer read nothing.
        half_life: Half-life in steps of the series that the retention gate alone implies; None for an Elman layer, or if
            it is unbounded.
    """

    gates: Mapping[str, Float64[np.ndarray, "step"]]
    norm: Float64[np.ndarray, "step"]
    half_life: float | None


@dataclass(frozen=True, eq=False)
class Explanation:
    """The last steps of a history and their effect on the forecast.

    Attributes:
        id: Id of the series.
        horizon: Number of steps ahead that `forecast` averages.
        ds: Timestamps of the steps.
        y: Values of the steps.
        half_life: Half-life of the network's memory in steps; None if nothing influences its state.
        influence: Share of each step in the total influence on the final state; NaN where the recurrence read nothing.
        layers: The layers, lowest first.
        attribution: Contribution of each value of y to the forecast, in data units; 0 where missing.
        channels: Contributions of the channels' values, by name of the channel.
        forecast: Mean forecast of the network over the horizon, averaged over members; for a blend, of the network alone.
        baseline: The same forecast for a history that scaling maps to zeros.
        integration_error: Forecast minus baseline minus the sum of attributions, due to numerical integration.
        notes: Remarks for the reader.
        segment: Number of time points that one step of the recurrence reads. Influence, gates and norm have one value per
            segment, the last of which ends with the history; the influence is shared equally by the steps of its segment.
    """

    id: str
    horizon: int
    ds: Timestamps
    y: Float64[np.ndarray, "step"]
    half_life: float | None
    influence: Float64[np.ndarray, "step"]
    layers: Sequence[LayerDynamics]
    attribution: Float64[np.ndarray, "step"]
    channels: Mapping[str, Float64[np.ndarray, "step"]]
    forecast: float
    baseline: float
    integration_error: float
    notes: tuple[str, ...] = ()
    segment: int = 1


def explain(model: FittedModel, series: Series, *, horizon: int | None = None, steps: int = 256) -> Explanation:
    """Explains the forecast of one series; raises the same errors as the forecast itself.

    Args:
        model: The fitted model.
        series: The history.
        horizon: Steps ahead; default: the model's horizon.
        steps: Number of latest steps to explain, at most MAX_STEPS.
    """
    assert 1 <= steps <= MAX_STEPS
    predictor, horizon_steps = Predictor(model), horizon or model.spec.horizon
    served = predictor.forecast(series, horizon_steps)  # validates the series
    unbounded = Predictor(without_bounds(model), engine=predictor.engine).forecast(series, horizon_steps)
    inputs = predictor.build_input(series, horizon_steps)
    explanations = [
        _explain_network(network.eval(), inputs, horizon=horizon_steps, steps=steps) for network in model.networks
    ]
    num_shown = min(steps, len(series), inputs.values.shape[1])
    mean_attributions = np.mean([explanation.attributions for explanation in explanations], axis=0)
    segment, cell_kind = model.spec.segment, model.spec.network.cell
    layers = [
        _explain_layer([explanation.layers[index] for explanation in explanations], cell_kind, segment, num_shown)
        for index in range(len(explanations[0].layers))
    ]
    forecast, baseline = (
        float(np.mean(values))
        for values in zip(*((explanation.forecast, explanation.baseline) for explanation in explanations), strict=True)
    )
    mean_influence = np.mean([explanation.influence for explanation in explanations], axis=0)
    total = mean_influence.sum()
    names = ("", *model.spec.channels)
    attribution_by_target = {
        name: _last_values(row, num_shown, fill=0.0) for name, row in zip(names, mean_attributions, strict=True)
    }
    return Explanation(
        id=series.id,
        horizon=horizon_steps,
        ds=series.timestamps[-num_shown:],
        y=series.y[-num_shown:],
        half_life=_half_life(mean_influence, segment) if total > 0 else None,
        influence=_last_values(
            np.repeat(mean_influence / total if total > 0 else mean_influence, segment) / segment, num_shown
        ),
        layers=layers,
        attribution=attribution_by_target.pop(""),
        channels=attribution_by_target,
        forecast=forecast,
        baseline=baseline,
        integration_error=forecast - baseline - float(mean_attributions.sum()),
        notes=_explanation_notes(
            model,
            series,
            num_shown,
            finite=bool(np.isfinite(forecast)),
            is_clipped=bool((served.mean != unbounded.mean).any()),
        ),
        segment=segment,
    )


class _NetworkExplanation(NamedTuple):
    """The explanation of one network, for the last steps of a window."""

    layers: tuple[LayerTrace, ...]
    influence: Float64[np.ndarray, "segment"]
    attributions: Float64[np.ndarray, "row_target step"]
    forecast: float
    baseline: float


class _ExplainedWindow(NamedTuple):
    """The last steps of a window and the state before them, which is None if the window begins with them."""

    window: Window
    initial_state: RolloutState | None
    scale: Scale
    time: int


def _explain_network(network: Regressor, inputs: RolloutInput, *, horizon: int, steps: int) -> _NetworkExplanation:
    window = Window(*(None if array is None else torch.from_numpy(array) for array in inputs[:4]))  # type: ignore[arg-type]
    future_covariates = None if inputs.future_covariates is None else torch.from_numpy(inputs.future_covariates)
    with torch.no_grad():
        initial_state, remaining = start_rollout(network, window)
        skipped_steps = max(0, remaining.values.shape[1] - -(-steps // network.segment) * network.segment)
        state = (
            warm_up(network, remaining.slice_steps(slice(skipped_steps)), initial_state)
            if skipped_steps
            else initial_state
        )
        explained_window = remaining.slice_steps(slice(skipped_steps, None))
        layers = trace_layers(network, explained_window, state)
    influence = compute_influence(network, explained_window, state)
    explained = (
        _ExplainedWindow(explained_window, state, initial_state.scale, skipped_steps)
        if skipped_steps
        else _ExplainedWindow(window, None, initial_state.scale, -network.pre_context)
    )
    midpoints = (torch.arange(_INTEGRATION_POINTS) + 0.5) / _INTEGRATION_POINTS
    _, gradients = _forecast_with_gradients(
        network, explained, midpoints, horizon=horizon, future_covariates=future_covariates, with_gradients=True
    )
    endpoint_forecasts, _ = _forecast_with_gradients(
        network,
        explained,
        torch.tensor([0.0, 1.0]),
        horizon=horizon,
        future_covariates=future_covariates,
        with_gradients=False,
    )
    scaled, _ = _scaled_values(explained)
    assert gradients is not None
    if endpoint_forecasts.isfinite().all():
        # A running scale that is still zero after the first values has no derivative there; these steps contribute nothing.
        gradients = gradients.nan_to_num(nan=0.0)
    attributions = (gradients.reshape(_INTEGRATION_POINTS, *scaled.shape).mean(0) * scaled).double().numpy()
    return _NetworkExplanation(
        layers, influence.double().numpy(), attributions, float(endpoint_forecasts[1]), float(endpoint_forecasts[0])
    )


def _scaled_values(explained: _ExplainedWindow) -> tuple[Tensor, Bool[Tensor, "row_target step"]]:
    """Returns the scaled values (0 where missing) and the mask of the missing ones."""
    values = explained.window.targets
    missing = values.isnan()
    return explained.scale.apply(values, time=explained.time).masked_fill(missing, 0.0), missing


def _forecast_with_gradients(
    network: Regressor,
    explained: _ExplainedWindow,
    fractions: Tensor,
    *,
    horizon: int,
    future_covariates: Tensor | None,
    with_gradients: bool,
) -> tuple[Tensor, Tensor | None]:
    """Returns the mean forecast for each fraction of the scaled values, and its gradients with respect to these."""
    count = len(fractions)
    scaled_values, missing = _scaled_values(explained)
    leaf = (fractions[:, None, None] * scaled_values).flatten(0, 1).requires_grad_(with_gradients)
    scale = Scale(
        *(tensor.repeat(count, 1) if tensor.dim() == 2 else tensor.repeat(count) for tensor in explained.scale)
    )
    with torch.set_grad_enabled(with_gradients):
        values = scale.undo(leaf, time=explained.time).masked_fill(missing.repeat(count, 1), torch.nan)
        y, channels = unstack_targets(values, num_targets=network.num_targets)
        covariates, static = (
            None if tensor is None else tensor.repeat(count, *[1] * (tensor.dim() - 1))
            for tensor in (explained.window.covariates, explained.window.static)
        )
        window = Window(y, covariates, static, channels)
        if explained.initial_state is None:
            state, remaining = start_rollout(network, window, scale=scale)
            state = warm_up(network, remaining, state)
        else:
            state = warm_up(network, window, repeat_state(explained.initial_state, copies=count))
        repeated_covariates = None if future_covariates is None else future_covariates.expand(count, -1, -1)
        means = roll_out(network, state, horizon=horizon, future_covariates=repeated_covariates)[0].mean(1)
        return means.detach(), torch.autograd.grad(means.sum(), leaf)[0] if with_gradients else None


def _explain_layer(traces: Sequence[LayerTrace], kind: str, segment: int, steps: int) -> LayerDynamics:
    """Averages the traces of one layer over all members."""
    gates = {
        name: np.mean([trace.gates[name].double().numpy() for trace in traces], axis=0) for name in traces[0].gates
    }
    norm = np.mean([trace.norm.double().numpy() for trace in traces], axis=0)
    retention = gates.get(RETENTION_GATE.get(kind, ""))  # type: ignore[call-overload]
    mean_retention = float("nan") if retention is None else float(np.nanmean(retention))
    half_life = segment * np.log(0.5) / np.log(mean_retention) if 0 < mean_retention < 1 else None
    last_gates = {name: _last_values(np.repeat(values, segment), steps) for name, values in gates.items()}
    return LayerDynamics(last_gates, _last_values(np.repeat(norm, segment), steps), half_life)


def _half_life(influence: Float64[np.ndarray, "segment"], segment: int) -> float:
    """Returns the number of latest steps that account for half of the total, interpolated between steps."""
    cumulative = np.concatenate([[0.0], np.cumsum(influence[::-1])])
    return segment * float(np.interp(cumulative[-1] / 2, cumulative, np.arange(len(cumulative))))


def _last_values(values: Float64[np.ndarray, "_"], count: int, *, fill: float = np.nan) -> Float64[np.ndarray, "_"]:
    """Returns the last `count` values, filled at the front if there are fewer."""
    return np.concatenate([np.full(max(0, count - len(values)), fill), values])[-count:]


def _explanation_notes(
    model: FittedModel, series: Series, shown_steps: int, *, finite: bool, is_clipped: bool
) -> tuple[str, ...]:
    notes = []
    if is_clipped:
        notes.append("The forecast is clipped at a bound of the model; the explanation covers it before.")
    if model.blend_weights:
        notes.append("The forecast is a blend; the explanation covers its network only.")
    if model.other_networks:
        notes.append(f"Values are means over {len(model.networks)} members; the forecast itself is their median.")
    if shown_steps < len(series):
        notes.append(
            f"The last {shown_steps} of {len(series)} steps are explained; the effect of earlier steps is held constant."
        )
    if not finite:
        notes.append(
            "The network's forecast is not finite and seasonal naive replaces it, so there are no attributions."
        )
    return tuple(notes)
