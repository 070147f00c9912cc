"""Generated panels whose last period is incomplete in some series, for the tests of their detection.

A public set of 518 yearly series of tourism is the model: 82 of them end with a year of which only a few months were counted, and
the forecasts from there are far too low.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.data.frames.panel import to_panel
from forecaster.series import Panel
from forecaster.shapes import Float64


class PartialPanel(NamedTuple):
    """A panel, and what is known about it."""

    panel: Panel
    partial_ids: tuple[str, ...]  # series whose last value is a part of its period
    actual: Float64[np.ndarray, "series horizon"]  # the complete values after the last period


def make_yearly_panel(
    *, num_series: int = 60, one_in: int = 6, months: int = 4, years: int = 20, horizon: int = 4, seed: int = 0
) -> PartialPanel:
    """Generates yearly totals that end in 2006, as random walks in logarithms with growth, of very different sizes.

    Args:
        num_series: The number of series; their lengths vary from half of `years` to `years`.
        one_in: The last year of the first of every `one_in` series has only the first `months` of its twelve months.
        months: Those months; the total is multiplied by their share of the year.
        years: The longest length.
        horizon: Years after the last one, for `actual`.
        seed: Seed of the generator.
    """
    rng = np.random.default_rng(seed)
    frames, actual = [], []
    ids = [f"region_{number}" for number in range(num_series)]
    for number, unique_id in enumerate(ids):
        length = int(rng.integers(years // 2, years + 1))
        growth, noise = rng.uniform(0.0, 0.06), rng.uniform(0.02, 0.12)
        y = np.exp(rng.uniform(3, 12) + np.cumsum(growth + noise * rng.normal(size=length + horizon)))
        actual.append(y[length:].copy())
        if number % one_in == 0:
            y[length - 1] *= months / 12
        ds = pd.date_range(end="2006-01-01", periods=length, freq="YS")
        frames.append(pd.DataFrame({"unique_id": unique_id, "ds": ds, "y": y[:length]}))
    return PartialPanel(to_panel(pd.concat(frames)), tuple(ids[::one_in]), np.array(actual))


def make_daily_panel(*, num_series: int = 8, share: float = 0.5, days: int = 120, seed: int = 0) -> PartialPanel:
    """Generates daily counts with a weekly season; the last day (2026-01-31, a Saturday) has only a share of its values."""
    rng, ids = np.random.default_rng(seed), [f"store_{number}" for number in range(num_series)]
    ds = pd.date_range(end="2026-01-31", periods=days, freq="D")
    week = np.array([1.0, 1.0, 1.0, 1.1, 1.3, 1.5, 0.6])[ds.day_of_week]
    frames = []
    for unique_id in ids:
        y = rng.poisson(rng.uniform(200, 2000) * week).astype(float)
        y[-1] = np.floor(y[-1] * share)
        frames.append(pd.DataFrame({"unique_id": unique_id, "ds": ds, "y": y}))
    return PartialPanel(to_panel(pd.concat(frames)), tuple(ids), np.empty((num_series, 0)))
