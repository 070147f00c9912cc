"""Validation in scaled space: errors of one-step and of free-running predictions on the same origins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from forecaster.data.batching import stack_channels
from forecaster.data.encoding import EMPTY_ENCODING, Encoding
from forecaster.data.split import rolling_origins
from forecaster.data.windows import Example, Window, build_window, stack_targets, unstack_targets
from forecaster.metrics import nanmean, seasonal_error
from forecaster.model.heads import Symbols
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, roll_out, run_over_window, target_scale, warm_up
from forecaster.model.running import RunningScale
from forecaster.series import Series
from forecaster.shapes import Float, Float64, Int
from forecaster.spec import DIVERGENCE_FACTOR

MAX_BATCH_ROWS = 4096
MAX_BATCH_VALUES = 1 << 24  # symbols of all steps ahead of a batch


class ValidationBatch(NamedTuple):
    """A batch of rolling origins, and the error of the seasonal naive forecast on the series of each."""

    example: Example
    seasonal_error: Float64[Tensor, "row"]


class ValidationScores(NamedTuple):
    """The errors on a batch. `rollout` over `one_step` is the exposure gap: the cost of feeding back own predictions.

    Of a network of symbols, errors are the share of wrong symbols, and the loss is the cross-entropy of the known ones.
    """

    loss: Tensor  # teacher-forced, scaled, as in training; of y alone
    one_step: Tensor  # teacher-forced absolute error over the seasonal naive's
    rollout: Tensor  # free-running absolute error over the seasonal naive's (MASE)
    origin_rollout: Float[Tensor, "row"]  # the same of each origin, the mean over its observed steps


class ValidationErrors(NamedTuple):
    """The free-running error of every series in every validation window, over the seasonal naive's (MASE).

    Attributes:
        series_ids: Ids of the series; of very many series only some are validated.
        errors: Mean error of each window over its observed steps, the oldest window first; NaN where none was observed.
    """

    series_ids: tuple[str, ...]
    errors: Float64[np.ndarray, "series window"]


def score_batch(network: Regressor, batch: ValidationBatch, *, num_members: int = 1) -> ValidationScores:
    """Computes teacher-forced and free-running errors of y over the same future steps, from the same warmed-up state.

    With several members, the network is stacked, the batch has the rows of one member after the other (`repeat_rows`), and the
    scores are means over members.
    """
    scale, future = batch.seasonal_error, batch.example.future[:: network.num_targets]
    rolled, params, (level, unit), rollout_state = predict_both_ways(network, batch.example)
    target_units, missing = target_scale(network, rollout_state.scale), future.isnan()
    target = (target_units.apply(future, time=rollout_state.time) - level) / unit
    losses = network.head.loss(params, target.masked_fill(missing, 0.0)).masked_fill(
        ~network.is_scored(future), torch.nan
    )
    forced_means = target_units.undo(level + unit * network.head.mean(params), time=rollout_state.time)
    if isinstance(network.head, Symbols):  # the share of wrong symbols
        one_step, rollout_errors = ((codes != future).double() for codes in (forced_means, rolled))
    else:
        one_step, rollout_errors = ((values - future).abs() / scale[:, None] for values in (forced_means, rolled))
    # A diverged forecast (NaN) counts with a large error.
    rollout_errors = rollout_errors.masked_fill(rolled.isnan(), DIVERGENCE_FACTOR)
    one_step, rollout_errors = (errors.masked_fill(missing, torch.nan) for errors in (one_step, rollout_errors))
    return ValidationScores(
        loss=_mean_over_members(losses, num_members),
        one_step=_mean_over_members(one_step, num_members),
        rollout=_mean_over_members(rollout_errors, num_members),
        origin_rollout=rollout_errors.nanmean(dim=1).reshape(num_members, -1).mean(dim=0),
    )


class BothPredictions(NamedTuple):
    """What a network predicts of y after a window, free running and teacher-forced.

    Attributes:
        rolled: The free-running forecast, in data units.
        params: The head's parameters of each step, given all actuals before its block.
        scale: Their level and unit.
        state: The state after the window.
    """

    rolled: Float64[Tensor, "row horizon"]
    params: Float[Tensor, "row horizon param"]
    scale: RunningScale
    state: RolloutState


def predict_both_ways(network: Regressor, example: Example) -> BothPredictions:
    """Predicts the future of an example free running and teacher-forced, from the same warmed-up state."""
    window, targets, future_covariates, _ = example
    horizon, rollout_state = targets.shape[1], warm_up(network, window)
    steps = -(-horizon // network.block) * network.block
    padded_covariates = (
        None if future_covariates is None else functional.pad(future_covariates, (0, 0, 0, steps - horizon))
    )
    rolled, _ = roll_out(network, rollout_state, horizon=horizon, future_covariates=padded_covariates)
    actual, channels = unstack_targets(
        functional.pad(targets, (0, steps - horizon), value=torch.nan), num_targets=network.num_targets
    )
    params, scale = _teacher_forced_params(
        network, rollout_state, Window(actual, padded_covariates, channels=channels), steps=horizon
    )
    return BothPredictions(rolled, params, scale, rollout_state)


def _mean_over_members(errors: Float[Tensor, "row step"] | Float64[Tensor, "row step"], num_members: int) -> Tensor:
    """Returns the mean over the observed steps of each member, and over members; a member without a number counts as NaN."""
    return errors.nanmean() if num_members == 1 else errors.reshape(num_members, -1).nanmean(1).mean()


def repeat_rows(batch: ValidationBatch, *, copies: int) -> ValidationBatch:
    """Returns a batch with all rows of the given one, one copy after the other."""

    def repeat(part: Tensor | None) -> Tensor | None:
        return None if part is None else torch.cat([part] * copies)

    window, *others = batch.example
    example = Example(Window(*map(repeat, window)), *map(repeat, others))  # type: ignore[arg-type]
    return ValidationBatch(example, torch.cat([batch.seasonal_error] * copies))


def _teacher_forced_params(
    network: Regressor, rollout_state: RolloutState, actual: Window, *, steps: int
) -> tuple[Float[Tensor, "row step param"], RunningScale]:
    """Returns the head's parameters for `steps` steps of y, each given all actuals before its block, and their level and unit.

    One pass suffices, as nothing is fed back.
    """
    block, output, recent = network.block, rollout_state.output[:, None], rollout_state.recent[:, None]
    statistics = None if rollout_state.statistics is None else rollout_state.statistics[:, None]
    if actual.values.shape[1] > block:
        outputs, targets, _, later = run_over_window(network, actual.slice_steps(slice(-block)), rollout_state)
        stride = block // network.segment
        output = torch.cat([output, outputs[:, stride - 1 :: stride]], dim=1)
        recent = targets.unfold(1, network.lookback, 1)[:, ::block]
        if statistics is not None and later is not None:
            statistics = torch.cat([statistics, later[:, stride - 1 :: stride]], dim=1)
    covariates = actual.covariates
    blocks = None if covariates is None else covariates.reshape(len(covariates), -1, block, covariates.shape[2])
    params = network.decode(output, recent, blocks, statistics)[:: network.num_targets].flatten(1, 2)
    scale = (
        part[:: network.num_targets].repeat_interleave(block, dim=1)[:, :steps]
        for part in network.measure_units(recent, statistics)
    )
    return params[:, :steps], RunningScale(*scale)


def compute_exposure_gap(networks: Sequence[Regressor], batches: Sequence[ValidationBatch]) -> float:
    """Returns the free-running over the teacher-forced error on the same steps: 1 where feeding back predictions costs nothing.

    NaN where there are no origins, or the teacher-forced forecast makes no error.
    """
    if not batches:
        return float("nan")
    with torch.inference_mode():
        scores = [score_batch(network, batch) for network in networks for batch in batches]
    rows = [len(batch.seasonal_error) for batch in batches] * len(networks)
    rollout = np.average([float(score.rollout) for score in scores], weights=rows)
    one_step = np.average([float(score.one_step) for score in scores], weights=rows)
    return float(rollout / one_step) if one_step else float("nan")


def score_origins(networks: Sequence[Regressor], batches: Sequence[ValidationBatch]) -> Float64[np.ndarray, "origin"]:
    """Returns the free-running error of each origin, over the seasonal naive's: the mean over networks."""
    with torch.inference_mode():
        errors = [
            torch.stack([score_batch(network, batch).origin_rollout for network in networks]).mean(dim=0)
            for batch in batches
        ]
    return torch.cat(errors).double().numpy()


def arrange_origin_errors(
    series: Sequence[Series],
    origin_errors: Float64[np.ndarray, "origin"],
    *,
    horizon: int,
    windows: int,
    stride: int | None = None,
) -> ValidationErrors:
    """Arranges the errors of the origins of `build_validation_batches` by series and window.

    Args:
        series: The series that the batches were built from.
        origin_errors: The errors in the order of the batches.
        horizon, windows, stride: Those of the batches.
    """
    offsets = rolling_origins(windows=windows, horizon=horizon, stride=stride)
    observed = np.array([[_is_observed(item, offset, horizon=horizon) for offset in offsets] for item in series])
    errors = np.full(observed.shape, np.nan)
    errors[observed] = origin_errors
    return ValidationErrors(tuple(item.id for item in series), errors)


def build_validation_batches(
    series: Sequence[Series],
    *,
    context: int,
    horizon: int,
    windows: int,
    season: int,
    stride: int | None = None,
    encoding: Encoding = EMPTY_ENCODING,
    channels: Sequence[str] = (),
    num_symbols: int = 0,
) -> list[ValidationBatch]:
    """Builds a few large batches of the last `windows` origins of every series; `stride` defaults to the horizon.

    They have fewer rows for a network of many symbols (`num_symbols`).
    """
    offsets = rolling_origins(windows=windows, horizon=horizon, stride=stride)
    rows = list(_iterate_origins(series, offsets, horizon=horizon, season=season, encoding=encoding, channels=channels))
    return _collate_batches(rows, context, num_values=horizon * num_symbols)


def build_sequence_batches(
    series: Sequence[Series], *, context: int, num_symbols: int, encoding: Encoding = EMPTY_ENCODING
) -> list[ValidationBatch]:
    """Builds validation batches of whole sequences: everything after the first step of each is predicted from what precedes it.

    `context` is the length of the windows, of which the first step is the last; `num_symbols` as for `build_validation_batches`.
    """
    horizon = max(map(len, series)) - 1
    rows = []
    for item in series:
        covariates, padding = encoding.encode_covariates(item, future_steps=0), horizon + 1 - len(item)
        no_channels = np.empty((horizon + 1, 0))
        rows.append(
            _ValidationOrigin(
                item.y[:1],
                np.pad(item.y[1:], (0, padding), constant_values=np.nan),
                covariates[:1],
                np.pad(covariates[1:], ((0, padding), (0, 0))),
                encoding.encode_static(item),
                no_channels[:1],
                no_channels[1:],
                1.0,
            )
        )
    return _collate_batches(rows, context, num_values=horizon * num_symbols)


def _collate_batches(rows: Sequence[_ValidationOrigin], context: int, *, num_values: int) -> list[ValidationBatch]:
    """Collates origins, of which each has `num_values` inputs and outputs of symbols, into batches that fit into memory."""
    size = min(MAX_BATCH_ROWS, max(1, MAX_BATCH_VALUES // max(1, num_values)))
    return [_collate(rows[first : first + size], context) for first in range(0, len(rows), size)]


def compute_error_scale(history: Float64[np.ndarray, "_"], *, season: int) -> float:
    """Returns the seasonal naive's error; where there is none (short or constant), the mean absolute value, or one."""
    scale = seasonal_error(history, season=season)
    if np.isfinite(scale):
        return scale
    mean_size = float(nanmean(np.abs(history)))
    return mean_size if np.isfinite(mean_size) and mean_size > 0 else 1.0


class _ValidationOrigin(NamedTuple):
    history: Float64[np.ndarray, "_"]
    future: Float64[np.ndarray, "_"]
    covariates: Float64[np.ndarray, "_ covariate"]
    future_covariates: Float64[np.ndarray, "_ covariate"]
    static: Int[np.ndarray, "static"]
    channels: Float64[np.ndarray, "_ channel"]
    future_channels: Float64[np.ndarray, "_ channel"]
    seasonal_error: float


def _iterate_origins(
    series: Sequence[Series],
    offsets: range,
    *,
    horizon: int,
    season: int,
    encoding: Encoding,
    channels: Sequence[str],
) -> Iterator[_ValidationOrigin]:
    for item in series:
        scale = compute_error_scale(item.y[: len(item) - max(offsets)], season=season)
        item_covariates, static_codes = encoding.encode_covariates(item, future_steps=0), encoding.encode_static(item)
        item_channels = stack_channels(item, channels)
        for offset in offsets:
            cutoff = len(item) - offset
            past, future = slice(cutoff), slice(cutoff, cutoff + horizon)
            if _is_observed(item, offset, horizon=horizon):
                yield _ValidationOrigin(
                    item.y[past],
                    item.y[future],
                    item_covariates[past],
                    item_covariates[future],
                    static_codes,
                    item_channels[past],
                    item_channels[future],
                    scale,
                )


def _is_observed(series: Series, offset: int, *, horizon: int) -> bool:
    """Whether a value was observed in the window that begins `offset` steps before the end of a series."""
    first = len(series) - offset
    return not np.isnan(series.y[first : first + horizon]).all()


def _collate(rows: Sequence[_ValidationOrigin], context: int) -> ValidationBatch:
    has_covariates, has_static = rows[0].covariates.shape[1] > 0, len(rows[0].static) > 0
    has_channels = rows[0].channels.shape[1] > 0
    window = build_window(
        [row.history for row in rows],
        context=context,
        covariates=[row.covariates for row in rows] if has_covariates else (),
        static=[row.static for row in rows] if has_static else (),
        channels=[row.channels for row in rows] if has_channels else (),
    )
    future_covariates = (
        torch.from_numpy(np.stack([row.future_covariates for row in rows])).float() if has_covariates else None
    )
    future = torch.from_numpy(np.stack([row.future for row in rows]))
    future_channels = torch.from_numpy(np.stack([row.future_channels for row in rows])) if has_channels else None
    example = Example(window, stack_targets(future, future_channels), future_covariates)
    return ValidationBatch(example, torch.tensor([row.seasonal_error for row in rows], dtype=torch.float64))
