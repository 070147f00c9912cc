"""Conversion of forecasts to one long table."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from forecaster.series import Forecast


def build_forecast_table(forecasts: Sequence[Forecast], levels: Sequence[float]) -> pd.DataFrame:
    """Returns one row per series and step ahead: `unique_id, ds, mean`, and a column per level. All forecasts need all levels."""
    names = [f"{level:g}" for level in sorted(levels)]
    if not forecasts:
        return pd.DataFrame(columns=["unique_id", "ds", "mean", *names])
    tables = [
        pd.DataFrame(
            {"unique_id": forecast.id, "ds": forecast.ds, "mean": forecast.mean}
            | {f"{level:g}": values for level, values in forecast.quantiles.items()}
        )
        for forecast in forecasts
    ]
    return pd.concat(tables, ignore_index=True)
