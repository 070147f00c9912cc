"""Forecasts as one long table."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from forecaster.series import Forecast


def build_forecast_table(forecasts: Sequence[Forecast], levels: Sequence[float]) -> pd.DataFrame:
    """A row a series and step ahead: `unique_id, ds, mean`, and a column for each of the levels, which all of them have."""
    names = [f"{level:g}" for level in sorted(levels)]
    if not forecasts:
        return pd.DataFrame(columns=["unique_id", "ds", "mean", *names])
    each = [
        pd.DataFrame(
            {"unique_id": one.id, "ds": one.ds, "mean": one.mean}
            | {f"{level:g}": values for level, values in one.quantiles.items()}
        )
        for one in forecasts
    ]
    return pd.concat(each, ignore_index=True)
