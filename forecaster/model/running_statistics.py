"""Sums over all steps that a network with a running scale has read: with the latest values, all that it knows of the past."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.model.running_sizes import LONG_CHANGE
from forecaster.shapes import Bool, Float, Float64


class Statistics(NamedTuple):
    """Sums over all steps since a target began, one array of the same shape for each.

    Attributes:
        steps: Number of steps.
        change: Sum of the absolute changes from step to step.
        seasonal_change: Sum of the absolute changes from season to season.
        first_season: Sum of the values of the first season.
        low: The smallest value.
        high: The largest value.
        missing: Number of steps that were not observed.
        squared_change: Sum of the squared changes from step to step.
        change_product: Sum of the products of successive changes.
        squared_seasonal_change: Sum of the squared changes from season to season.
        seasonal_change_product: Sum of the products of successive changes from season to season.
        squared_long_change: Sum of the squared changes over `LONG_CHANGE` seasons.
    """

    steps: Float[Tensor, "*axes"]
    change: Float[Tensor, "*axes"]
    seasonal_change: Float[Tensor, "*axes"]
    first_season: Float[Tensor, "*axes"]
    low: Float[Tensor, "*axes"]
    high: Float[Tensor, "*axes"]
    missing: Float[Tensor, "*axes"]
    squared_change: Float[Tensor, "*axes"]
    change_product: Float[Tensor, "*axes"]
    squared_seasonal_change: Float[Tensor, "*axes"]
    seasonal_change_product: Float[Tensor, "*axes"]
    squared_long_change: Float[Tensor, "*axes"]


def update_statistics(
    before: Float64[Tensor, "row_target statistic"],
    filled_values: Float[Tensor, "row_target back_and_step"],
    started: Bool[Tensor, "row_target step"],
    missing: Bool[Tensor, "row_target step"],
    *,
    season: int,
) -> Float64[Tensor, "row_target step statistic"]:
    """Returns the statistics after every step, given those before the first one.

    Args:
        before: Statistics so far; zeros before the first step of a row.
        filled_values: The latest values before the first step, followed by the values of the steps, gaps filled.
        started: Whether the target has been observed by each step.
        missing: Whether the step was not observed.
        season: Steps of a season.
    """
    count = started.shape[1]
    values = filled_values.double()
    first = values.shape[1] - count

    def lagged(lag: int) -> Float64[Tensor, "row_target step"]:
        return values[:, first - lag : values.shape[1] - lag]

    start = Statistics(*before[:, None].unbind(-1))
    steps = start.steps + started.cumsum(1)
    current = lagged(0)

    def change(lag: int, *, ago: int = 0) -> Float64[Tensor, "row_target step"]:
        return (lagged(ago) - lagged(ago + lag)) * (started & (steps > lag + ago))

    step_change, seasonal_change = change(1), change(season)
    zero = torch.zeros_like(current)
    low, high = (
        torch.cat([edge, current.where(started, zero)], dim=1) for edge in (start.low, start.high)
    )  # the first observed value is 0, so 0 is never wrong
    return torch.stack(
        Statistics(
            steps,
            start.change + step_change.abs().cumsum(1),
            start.seasonal_change + seasonal_change.abs().cumsum(1),
            start.first_season + (current * (started & (steps <= season))).cumsum(1),
            low.cummin(1).values[:, 1:],
            high.cummax(1).values[:, 1:],
            start.missing + (started & missing).cumsum(1),
            start.squared_change + step_change.square().cumsum(1),
            start.change_product + (step_change * change(1, ago=1)).cumsum(1),
            start.squared_seasonal_change + seasonal_change.square().cumsum(1),
            start.seasonal_change_product + (seasonal_change * change(season, ago=1)).cumsum(1),
            start.squared_long_change + change(LONG_CHANGE * season).square().cumsum(1),
        ),
        dim=-1,
    )
