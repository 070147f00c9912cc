"""Validation in scaled space: how far one-step predictions and free-running ones are from the truth, on the same origins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.data.split import origins
from forecaster.data.windows import Example, Window, stack
from forecaster.metrics import nanmean, seasonal_error
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import read, roll, warm_up
from forecaster.series import Series
from forecaster.shapes import Float64

ROWS_AT_ONCE = 4096


class Trial(NamedTuple):
    """A batch of rolling origins, and the error of the seasonal naive forecast on the series each comes from."""

    example: Example
    seasonal_error: Float64[Tensor, "row"]


class Scores(NamedTuple):
    """What a trial measures. `rollout` over `one_step` is the exposure gap: the price of feeding back own outputs."""

    loss: Tensor  # teacher-forced mean squared error, scaled, as in training
    one_step: Tensor  # teacher-forced absolute error over the seasonal naive's
    rollout: Tensor  # free-running absolute error over the seasonal naive's (MASE)


def score(network: Regressor, trial: Trial) -> Scores:
    """Teacher-forced and free-running errors over the same future steps, from the same warmed-up memory."""
    (window, future), scale = trial.example, trial.seasonal_error
    memory = warm_up(network, window)
    rolled, _ = roll(network, memory, horizon=future.shape[1])
    later = read(network, Window(future[:, :-1]), memory)[0] if future.shape[1] > 1 else memory.ahead[:, None][:, :0]
    forced = torch.cat([memory.ahead[:, None], later], dim=1)
    return Scores(
        loss=((forced - memory.scale.apply(future)) ** 2).nanmean(),
        one_step=((memory.scale.undo(forced) - future).abs() / scale[:, None]).nanmean(),
        rollout=((rolled - future).abs() / scale[:, None]).nanmean(),
    )


def exposure_gap(network: Regressor, batches: Sequence[Trial]) -> float:
    """Free-running over teacher-forced error on the same steps: 1 where feeding back own outputs costs nothing.

    NaN where there are no origins, or the teacher-forced forecast makes no error.
    """
    if not batches:
        return float("nan")
    with torch.inference_mode():
        found = [score(network, batch) for batch in batches]
    rows = [len(batch.seasonal_error) for batch in batches]
    free = np.average([float(one.rollout) for one in found], weights=rows)
    forced = np.average([float(one.one_step) for one in found], weights=rows)
    return float(free / forced) if forced else float("nan")


def trials(series: Sequence[Series], *, context: int, horizon: int, windows: int, season: int) -> list[Trial]:
    """The last `windows` origins of every series, a horizon apart, as few large batches."""
    rows = list(_origins(series, horizon=horizon, windows=windows, season=season))
    return [_batch(rows[first : first + ROWS_AT_ONCE], context) for first in range(0, len(rows), ROWS_AT_ONCE)]


def comparable_error(history: Float64[np.ndarray, "_"], *, season: int) -> float:
    """The seasonal naive's error; where there is none (short or constant), the mean size of the values, or one."""
    for scale in (seasonal_error(history, season=season), float(nanmean(np.abs(history)))):
        if np.isfinite(scale) and scale > 0:
            return scale
    return 1.0


class _Origin(NamedTuple):
    history: Float64[np.ndarray, "_"]
    future: Float64[np.ndarray, "_"]
    seasonal_error: float


def _origins(series: Sequence[Series], *, horizon: int, windows: int, season: int) -> Iterator[_Origin]:
    for one in series:
        scale = comparable_error(one.y[: -windows * horizon], season=season)
        for left in origins(windows=windows, horizon=horizon):
            cut = len(one) - left
            if not np.isnan(one.y[cut : cut + horizon]).all():
                yield _Origin(one.y[:cut], one.y[cut : cut + horizon], scale)


def _batch(rows: Sequence[_Origin], context: int) -> Trial:
    example = Example(
        stack([row.history for row in rows], context=context), torch.from_numpy(np.stack([row.future for row in rows]))
    )
    return Trial(example, torch.tensor([row.seasonal_error for row in rows], dtype=torch.float64))
