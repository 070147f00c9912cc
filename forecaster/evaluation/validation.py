"""Validation in scaled space: how far one-step predictions and free-running ones are from the truth, on the same origins."""

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
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, roll_out, run_over_window, target_scale, warm_up
from forecaster.series import Series
from forecaster.shapes import Float, Float64, Int
from forecaster.spec import DIVERGENCE_FACTOR

MAX_BATCH_ROWS = 4096


class ValidationBatch(NamedTuple):
    """A batch of rolling origins, and the error of the seasonal naive forecast on the series each comes from."""

    example: Example
    seasonal_error: Float64[Tensor, "row"]


class ValidationScores(NamedTuple):
    """What a trial measures. `rollout` over `score_one_step` is the exposure gap: the price of feeding back own outputs."""

    loss: Tensor  # teacher-forced, scaled, as in training; of y alone
    one_step: Tensor  # teacher-forced absolute error over the seasonal naive's
    rollout: Tensor  # free-running absolute error over the seasonal naive's (MASE)


def score_batch(network: Regressor, batch: ValidationBatch) -> ValidationScores:
    """Teacher-forced and free-running errors of y over the same future steps, from the same warmed-up memory."""
    (window, came, ahead, _), scale = batch.example, batch.seasonal_error
    horizon, memory, future = came.shape[1], warm_up(network, window), came[:: network.num_targets]
    steps = -(-horizon // network.block) * network.block
    known = None if ahead is None else functional.pad(ahead, (0, 0, 0, steps - horizon))
    rolled, _ = roll_out(network, memory, horizon=horizon, future_covariates=known)
    actual, channels = unstack_targets(
        functional.pad(came, (0, steps - horizon), value=torch.nan), num_targets=network.num_targets
    )
    forced = _teacher_forced_params(network, memory, Window(actual, known, channels=channels))[:, :horizon]
    units, missing = target_scale(network, memory.scale), future.isnan()
    target = units.apply(future, time=memory.time)
    losses = network.head.loss(forced, target.masked_fill(missing, 0.0)).masked_fill(missing, torch.nan)
    foretold = units.undo(network.head.mean(forced), time=memory.time)
    free = ((rolled - future).abs() / scale[:, None]).masked_fill(
        rolled.isnan(), DIVERGENCE_FACTOR
    )  # what exploded counts
    return ValidationScores(
        loss=losses.nanmean(),
        one_step=((foretold - future).abs() / scale[:, None]).nanmean(),
        rollout=free.masked_fill(missing, torch.nan).nanmean(),
    )


def _teacher_forced_params(
    network: Regressor, rollout_state: RolloutState, actual: Window
) -> Float[Tensor, "row step param"]:
    """The head's parameters for every block of y, each given all that came before the block: one pass, as nothing is fed back."""
    block, output, recent = network.block, rollout_state.output[:, None], rollout_state.recent[:, None]
    if actual.values.shape[1] > block:
        outputs, past, _ = run_over_window(network, actual.slice_steps(slice(-block)), rollout_state)
        last = block // network.segment
        output = torch.cat([output, outputs[:, last - 1 :: last]], dim=1)
        recent = past.unfold(1, network.lookback, 1)[:, ::block]
    known = actual.covariates
    blocks = None if known is None else known.reshape(len(known), -1, block, known.shape[2])
    return network.decode(output, recent, blocks)[:: network.num_targets].flatten(1, 2)


def compute_exposure_gap(networks: Sequence[Regressor], batches: Sequence[ValidationBatch]) -> float:
    """Free-running over teacher-forced error on the same steps: 1 where feeding back own outputs costs nothing.

    NaN where there are no origins, or the teacher-forced forecast makes no error.
    """
    if not batches:
        return float("nan")
    with torch.inference_mode():
        found = [score_batch(network, batch) for network in networks for batch in batches]
    rows = [len(batch.seasonal_error) for batch in batches] * len(networks)
    free = np.average([float(one.rollout) for one in found], weights=rows)
    forced = np.average([float(one.one_step) for one in found], weights=rows)
    return float(free / forced) if forced else float("nan")


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
) -> list[ValidationBatch]:
    """The last `windows` origins of every series, `stride` steps or a horizon apart, as few large batches."""
    lefts = rolling_origins(windows=windows, horizon=horizon, stride=stride)
    rows = list(_iterate_origins(series, lefts, horizon=horizon, season=season, encoding=encoding, channels=channels))
    return [_collate(rows[first : first + MAX_BATCH_ROWS], context) for first in range(0, len(rows), MAX_BATCH_ROWS)]


def compute_error_scale(history: Float64[np.ndarray, "_"], *, season: int) -> float:
    """The seasonal naive's error; where there is none (short or constant), the mean size of the values, or one."""
    scale = seasonal_error(history, season=season)
    if np.isfinite(scale):
        return scale
    size = float(nanmean(np.abs(history)))
    return size if np.isfinite(size) and size > 0 else 1.0


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
    for one in series:
        scale = compute_error_scale(one.y[: len(one) - max(offsets)], season=season)
        columns, groups = encoding.encode_covariates(one, future_steps=0), encoding.encode_static(one)
        beside = stack_channels(one, channels)
        for left in offsets:
            cut = len(one) - left
            past, future = slice(cut), slice(cut, cut + horizon)
            if not np.isnan(one.y[future]).all():
                yield _ValidationOrigin(
                    one.y[past],
                    one.y[future],
                    columns[past],
                    columns[future],
                    groups,
                    beside[past],
                    beside[future],
                    scale,
                )


def _collate(rows: Sequence[_ValidationOrigin], context: int) -> ValidationBatch:
    read_columns, read_groups = rows[0].covariates.shape[1] > 0, len(rows[0].static) > 0
    read_channels = rows[0].channels.shape[1] > 0
    window = build_window(
        [row.history for row in rows],
        context=context,
        covariates=[row.covariates for row in rows] if read_columns else (),
        static=[row.static for row in rows] if read_groups else (),
        channels=[row.channels for row in rows] if read_channels else (),
    )
    ahead = torch.from_numpy(np.stack([row.future_covariates for row in rows])).float() if read_columns else None
    future = torch.from_numpy(np.stack([row.future for row in rows]))
    came = torch.from_numpy(np.stack([row.future_channels for row in rows])) if read_channels else None
    example = Example(window, stack_targets(future, came), ahead)
    return ValidationBatch(example, torch.tensor([row.seasonal_error for row in rows], dtype=torch.float64))
