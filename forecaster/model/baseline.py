"""Baseline forecasts in scaled space; the network predicts corrections to them."""

from __future__ import annotations

import torch
from torch import Tensor

from forecaster.shapes import Float
from forecaster.spec import BaselineKind


def baseline_forecast(
    base: BaselineKind, recent: Float[Tensor, "*axes back"], *, season: int, steps: int
) -> Float[Tensor, "*axes step"]:
    """Returns the baseline forecast of the next steps, given the latest values (oldest first, none missing).

    `zero` is 0, `last` repeats the last value, `seasonal_naive` repeats the last season, and `linear` continues the mean
    slope over the last season (the drift method of Hyndman and Athanasopoulos 2021, section 5.2, on that stretch).
    """
    ahead = torch.arange(1, steps + 1, device=recent.device)
    last = recent[..., -1:]
    if base == "zero":
        return torch.zeros_like(last).expand(*last.shape[:-1], steps)
    if base == "last":
        return last.expand(*last.shape[:-1], steps)
    if base == "seasonal_naive":
        return recent[..., recent.shape[-1] - season + (ahead - 1) % season]
    return last + (last - recent[..., -season - 1, None]) / season * ahead
