"""Conversion of forecasts to one long table."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from forecaster.data.symbols import decode_symbols
from forecaster.series import Forecast


def build_forecast_table(
    forecasts: Sequence[Forecast], levels: Sequence[float], *, vocabulary: Sequence[str] = ()
) -> pd.DataFrame:
    """Returns one row per series and step ahead: `unique_id, ds, mean`, and a column per level. All forecasts need all levels.

    With the vocabulary of a model of symbols, the columns are `unique_id, ds, symbol`.
    """
    names = [f"{level:g}" for level in sorted(levels)]
    if not forecasts:
        return pd.DataFrame(columns=["unique_id", "ds", "symbol" if vocabulary else "mean", *names])
    if vocabulary:
        rows = [
            {"unique_id": forecast.id, "ds": forecast.ds, "symbol": decode_symbols(forecast.mean, vocabulary)}
            for forecast in forecasts
        ]
        return pd.concat([pd.DataFrame(row) for row in rows], ignore_index=True)
    tables = [
        pd.DataFrame(
            {"unique_id": forecast.id, "ds": forecast.ds, "mean": forecast.mean}
            | {f"{level:g}": values for level, values in forecast.quantiles.items()}
        )
        for forecast in forecasts
    ]
    return pd.concat(tables, ignore_index=True)
