"""What a forecaster says at every rolling origin of many series, without asking it at each.

A network that reads whole histories reads each series once: the state after a step serves the origin there. One that reads
windows shares nothing between origins, but all windows are rows of few batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.data.batching import replace_non_finite
from forecaster.data.split import rolling_origins
from forecaster.data.windows import PanelTensor
from forecaster.engines.engine import ensemble_median
from forecaster.engines.kernel_torch import TorchKernelEngine
from forecaster.errors import HorizonOutOfRange
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, roll_out, select_rows, warm_up
from forecaster.model.rollout_origins import MAX_STATES_AT_ONCE, states_at_origins
from forecaster.model.scaling import settle_scale
from forecaster.prediction.predictor import MAX_BATCH_ROWS, Predictor, batch_by_length
from forecaster.series import Series
from forecaster.shapes import Bool, Float, Float64, Int

ForecastArray = Float64[np.ndarray, "series window horizon"]


def forecast_all_origins(
    predictor: Predictor, series: Sequence[Series], *, horizon: int, windows: int, stride: int | None = None
) -> ForecastArray:
    """The point forecasts at the last `windows` origins of every series, as `predictor.forecast_batch` gives them there.

    Args:
        predictor: Whom to ask.
        series: Whole series; what lies after an origin has no part in its forecast.
        horizon: Steps ahead.
        windows: Origins of each series, the last of them a horizon before its end.
        stride: Steps between them; a horizon, if not given.
    Returns:
        NaN where there is no forecast: the history is too short there, say.
    Raises:
        HorizonOutOfRange: `horizon` is below one.
    """
    if horizon < 1:
        raise HorizonOutOfRange(f"Expected a horizon of at least 1 step; found {horizon}.", where="horizon")
    apart = stride or horizon
    lefts = np.array(rolling_origins(windows=windows, horizon=horizon, stride=apart), dtype=np.int64)
    cuts = np.array([len(one) for one in series], dtype=np.int64)[:, None] - lefts
    faultless = [_valid_origins(predictor, one, at, horizon) for one, at in zip(series, cuts, strict=True)]
    answered = np.array(faultless, dtype=bool).reshape(cuts.shape)
    found = np.full((*cuts.shape, horizon), np.nan)
    rows = np.flatnonzero(answered.any(axis=1))
    for some in batch_by_length([predictor.network.window_length(len(series[int(row)])) for row in rows]):
        group = rows[some]
        at = (group, slice(int(answered[group].any(axis=0).argmax()), None))
        whole = [series[int(row)] for row in group]
        told = [
            _forecast_member(_OriginBatch(predictor, network, compiled, whole, cuts[at], answered[at], horizon, apart))
            for network, compiled in zip(predictor.networks, predictor.kernel_members, strict=True)
        ]
        agreed = told[0] if len(told) == 1 else ensemble_median(np.stack(told))
        found[at] = _repair_forecasts(agreed, whole, cuts[at], answered[at], season=predictor.fitted_model.season)
    if predictor.fitted_model.blend_weights:
        known = [series[row].y[: cuts[row, window]] for row, window in np.argwhere(answered)]
        found[answered] = predictor.blend_means(found[answered], known).forecasts
    return found


class _OriginBatch(NamedTuple):
    """The origins of some series that are laid on one tape; each has an answer somewhere, and so has the oldest origin.

    Attributes:
        predictor: Who is asked.
        network: Which of its members.
        fused: The same as the compiled kernel runs it; None where that does not know it.
        series: Whole series.
        cuts: How many steps are known at each origin, in rising order.
        answered: Where there is a forecast.
        horizon: Steps ahead.
        stride: Steps between origins.
    """

    predictor: Predictor
    network: Regressor
    kernel_engine: TorchKernelEngine | None
    series: Sequence[Series]
    history_lengths: Int[np.ndarray, "series window"]
    has_forecast: Bool[np.ndarray, "series window"]
    horizon: int
    stride: int


class _OriginRows(NamedTuple):
    """Forecasts, and the origins they are of."""

    forecasts: Float64[Tensor, "row horizon"]
    series_index: Int[np.ndarray, "row"]
    window_index: Int[np.ndarray, "row"]


def _forecast_member(batch: _OriginBatch) -> ForecastArray:
    predictor, network = batch.predictor, batch.network
    steps, longest = predictor.round_up_horizon(batch.horizon), max(map(len, batch.series))
    found = np.full((*batch.history_lengths.shape, batch.horizon), np.nan)
    tape = PanelTensor.from_series(
        batch.series,
        context=network.window_length(longest) + network.segment,
        horizon=steps,
        encoding=predictor.fitted_model.encoding,
        channels=predictor.fitted_model.spec.channels,
        future_steps=max(0, steps - batch.horizon),
    ).to(predictor.device)
    read = _forecast_from_windows if network.reads == "window" else _forecast_from_histories
    with torch.inference_mode():
        for told in read(batch, tape):
            found[told.series_index, told.window_index] = told.forecasts.cpu().numpy()
    return found


def _roll_out_states(
    batch: _OriginBatch,
    panel_tensor: PanelTensor,
    rollout_state: RolloutState,
    series_index: Int[np.ndarray, "row"],
    window_index: Int[np.ndarray, "row"],
) -> _OriginRows:
    """What follows memories at their origins."""
    ahead = _future_covariates(
        panel_tensor,
        series_index,
        batch.history_lengths[series_index, window_index],
        batch.predictor.round_up_horizon(batch.horizon),
    )
    return _OriginRows(
        roll_out(batch.network, rollout_state, horizon=batch.horizon, future_covariates=ahead)[0],
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
    """Every origin from a window of its own."""
    network = batch.network
    series, window = np.nonzero(batch.has_forecast if mask is None else mask)
    cuts = batch.history_lengths[series, window]
    for some in batch_by_length([network.window_length(int(cut)) for cut in cuts]):
        rows = torch.from_numpy(series[some]).to(panel_tensor.values.device)
        places = panel_tensor.starts[rows] + torch.from_numpy(cuts[some]).to(rows.device)
        shown = network.window_length(int(cuts[some].max()))
        known = panel_tensor.extract_examples(places, context=shown, horizon=0, series_indices=rows).window
        if batch.kernel_engine is not None:
            yield _OriginRows(
                batch.kernel_engine.forecast(known.values, horizon=batch.horizon), series[some], window[some]
            )
        else:
            yield _roll_out_states(batch, panel_tensor, warm_up(network, known), series[some], window[some])


def _forecast_from_histories(batch: _OriginBatch, panel_tensor: PanelTensor) -> Iterator[_OriginRows]:
    """Every origin from what one pass over its series knew there; those before the scale has settled from one of their own.

    The recurrence reads whole segments, and the last of them ends at the origin. So only origins a multiple of the segment
    apart share a pass; there are as many passes, beside each other, as it takes.
    """
    network, (_, windows) = batch.network, batch.history_lengths.shape
    shared = batch.has_forecast & _is_scale_settled(batch, panel_tensor)
    if (batch.has_forecast & ~shared).any():
        yield from _forecast_from_windows(batch, panel_tensor, batch.has_forecast & ~shared)
    phases = min(network.segment // gcd(network.segment, batch.stride), windows)
    every, count = phases * batch.stride, -(-windows // phases)
    # By row: its place on the tape, and of each of its places which window it is; -1 is none.
    numbers = windows - 1 - np.arange(phases)[:, None] - phases * np.arange(count - 1, -1, -1)
    row, phase = np.nonzero(np.stack([shared[:, each[each >= 0]].any(axis=1) for each in numbers], axis=1))
    ends = batch.history_lengths[row, numbers[phase, -1]]
    if not len(row):
        return
    rows = torch.from_numpy(row).to(panel_tensor.values.device)
    places = panel_tensor.starts[rows] + torch.from_numpy(ends).to(rows.device)
    width = max(network.window_length(int(ends.max())), network.pre_context + (count - 1) * every + network.segment)
    window = panel_tensor.extract_examples(places, context=width, horizon=0, series_indices=rows).window
    if batch.kernel_engine is not None and count <= MAX_STATES_AT_ONCE:
        at_once = max(1, MAX_STATES_AT_ONCE // count)
        for first in range(0, len(row), at_once):
            part = slice(first, first + at_once)
            series, number = row[part].repeat(count), numbers[phase[part]].ravel()
            wanted = np.flatnonzero((number >= 0) & shared[series, number])
            reached = batch.kernel_engine.states_at_origins(window.values[part], stride=every, count=count).select_rows(
                torch.from_numpy(wanted)
            )
            yield _OriginRows(
                batch.kernel_engine.forecast_from(reached, horizon=batch.horizon), series[wanted], number[wanted]
            )
        return
    done = 0
    for memory in states_at_origins(network, window, stride=every, count=count):
        span = len(memory.output) // len(row)
        series, number = np.tile(row, span), numbers[phase, done : done + span].T.flatten()
        wanted = np.flatnonzero((number >= 0) & shared[series, number])
        for first in range(0, len(wanted), MAX_BATCH_ROWS):
            some = wanted[first : first + MAX_BATCH_ROWS]
            picked = select_rows(memory, torch.from_numpy(some).to(rows.device))
            yield _roll_out_states(batch, panel_tensor, picked, series[some], number[some])
        done += span


def _is_scale_settled(batch: _OriginBatch, panel_tensor: PanelTensor) -> Bool[np.ndarray, "series window"]:
    """At which origins the scale of a series is the one it keeps; a channel that was not observed yet needs none."""
    network, longest = batch.network, int(batch.history_lengths.max())
    tracks = panel_tensor.extract_examples(panel_tensor.starts + longest, context=longest, horizon=0).window.targets
    found = settle_scale(
        tracks, network.scaling, initial_steps=network.context, season=network.season, transform=network.transform
    )
    begin, since = (
        part.reshape(-1, network.num_targets, 1).cpu().numpy() for part in (found.first_observed, found.settled_at)
    )
    cuts = batch.history_lengths[:, None]
    return np.asarray(((cuts <= begin) | (cuts >= since)).all(axis=1))


def _future_covariates(
    panel_tensor: PanelTensor, series_index: Int[np.ndarray, "row"], history_lengths: Int[np.ndarray, "row"], steps: int
) -> Float[Tensor, "row step covariate"] | None:
    """The covariates of the steps after each origin."""
    if panel_tensor.covariates is None:
        return None
    first = panel_tensor.starts[torch.from_numpy(series_index).to(panel_tensor.starts.device)] + torch.from_numpy(
        history_lengths
    ).to(panel_tensor.starts.device)
    return panel_tensor.covariates[first[:, None] + torch.arange(steps, device=first.device)]


def _valid_origins(
    predictor: Predictor, series: Series, history_lengths: Int[np.ndarray, "window"], horizon: int
) -> Bool[np.ndarray, "window"]:
    """At which origins of a series the predictor finds no fault with what is known."""
    spec, numeric = predictor.fitted_model.spec, predictor.fitted_model.encoding.numeric
    long_enough = history_lengths >= spec.min_steps
    if not long_enough.any():
        return long_enough
    sound = predictor.find_error(series.take_first(int(history_lengths.max())), horizon) is None
    if sound and all(np.isfinite(series.covariates[name]).all() for name in numeric):
        seen = np.concatenate([[0], np.cumsum(~np.isnan(series.y))])
        return np.asarray(
            long_enough & (seen[history_lengths.clip(0)] > seen[(history_lengths - spec.context).clip(0)])
        )
    # Something is wrong somewhere: every origin is looked at on its own.
    return np.array(
        [
            bool(known) and predictor.find_error(series.take_first(int(cut)), horizon) is None
            for cut, known in zip(history_lengths, long_enough, strict=True)
        ]
    )
