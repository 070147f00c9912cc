"""What a network corrects: the simple forecast that is added to its own."""

from __future__ import annotations

import torch
from torch import Tensor

from forecaster.shapes import Float
from forecaster.spec import BaselineKind


def baseline_forecast(
    base: BaselineKind, recent: Float[Tensor, "*axes back"], *, season: int, steps: int
) -> Float[Tensor, "*axes step"]:
    """The base's forecast of the next steps from the latest values (latest last, none missing).

    `last` repeats the last value, `seasonal_naive` the last season, `linear` goes on with the mean slope over the last
    season (the drift method of Hyndman and Athanasopoulos 2021, section 5.2, on that stretch).
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
