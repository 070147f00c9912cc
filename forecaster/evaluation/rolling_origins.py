"""Forecasts of a predictor at every rolling origin of many series, without one call per origin.

A network that reads whole histories reads each series once: the state after a step serves the origin there. One that reads
windows shares nothing between origins, but all windows are rows of few batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import gcd
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.data.batching import replace_non_finite
from forecaster.data.split import rolling_origins
from forecaster.data.windows import PanelTensor
from forecaster.engines.engine import RolloutInput, ensemble_median
from forecaster.engines.kernel import KernelEngine
from forecaster.errors import HorizonOutOfRange
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, roll_out, select_rows, warm_up
from forecaster.model.rollout_origins import MAX_STATES_AT_ONCE, states_at_origins
from forecaster.model.scaling import settle_scale
from forecaster.prediction.engine_choice import find_kernel_members
from forecaster.prediction.length_batches import MAX_BATCH_ROWS, batch_by_length
from forecaster.prediction.predictor import Predictor
from forecaster.series import Series
from forecaster.series.history_summary import constant_steps, find_constant
from forecaster.shapes import Bool, Float, Float64, Int

ForecastArray = Float64[np.ndarray, "series window horizon"]


def forecast_all_origins(
    predictor: Predictor,
    series: Sequence[Series],
    *,
    horizon: int,
    windows: int,
    stride: int | None = None,
    on_forecasts: Callable[[int], None] = lambda _: None,
) -> ForecastArray:
    """Returns the point forecasts at the last `windows` origins of every series, equal to `predictor.forecast_batch` there.

    Args:
        predictor: The predictor.
        series: Whole series; what lies after an origin has no influence on its forecast.
        horizon: Steps ahead.
        windows: Origins of each series, the last of them a horizon before its end.
        stride: Steps between them; defaults to the horizon.
        on_forecasts: Called with the number of finished forecasts, after each batch of series.
    Returns:
        NaN where there is no forecast, for example because the history is too short there.
    Raises:
        HorizonOutOfRange: `horizon` is below one.
    """
    if horizon < 1:
        raise HorizonOutOfRange(
            f"Expected a horizon of at least 1 step; found {horizon}. Use a positive horizon.", where="horizon"
        )
    spacing = stride or horizon
    offsets = np.array(rolling_origins(windows=windows, horizon=horizon, stride=spacing), dtype=np.int64)
    cuts = np.array([len(item) for item in series], dtype=np.int64)[:, None] - offsets
    valid_rows = [
        _valid_origins(predictor, item, item_cuts, horizon) for item, item_cuts in zip(series, cuts, strict=True)
    ]
    has_forecast = np.array(valid_rows, dtype=bool).reshape(cuts.shape)
    forecasts = np.full((*cuts.shape, horizon), np.nan)
    kernel_members: Sequence[KernelEngine | None] = find_kernel_members(predictor.engine)
    kernel_members = kernel_members or [None] * len(predictor.networks)
    rows, num_forecasts = np.flatnonzero(has_forecast.any(axis=1)), 0
    for batch_rows in batch_by_length([predictor.network.window_length(len(series[int(row)])) for row in rows]):
        group = rows[batch_rows]
        selection = (group, slice(int(has_forecast[group].any(axis=0).argmax()), None))
        group_series = [series[int(row)] for row in group]
        member_forecasts = [
            _forecast_member(
                _OriginBatch(
                    predictor,
                    network,
                    kernel_engine,
                    group_series,
                    cuts[selection],
                    has_forecast[selection],
                    horizon,
                    spacing,
                )
            )
            for network, kernel_engine in zip(predictor.networks, kernel_members, strict=True)
        ]
        consensus = member_forecasts[0] if len(member_forecasts) == 1 else ensemble_median(np.stack(member_forecasts))
        forecasts[selection] = _repair_forecasts(
            consensus, group_series, cuts[selection], has_forecast[selection], season=predictor.fitted_model.season
        )
        num_forecasts += len(group) * windows
        on_forecasts(num_forecasts)
    if predictor.fitted_model.blend_weights:
        histories = [series[row].y[: cuts[row, window]] for row, window in np.argwhere(has_forecast)]
        forecasts[has_forecast] = predictor.blend_means(forecasts[has_forecast], histories).forecasts
    _replace_constants(forecasts, series, cuts, has_forecast)
    bounds = predictor.bounds
    return bounds.at_origins(series, cuts).clip(forecasts) if bounds.is_active else forecasts


def _replace_constants(
    forecasts: ForecastArray,
    series: Sequence[Series],
    history_lengths: Int[np.ndarray, "series window"],
    has_forecast: Bool[np.ndarray, "series window"],
) -> None:
    """Replaces the forecasts of constant histories in place, as the predictor does."""
    constant_lengths = np.array([constant_steps(item.y) for item in series], dtype=np.int64).reshape(-1, 1)
    for row, window in np.argwhere(has_forecast & (history_lengths <= constant_lengths)):
        constant = find_constant(series[row].y[: history_lengths[row, window]])
        if constant is not None:
            forecasts[row, window] = constant


class _OriginBatch(NamedTuple):
    """The origins of some series in one panel tensor; each series has a forecast somewhere, and so has the oldest origin.

    Attributes:
        predictor: The predictor.
        network: One of its members.
        kernel_engine: The same member in the compiled kernel; None if the predictor has another engine.
        series: Whole series.
        history_lengths: Observed steps at each origin, ascending.
        has_forecast: Where there is a forecast.
        horizon: Steps ahead.
        stride: Steps between origins.
    """

    predictor: Predictor
    network: Regressor
    kernel_engine: KernelEngine | None
    series: Sequence[Series]
    history_lengths: Int[np.ndarray, "series window"]
    has_forecast: Bool[np.ndarray, "series window"]
    horizon: int
    stride: int


class _OriginRows(NamedTuple):
    """Forecasts, and the origins they start from."""

    forecasts: Float64[np.ndarray, "row horizon"]
    series_index: Int[np.ndarray, "row"]
    window_index: Int[np.ndarray, "row"]


def _forecast_member(batch: _OriginBatch) -> ForecastArray:
    predictor, network = batch.predictor, batch.network
    steps, max_length = predictor.round_up_horizon(batch.horizon), max(map(len, batch.series))
    forecasts = np.full((*batch.history_lengths.shape, batch.horizon), np.nan)
    panel_tensor = PanelTensor.from_series(
        batch.series,
        context=network.window_length(max_length) + network.segment,
        horizon=steps,
        encoding=predictor.fitted_model.encoding,
        channels=predictor.fitted_model.spec.channels,
        future_steps=max(0, steps - batch.horizon),
    ).to(predictor.device)
    forecast_rows = _forecast_from_windows if network.reads == "window" else _forecast_from_histories
    with torch.inference_mode():
        for rows in forecast_rows(batch, panel_tensor):
            forecasts[rows.series_index, rows.window_index] = rows.forecasts
    return forecasts


def _roll_out_states(
    batch: _OriginBatch,
    panel_tensor: PanelTensor,
    rollout_state: RolloutState,
    series_index: Int[np.ndarray, "row"],
    window_index: Int[np.ndarray, "row"],
) -> _OriginRows:
    """Rolls out the states at their origins."""
    future_covariates = _future_covariates(
        panel_tensor,
        series_index,
        batch.history_lengths[series_index, window_index],
        batch.predictor.round_up_horizon(batch.horizon),
    )
    return _OriginRows(
        roll_out(batch.network, rollout_state, horizon=batch.horizon, future_covariates=future_covariates)[0]
        .cpu()
        .numpy(),
        series_index,
        window_index,
    )


def _repair_forecasts(
    forecasts: ForecastArray,
    series: Sequence[Series],
    history_lengths: Int[np.ndarray, "series window"],
    has_forecast: Bool[np.ndarray, "series window"],
    *,
    season: int,
) -> ForecastArray:
    for row, window in np.argwhere(has_forecast & ~np.isfinite(forecasts).all(axis=2)):
        forecasts[row, window] = replace_non_finite(
            forecasts[row, window], series[row].y[: history_lengths[row, window]], season=season
        )
    return forecasts


def _forecast_from_windows(
    batch: _OriginBatch, panel_tensor: PanelTensor, mask: Bool[np.ndarray, "series window"] | None = None
) -> Iterator[_OriginRows]:
    """Forecasts every origin from its own window."""
    network = batch.network
    series, window = np.nonzero(batch.has_forecast if mask is None else mask)
    lengths = batch.history_lengths[series, window]
    for batch_rows in batch_by_length([network.window_length(int(length)) for length in lengths]):
        rows = torch.from_numpy(series[batch_rows]).to(panel_tensor.values.device)
        positions = panel_tensor.starts[rows] + torch.from_numpy(lengths[batch_rows]).to(rows.device)
        context = network.window_length(int(lengths[batch_rows].max()))
        extracted_window = panel_tensor.extract_examples(
            positions, context=context, horizon=0, series_indices=rows
        ).window
        if batch.kernel_engine is not None:
            yield _OriginRows(
                batch.kernel_engine.roll_out(RolloutInput(extracted_window.values.numpy()), horizon=batch.horizon),
                series[batch_rows],
                window[batch_rows],
            )
        else:
            yield _roll_out_states(
                batch, panel_tensor, warm_up(network, extracted_window), series[batch_rows], window[batch_rows]
            )


def _forecast_from_histories(batch: _OriginBatch, panel_tensor: PanelTensor) -> Iterator[_OriginRows]:
    """Forecasts every origin from the state that one pass over its series reached there.

    Origins before the scale has settled are forecast from windows of their own. The recurrence reads whole segments, and the
    last of them ends at the origin. So only origins a multiple of the segment apart share a pass; as many parallel passes are
    made as this takes.
    """
    network, (_, windows) = batch.network, batch.history_lengths.shape
    shared = batch.has_forecast & _is_scale_settled(batch, panel_tensor)
    if (batch.has_forecast & ~shared).any():
        yield from _forecast_from_windows(batch, panel_tensor, batch.has_forecast & ~shared)
    phases = min(network.segment // gcd(network.segment, batch.stride), windows)
    state_stride, count = phases * batch.stride, -(-windows // phases)
    # By phase: the window index of each state of a pass, oldest first; negative where there is no window.
    window_numbers = windows - 1 - np.arange(phases)[:, None] - phases * np.arange(count - 1, -1, -1)
    row, phase = np.nonzero(
        np.stack([shared[:, phase_windows[phase_windows >= 0]].any(axis=1) for phase_windows in window_numbers], axis=1)
    )
    ends = batch.history_lengths[row, window_numbers[phase, -1]]
    if not len(row):
        return
    rows = torch.from_numpy(row).to(panel_tensor.values.device)
    positions = panel_tensor.starts[rows] + torch.from_numpy(ends).to(rows.device)
    width = max(
        network.window_length(int(ends.max())), network.pre_context + (count - 1) * state_stride + network.segment
    )
    window = panel_tensor.extract_examples(positions, context=width, horizon=0, series_indices=rows).window
    if batch.kernel_engine is not None and count <= MAX_STATES_AT_ONCE:
        at_once = max(1, MAX_STATES_AT_ONCE // count)
        for first in range(0, len(row), at_once):
            chunk = slice(first, first + at_once)
            series, window_number = row[chunk].repeat(count), window_numbers[phase[chunk]].ravel()
            selected = np.flatnonzero((window_number >= 0) & shared[series, window_number])
            states = batch.kernel_engine.states_at_origins(
                window.values[chunk].numpy(), stride=state_stride, count=count
            ).select_rows(selected)
            yield _OriginRows(
                batch.kernel_engine.forecast_from(states, horizon=batch.horizon),
                series[selected],
                window_number[selected],
            )
        return
    num_done = 0
    for rollout_state in states_at_origins(network, window, stride=state_stride, count=count):
        span = len(rollout_state.output) // len(row)
        series, window_number = np.tile(row, span), window_numbers[phase, num_done : num_done + span].T.flatten()
        selected = np.flatnonzero((window_number >= 0) & shared[series, window_number])
        for first in range(0, len(selected), MAX_BATCH_ROWS):
            batch_rows = selected[first : first + MAX_BATCH_ROWS]
            selected_states = select_rows(rollout_state, torch.from_numpy(batch_rows).to(rows.device))
            yield _roll_out_states(batch, panel_tensor, selected_states, series[batch_rows], window_number[batch_rows])
        num_done += span


def _is_scale_settled(batch: _OriginBatch, panel_tensor: PanelTensor) -> Bool[np.ndarray, "series window"]:
    """Returns at which origins the scale of a series is final; a channel without observations so far needs none."""
    network, max_length = batch.network, int(batch.history_lengths.max())
    targets = panel_tensor.extract_examples(
        panel_tensor.starts + max_length, context=max_length, horizon=0
    ).window.targets
    settled_scale = settle_scale(
        targets, network.scaling, initial_steps=network.context, season=network.season, transform=network.transform
    )
    first_observed, settled_at = (
        part.reshape(-1, network.num_targets, 1).cpu().numpy()
        for part in (settled_scale.first_observed, settled_scale.settled_at)
    )
    cuts = batch.history_lengths[:, None]
    return np.asarray(((cuts <= first_observed) | (cuts >= settled_at)).all(axis=1))


def _future_covariates(
    panel_tensor: PanelTensor, series_index: Int[np.ndarray, "row"], history_lengths: Int[np.ndarray, "row"], steps: int
) -> Float[Tensor, "row step covariate"] | None:
    """Returns the covariates of the steps after each origin."""
    if panel_tensor.covariates is None:
        return None
    first = panel_tensor.starts[torch.from_numpy(series_index).to(panel_tensor.starts.device)] + torch.from_numpy(
        history_lengths
    ).to(panel_tensor.starts.device)
    return panel_tensor.covariates[first[:, None] + torch.arange(steps, device=first.device)]


def _valid_origins(
    predictor: Predictor, series: Series, history_lengths: Int[np.ndarray, "window"], horizon: int
) -> Bool[np.ndarray, "window"]:
    """Returns at which origins of a series the predictor accepts the history."""
    spec, numeric = predictor.fitted_model.spec, predictor.fitted_model.encoding.numeric
    long_enough = history_lengths >= spec.min_steps
    if not long_enough.any():
        return long_enough
    is_valid = predictor.find_error(series.take_first(int(history_lengths.max())), horizon) is None
    if is_valid and all(np.isfinite(series.covariates[name]).all() for name in numeric):
        num_observed = np.concatenate([[0], np.cumsum(~np.isnan(series.y))])
        return np.asarray(
            long_enough
            & (num_observed[history_lengths.clip(0)] > num_observed[(history_lengths - spec.context).clip(0)])
        )
    # Some step is invalid: every origin is validated on its own.
    return np.array(
        [
            bool(enough) and predictor.find_error(series.take_first(int(length)), horizon) is None
            for length, enough in zip(history_lengths, long_enough, strict=True)
        ]
    )
