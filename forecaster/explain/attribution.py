"""Why a forecast is as it is: how far back the network remembers, what its gates did, and which values the forecast rests on."""

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
from forecaster.frequency import Timestamps
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, repeat_state, roll_out, start_rollout, warm_up
from forecaster.model.scaling import Scale
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Series
from forecaster.shapes import Bool, Float64

MAX_STEPS = 1024  # that are explained; what lies before them is read all the same
_INTEGRATION_POINTS = 32  # of the integral
METHODS = {
    "half_life": "the number of latest steps to which the state after the last owes half of all influence: influence of a step "
    "is the Frobenius norm of the derivative of that state by what the recurrence reads there. Where it decays by halves, that "
    "is the half-life",
    "gates": "means over the units of a layer, at each step; the half-life of a layer is what the mean of its update (GRU) or "
    "forget gate (LSTM) would give alone, without the recurrent weights. This reading of gates is ours",
    "attribution": "integrated gradients (Sundararajan, Taly and Yan 2017, equation 1) of the mean forecast over the horizon, "
    "from a history that the network's scaling turns to zeros to the one it was given, by the midpoint rule. Scale, covariates, "
    "calendar and static columns are held; the attributions add up to forecast less baseline, but for `gap`",
}


class LayerDynamics(NamedTuple):
    """What one layer did, as means over members.

    Attributes:
        gates: By name, the mean over its units at each step; NaN where it read nothing.
        norm: Of its hidden state; likewise.
        half_life: In steps of the series, of its keeping gate alone; None of an Elman layer, or beyond all bounds.
    """

    gates: Mapping[str, Float64[np.ndarray, "step"]]
    norm: Float64[np.ndarray, "step"]
    half_life: float | None


@dataclass(frozen=True, eq=False)
class Explanation:
    """The last steps of a history, and what they mean for its forecast.

    Attributes:
        id: The series' id.
        horizon: Steps ahead that `forecast` is the mean of.
        ds: The stamps of the steps.
        y: Their values.
        half_life: Of the network's memory, in steps; None where nothing moves its state.
        influence: Of each step on the state after the last, as shares that add to 1; NaN where the recurrence read nothing.
        layers: The layers, lowest first.
        attribution: What each value of y adds to the forecast, in its units; 0 where none was observed.
        channels: By name, the same of the channels.
        forecast: The network's mean forecast over the horizon: of several members their mean, of a blend the network alone.
        baseline: The same from a history that scaling turns to zeros.
        gap: What the attributions fall short of forecast less baseline: the error of the integral.
        notes: What a reader should know of it.
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


def explain(model: FittedModel, series: Series, *, horizon: int | None = None, steps: int = 256) -> Explanation:
    """The explanation of the forecast of one series; raises what stands in the way of that forecast.

    Args:
        forecaster: Whose forecast.
        series: The history.
        horizon: Steps ahead; the forecaster's own, if not given.
        steps: How many of the latest steps to explain, MOST_STEPS at the most.
    """
    assert 1 <= steps <= MAX_STEPS
    predictor, ahead = Predictor(model), horizon or model.spec.horizon
    predictor.forecast(series, ahead)  # raises what is wrong
    known = predictor.build_input(series, ahead)
    each = [_explain_network(network.eval(), known, horizon=ahead, steps=steps) for network in model.networks]
    shown = min(steps, len(series), known.values.shape[1])
    mean = np.mean([one.attributions for one in each], axis=0)
    segment, kind = model.spec.segment, model.spec.network.cell
    layers = [_explain_layer([one.layers[n] for one in each], kind, segment, shown) for n in range(len(each[0].layers))]
    forecast, baseline = (
        float(np.mean(told)) for told in zip(*((one.forecast, one.baseline) for one in each), strict=True)
    )
    felt = np.mean([one.influence for one in each], axis=0)
    total = felt.sum()
    names = ("", *model.spec.channels)
    tracks = {name: _last_values(row, shown, fill=0.0) for name, row in zip(names, mean, strict=True)}
    return Explanation(
        id=series.id,
        horizon=ahead,
        ds=series.timestamps[-shown:],
        y=series.y[-shown:],
        half_life=_half_life(felt, segment) if total > 0 else None,
        influence=_last_values(np.repeat(felt / total if total > 0 else felt, segment) / segment, shown),
        layers=layers,
        attribution=tracks.pop(""),
        channels=tracks,
        forecast=forecast,
        baseline=baseline,
        integration_error=forecast - baseline - float(mean.sum()),
        notes=_explanation_notes(model, series, shown, finite=bool(np.isfinite(forecast))),
    )


class _NetworkExplanation(NamedTuple):
    """What one network made of the last steps."""

    layers: tuple[LayerTrace, ...]
    influence: Float64[np.ndarray, "segment"]
    attributions: Float64[np.ndarray, "track step"]
    forecast: float
    baseline: float


class _ExplainedWindow(NamedTuple):
    """The last steps of a window, and the memory before them; None where the window begins with them."""

    window: Window
    initial_state: RolloutState | None
    scale: Scale
    time: int


def _explain_network(network: Regressor, inputs: RolloutInput, *, horizon: int, steps: int) -> _NetworkExplanation:
    window = Window(*(None if one is None else torch.from_numpy(one) for one in inputs[:4]))  # type: ignore[arg-type]
    ahead = None if inputs.future_covariates is None else torch.from_numpy(inputs.future_covariates)
    with torch.no_grad():
        memory, rest = start_rollout(network, window)
        cut = max(0, rest.values.shape[1] - -(-steps // network.segment) * network.segment)
        reached = warm_up(network, rest.slice_steps(slice(cut)), memory) if cut else memory
        last = rest.slice_steps(slice(cut, None))
        layers = trace_layers(network, last, reached)
    felt = compute_influence(network, last, reached)
    part = (
        _ExplainedWindow(last, reached, memory.scale, cut)
        if cut
        else _ExplainedWindow(window, None, memory.scale, -network.pre_context)
    )
    middles = (torch.arange(_INTEGRATION_POINTS) + 0.5) / _INTEGRATION_POINTS
    _, slopes = _forecast_with_gradients(
        network, part, middles, horizon=horizon, future_covariates=ahead, with_gradients=True
    )
    ends, _ = _forecast_with_gradients(
        network, part, torch.tensor([0.0, 1.0]), horizon=horizon, future_covariates=ahead, with_gradients=False
    )
    scaled, _ = _scaled_values(part)
    assert slopes is not None
    attributions = (slopes.reshape(_INTEGRATION_POINTS, *scaled.shape).mean(0) * scaled).double().numpy()
    return _NetworkExplanation(layers, felt.double().numpy(), attributions, float(ends[1]), float(ends[0]))


def _scaled_values(explained: _ExplainedWindow) -> tuple[Tensor, Bool[Tensor, "track step"]]:
    """The values as the network meets them, 0 where missing; and where they are."""
    tracks = explained.window.targets
    missing = tracks.isnan()
    return explained.scale.apply(tracks, time=explained.time).masked_fill(missing, 0.0), missing


def _forecast_with_gradients(
    network: Regressor,
    explained: _ExplainedWindow,
    fractions: Tensor,
    *,
    horizon: int,
    future_covariates: Tensor | None,
    with_gradients: bool,
) -> tuple[Tensor, Tensor | None]:
    """The mean forecast from each share of the scaled values, all at once; and its slopes by them."""
    count = len(fractions)
    scaled, missing = _scaled_values(explained)
    leaf = (fractions[:, None, None] * scaled).flatten(0, 1).requires_grad_(with_gradients)
    scale = Scale(*(one.repeat(count, 1) if one.dim() == 2 else one.repeat(count) for one in explained.scale))
    with torch.set_grad_enabled(with_gradients):
        values = scale.undo(leaf, time=explained.time).masked_fill(missing.repeat(count, 1), torch.nan)
        y, channels = unstack_targets(values, num_targets=network.num_targets)
        covariates, static = (
            None if one is None else one.repeat(count, *[1] * (one.dim() - 1))
            for one in (explained.window.covariates, explained.window.static)
        )
        window = Window(y, covariates, static, channels)
        if explained.initial_state is None:
            memory, rest = start_rollout(network, window, scale=scale)
            memory = warm_up(network, rest, memory)
        else:
            memory = warm_up(network, window, repeat_state(explained.initial_state, copies=count))
        known = None if future_covariates is None else future_covariates.expand(count, -1, -1)
        means = roll_out(network, memory, horizon=horizon, future_covariates=known)[0].mean(1)
        return means.detach(), torch.autograd.grad(means.sum(), leaf)[0] if with_gradients else None


def _explain_layer(traces: Sequence[LayerTrace], kind: str, segment: int, steps: int) -> LayerDynamics:
    """One layer of all members."""
    gates = {name: np.mean([one.gates[name].double().numpy() for one in traces], axis=0) for name in traces[0].gates}
    norm = np.mean([one.norm.double().numpy() for one in traces], axis=0)
    keeps = gates.get(RETENTION_GATE.get(kind, ""))  # type: ignore[call-overload]
    share = float("nan") if keeps is None else float(np.nanmean(keeps))
    half_life = segment * np.log(0.5) / np.log(share) if 0 < share < 1 else None
    told = {name: _last_values(np.repeat(values, segment), steps) for name, values in gates.items()}
    return LayerDynamics(told, _last_values(np.repeat(norm, segment), steps), half_life)


def _half_life(influence: Float64[np.ndarray, "segment"], segment: int) -> float:
    """How many of the latest steps make half of the whole; between two of them in proportion."""
    back = np.concatenate([[0.0], np.cumsum(influence[::-1])])
    return segment * float(np.interp(back[-1] / 2, back, np.arange(len(back))))


def _last_values(values: Float64[np.ndarray, "_"], count: int, *, fill: float = np.nan) -> Float64[np.ndarray, "_"]:
    """The last of them, after as many empty ones as there are too few."""
    return np.concatenate([np.full(max(0, count - len(values)), fill), values])[-count:]


def _explanation_notes(model: FittedModel, series: Series, shown_steps: int, *, finite: bool) -> tuple[str, ...]:
    notes = []
    if model.blend_weights:
        notes.append("The forecast is a blend; this explains its network alone.")
    if model.other_networks:
        notes.append(f"Means over {len(model.networks)} members; the forecast itself is their median.")
    if shown_steps < len(series):
        notes.append(
            f"The last {shown_steps} of {len(series)} steps are explained; what was read before them is held as it is."
        )
    if not finite:
        notes.append(
            "The network's forecast leaves the finite numbers, and seasonal naive stands in: nothing is attributed."
        )
    return tuple(notes)
