"""Explains a forecast: the memory of the network, its gates, and the attribution of the forecast to the observed values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from forecaster.data.windows import Window
from forecaster.engines.engine import Engine, RolloutInput
from forecaster.explain.explained_input import TARGET, ExplainedInput
from forecaster.explain.faithfulness import Faithfulness, measure_faithfulness, predict_with_engine
from forecaster.explain.integrated_gradients import TOLERANCE, NetworkForecast, PathIntegral, integrate_gradients
from forecaster.explain.trace import RETENTION_GATE, LayerTrace, compute_influence, trace_layers
from forecaster.frequency.timestamps import Timestamps
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import start_rollout, warm_up
from forecaster.prediction.bounds import without_bounds
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Series
from forecaster.shapes import Float64

MAX_STEPS = 1024  # largest number of explained steps; earlier steps are read but not explained
SMALL_CHANGE = 0.01  # a smaller change of the forecast, relative to the largest replacement, counts as this large
METHODS = {
    "half_life": "the number of latest steps that account for half of the total influence on the final state. The influence of "
    "a step is the Frobenius norm of the derivative of that state with respect to the inputs of the recurrence at the step. If "
    "it decays exponentially, this is the half-life",
    "gates": "means over the units of a layer, at each step; the half-life of a layer is what the mean of its update (GRU) or "
    "forget gate (LSTM) alone implies, without the recurrent weights. This interpretation of gates is ours",
    "attribution": "integrated gradients (Sundararajan, Taly and Yan 2017) of the mean forecast over the horizon, through the "
    "rollout that serves, to the given input from next to a reference (a fiftieth of each deviation is left). In the reference, "
    "values of y and of channels are the mean of those that are explained, numeric covariates their mean in the training data, "
    "categories none, and calendar features 0. Paths have two straight legs, a random half of the values on each; the mean over "
    "eight paths is reported. The scale is measured on every point of a path; static columns are held constant. The attributions "
    "sum to forecast minus baseline, up to `gap`: points are added until that is at most 1 %",
    "faithfulness": "area over the perturbation curve for regression (AOPCR; Ozyegen, Ilic and Cevik 2022, after Samek et al. "
    "2017): the change of the served forecast when the values with the largest contributions are replaced by the reference, mean "
    "over shares of 5 % to 50 %, and over the values that raise and those that lower the forecast. The same for other rankings: "
    "gradient times the difference from the reference, the occlusion of single values, and random orders",
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
        forecast: Mean forecast of the network over the horizon, the median of all members; for a blend, of the network alone.
        baseline: The same forecast next to the reference, in which the explained values of y and of each channel are their mean,
            and covariates are at the mean of the training data or have no category. A fiftieth of each deviation from it is
            left, because the forecast of an exactly constant history may be another one.
        integration_error: Forecast minus baseline minus the sum of attributions, due to numerical integration.
        notes: Remarks for the reader.
        segment: Number of time points that one step of the recurrence reads. Influence, gates and norm have one value per
            segment, the last of which ends with the history; the influence is shared equally by the steps of its segment.
        covariates: Contributions of the covariates by name, at the steps and then at those of the horizon. Calendar features are
            named `calendar hour`.
        future_ds: Timestamps of the horizon.
        reference: The value of y in the reference; NaN if none is observed.
        completeness_error: `integration_error` relative to forecast minus baseline.
        integration_points: Number of gradients that were evaluated.
        faithfulness: How faithful the attributions are; None if that was not measured, or nothing can be replaced.
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
    covariates: Mapping[str, Float64[np.ndarray, "step_and_ahead"]] = field(default_factory=dict)
    future_ds: Timestamps | None = None
    reference: float = float("nan")
    completeness_error: float = 0.0
    integration_points: int = 0
    faithfulness: Faithfulness | None = None


def explain(
    model: FittedModel, series: Series, *, horizon: int | None = None, steps: int = 256, faithfulness: bool = False
) -> Explanation:
    """Explains the forecast of one series; raises the same errors as the forecast itself.

    Args:
        model: The fitted model.
        series: The history.
        horizon: Steps ahead; default: the model's horizon.
        steps: Number of latest steps to explain, at most MAX_STEPS.
        faithfulness: Whether to measure how faithful the attributions are, which takes some hundreds of forecasts.
    """
    assert 1 <= steps <= MAX_STEPS
    predictor, horizon_steps = Predictor(model), horizon or model.spec.horizon
    served = predictor.forecast(series, horizon_steps)  # validates the series
    unbounded = Predictor(without_bounds(model), engine=predictor.engine).forecast(series, horizon_steps)
    inputs = predictor.build_input(series, horizon_steps)
    networks = [network.eval() for network in model.networks]
    traces = [_trace_network(network, inputs, steps=steps) for network in networks]
    num_shown = min(steps, len(series), inputs.values.shape[1])
    segment, cell_kind = model.spec.segment, model.spec.network.cell
    layers = [
        _explain_layer([trace.layers[index] for trace in traces], cell_kind, segment, num_shown)
        for index in range(len(traces[0].layers))
    ]
    mean_influence = np.mean([trace.influence for trace in traces], axis=0)
    total = mean_influence.sum()
    attributed = _attribute_forecast(
        model, inputs, predictor.engine, steps=num_shown, horizon=horizon_steps, with_faithfulness=faithfulness
    )
    integral, by_column = attributed.integral, dict(attributed.by_column)
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
        attribution=by_column.pop(TARGET),
        channels={name: by_column.pop(name) for name in model.spec.channels},
        forecast=integral.end,
        baseline=integral.start,
        integration_error=integral.gap,
        notes=_explanation_notes(
            model,
            series,
            num_shown,
            attributed,
            is_clipped=bool((served.mean != unbounded.mean).any()),
        ),
        segment=segment,
        covariates=by_column,
        future_ds=served.ds,
        reference=attributed.reference,
        completeness_error=attributed.completeness_error,
        integration_points=integral.points,
        faithfulness=attributed.faithfulness,
    )


class _Attributions(NamedTuple):
    """The attributions of one forecast.

    Attributes:
        integral: The integral that they are.
        by_column: Their sum by column and step.
        reference: The value of y in the reference.
        completeness_error: As of `Explanation`.
        faithfulness: As of `Explanation`.
    """

    integral: PathIntegral
    by_column: Mapping[str, Float64[np.ndarray, "_"]]
    reference: float
    completeness_error: float
    faithfulness: Faithfulness | None


def _attribute_forecast(
    model: FittedModel, inputs: RolloutInput, engine: Engine, *, steps: int, horizon: int, with_faithfulness: bool
) -> _Attributions:
    """Attributes the mean forecast to the last steps of an input of one row."""
    explained = ExplainedInput.from_input(
        inputs, steps=steps, horizon=horizon, channels=tuple(model.spec.channels), encoding=model.encoding
    )
    floor = SMALL_CHANGE * float(np.nan_to_num(np.abs(explained.entries - explained.reference)[:steps]).max())
    forecast = NetworkForecast(model.networks, explained)
    integral = integrate_gradients(forecast, explained, floor=floor)
    by_column = {
        column.name: np.bincount(column.steps, weights=integral.contributions[column.entries])
        for column in explained.columns
    }
    faithfulness = None
    if with_faithfulness and np.isfinite(integral.end):
        faithfulness = measure_faithfulness(
            explained,
            forecast.predict if forecast.resumes else predict_with_engine(engine, explained),
            contributions=integral.contributions,
            final_gradient=integral.final_gradient,
        )
    change = max(abs(integral.end - integral.start), floor)
    return _Attributions(
        integral,
        by_column,
        float(np.fmax.reduce(explained.reference[:steps])),
        abs(integral.gap) / change if change > 0 else 0.0,
        faithfulness,
    )


class _NetworkTrace(NamedTuple):
    """The layers of one network and the influence of each segment, for the last steps of a window."""

    layers: tuple[LayerTrace, ...]
    influence: Float64[np.ndarray, "segment"]


def _trace_network(network: Regressor, inputs: RolloutInput, *, steps: int) -> _NetworkTrace:
    window = Window(*(None if array is None else torch.from_numpy(array) for array in inputs[:4]))  # type: ignore[arg-type]
    with torch.no_grad():
        initial_state, remaining = start_rollout(network, window)
        skipped_steps = max(0, remaining.values.shape[1] - -(-steps // network.segment) * network.segment)
        state = (
            warm_up(network, remaining.slice_steps(slice(skipped_steps)), initial_state)
            if skipped_steps
            else initial_state
        )
        traced_window = remaining.slice_steps(slice(skipped_steps, None))
        layers = trace_layers(network, traced_window, state)
    return _NetworkTrace(layers, compute_influence(network, traced_window, state).double().numpy())


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
    model: FittedModel, series: Series, shown_steps: int, attributed: _Attributions, *, is_clipped: bool
) -> tuple[str, ...]:
    notes, integral = [], attributed.integral
    if is_clipped:
        notes.append("The forecast is clipped at a bound of the model; the explanation covers it before.")
    if model.blend_weights:
        notes.append("The forecast is a blend; the explanation covers its network only.")
    if model.other_networks:
        notes.append(f"Influence, gates and norms are means over {len(model.networks)} members.")
    if shown_steps < len(series):
        notes.append(
            f"The last {shown_steps} of {len(series)} steps are explained; the effect of earlier steps is held constant."
        )
    if attributed.completeness_error > TOLERANCE:
        notes.append(
            f"The attributions miss forecast minus baseline by {integral.gap:.3g}, which is more than {TOLERANCE:.0%}, with "
            f"{integral.points} points of the path."
        )
    if not np.isfinite(integral.end):
        notes.append(
            "The network's forecast is not finite and seasonal naive replaces it, so there are no attributions."
        )
    return tuple(notes)
