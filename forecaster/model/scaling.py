"""Scale is a value: measured on the history of each row alone, applied once on the way in, undone once on the way out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.shapes import Float, Float64
from forecaster.spec import Scaling


class Scale(NamedTuple):
    """scaled = (value - shift) / width. A width of zero (a constant history) maps all to 0, and back to the constant."""

    shift: Float64[Tensor, "row"]
    width: Float64[Tensor, "row"]

    def apply(self, values: Float64[Tensor, "row step"]) -> Float[Tensor, "row step"]:
        """Data units to the network's units, in float32. Float64 until here, or large levels would swallow small changes."""
        flat = self.width[:, None] == 0
        return (
            ((values - self.shift[:, None]) / self.width[:, None].masked_fill(flat, 1.0)).masked_fill(flat, 0.0).float()
        )

    def undo(self, scaled: Float[Tensor, "row step"]) -> Float64[Tensor, "row step"]:
        """The network's units to data units."""
        return scaled.double() * self.width[:, None] + self.shift[:, None]


def measure(values: Float64[Tensor, "row context"], scaling: Scaling) -> Scale:
    """The scale of each row, from its observed values.

    `none` shifts by 0 and divides by 1; `mean_abs` divides by the mean of |y| (Salinas et al. 2020, section 3.3, without
    their +1, so that the forecast scales with the data); `standard` subtracts the mean and divides by the population
    standard deviation. A row without observations, or all zero, has width 0 (1 for `none`).
    """
    zero = values.new_zeros(len(values))
    if scaling == "none":
        return Scale(zero, zero + 1)
    observed = ~values.isnan()
    count = observed.sum(1).clamp(min=1)
    known = values.masked_fill(~observed, 0.0)
    if scaling == "mean_abs":
        return Scale(zero, known.abs().sum(1) / count)
    mean = known.sum(1) / count
    deviation = (known - mean[:, None]).masked_fill(~observed, 0.0)
    return Scale(mean, torch.sqrt((deviation**2).sum(1) / count))
