"""Validation in scaled space: how far one-step predictions and free-running ones are from the truth, on the same origins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from forecaster.data.batching import channels_of
from forecaster.data.encoding import PLAIN, Encoding
from forecaster.data.split import origins
from forecaster.data.windows import Example, Window, apart, side_by_side, stack
from forecaster.metrics import nanmean, seasonal_error
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import Memory, of_y, read, roll, warm_up
from forecaster.series import Series
from forecaster.shapes import Float, Float64, Int
from forecaster.spec import RUNAWAY

ROWS_AT_ONCE = 4096


class Trial(NamedTuple):
    """A batch of rolling origins, and the error of the seasonal naive forecast on the series each comes from."""

    example: Example
    seasonal_error: Float64[Tensor, "row"]


class Scores(NamedTuple):
    """What a trial measures. `rollout` over `one_step` is the exposure gap: the price of feeding back own outputs."""

    loss: Tensor  # teacher-forced, scaled, as in training; of y alone
    one_step: Tensor  # teacher-forced absolute error over the seasonal naive's
    rollout: Tensor  # free-running absolute error over the seasonal naive's (MASE)


def score(network: Regressor, trial: Trial) -> Scores:
    """Teacher-forced and free-running errors of y over the same future steps, from the same warmed-up memory."""
    (window, came, ahead, _), scale = trial.example, trial.seasonal_error
    horizon, memory, future = came.shape[1], warm_up(network, window), came[:: network.targets]
    steps = -(-horizon // network.block) * network.block
    known = None if ahead is None else functional.pad(ahead, (0, 0, 0, steps - horizon))
    rolled, _ = roll(network, memory, horizon=horizon, ahead=known)
    actual, channels = apart(functional.pad(came, (0, steps - horizon), value=torch.nan), targets=network.targets)
    forced = _forced(network, memory, Window(actual, known, channels=channels))[:, :horizon]
    units, missing = of_y(network, memory.scale), future.isnan()
    target = units.apply(future, time=memory.time)
    losses = network.head.loss(forced, target.masked_fill(missing, 0.0)).masked_fill(missing, torch.nan)
    foretold = units.undo(network.head.mean(forced), time=memory.time)
    free = ((rolled - future).abs() / scale[:, None]).masked_fill(rolled.isnan(), RUNAWAY)  # what exploded counts
    return Scores(
        loss=losses.nanmean(),
        one_step=((foretold - future).abs() / scale[:, None]).nanmean(),
        rollout=free.masked_fill(missing, torch.nan).nanmean(),
    )


def _forced(network: Regressor, memory: Memory, actual: Window) -> Float[Tensor, "row step param"]:
    """The head's parameters for every block of y, each given all that came before the block: one pass, as nothing is fed back."""
    block, output, recent = network.block, memory.output[:, None], memory.recent[:, None]
    if actual.values.shape[1] > block:
        outputs, past, _ = read(network, actual.part(slice(-block)), memory)
        last = block // network.segment
        output = torch.cat([output, outputs[:, last - 1 :: last]], dim=1)
        recent = past.unfold(1, network.back, 1)[:, ::block]
    known = actual.covariates
    blocks = None if known is None else known.reshape(len(known), -1, block, known.shape[2])
    return network.decode(output, recent, blocks)[:: network.targets].flatten(1, 2)


def exposure_gap(networks: Sequence[Regressor], batches: Sequence[Trial]) -> float:
    """Free-running over teacher-forced error on the same steps: 1 where feeding back own outputs costs nothing.

    NaN where there are no origins, or the teacher-forced forecast makes no error.
    """
    if not batches:
        return float("nan")
    with torch.inference_mode():
        found = [score(network, batch) for network in networks for batch in batches]
    rows = [len(batch.seasonal_error) for batch in batches] * len(networks)
    free = np.average([float(one.rollout) for one in found], weights=rows)
    forced = np.average([float(one.one_step) for one in found], weights=rows)
    return float(free / forced) if forced else float("nan")


def trials(
    series: Sequence[Series],
    *,
    context: int,
    horizon: int,
    windows: int,
    season: int,
    stride: int | None = None,
    encoding: Encoding = PLAIN,
    channels: Sequence[str] = (),
) -> list[Trial]:
    """The last `windows` origins of every series, `stride` steps or a horizon apart, as few large batches."""
    lefts = origins(windows=windows, horizon=horizon, stride=stride)
    rows = list(_origins(series, lefts, horizon=horizon, season=season, encoding=encoding, channels=channels))
    return [_batch(rows[first : first + ROWS_AT_ONCE], context) for first in range(0, len(rows), ROWS_AT_ONCE)]


def comparable_error(history: Float64[np.ndarray, "_"], *, season: int) -> float:
    """The seasonal naive's error; where there is none (short or constant), the mean size of the values, or one."""
    scale = seasonal_error(history, season=season)
    if np.isfinite(scale):
        return scale
    size = float(nanmean(np.abs(history)))
    return size if np.isfinite(size) and size > 0 else 1.0


class _Origin(NamedTuple):
    history: Float64[np.ndarray, "_"]
    future: Float64[np.ndarray, "_"]
    covariates: Float64[np.ndarray, "_ covariate"]
    ahead: Float64[np.ndarray, "_ covariate"]
    groups: Int[np.ndarray, "static"]
    known: Float64[np.ndarray, "_ channel"]
    came: Float64[np.ndarray, "_ channel"]
    seasonal_error: float


def _origins(
    series: Sequence[Series],
    lefts: range,
    *,
    horizon: int,
    season: int,
    encoding: Encoding,
    channels: Sequence[str],
) -> Iterator[_Origin]:
    for one in series:
        scale = comparable_error(one.y[: len(one) - max(lefts)], season=season)
        columns, groups = encoding.covariates(one, ahead=0), encoding.groups(one)
        beside = channels_of(one, channels)
        for left in lefts:
            cut = len(one) - left
            past, future = slice(cut), slice(cut, cut + horizon)
            if not np.isnan(one.y[future]).all():
                yield _Origin(
                    one.y[past],
                    one.y[future],
                    columns[past],
                    columns[future],
                    groups,
                    beside[past],
                    beside[future],
                    scale,
                )


def _batch(rows: Sequence[_Origin], context: int) -> Trial:
    read_columns, read_groups = rows[0].covariates.shape[1] > 0, len(rows[0].groups) > 0
    read_channels = rows[0].known.shape[1] > 0
    window = stack(
        [row.history for row in rows],
        context=context,
        covariates=[row.covariates for row in rows] if read_columns else (),
        static=[row.groups for row in rows] if read_groups else (),
        channels=[row.known for row in rows] if read_channels else (),
    )
    ahead = torch.from_numpy(np.stack([row.ahead for row in rows])).float() if read_columns else None
    future = torch.from_numpy(np.stack([row.future for row in rows]))
    came = torch.from_numpy(np.stack([row.came for row in rows])) if read_channels else None
    example = Example(window, side_by_side(future, came), ahead)
    return Trial(example, torch.tensor([row.seasonal_error for row in rows], dtype=torch.float64))
