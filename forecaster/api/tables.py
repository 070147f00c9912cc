"""The tables of a `Forecaster` besides forecasts: backtests and scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from forecaster.data.forecast_table import MODEL_COLUMN
from forecaster.errors import LevelOutOfRange
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.head_quantiles import has_quantiles


def validate_calibration(model: FittedModel | StoredModel, columns: Mapping[str, float]) -> None:
    """Raises LevelOutOfRange if quantiles are requested of a model that was not calibrated."""
    if columns and not has_quantiles(model):
        raise LevelOutOfRange(
            f"Expected no `level` and no `quantiles`: model {model.spec.name!r} is not calibrated and has point forecasts only. "
            "Fit it with a specification whose valid_windows is 1 or more, or leave them out.",
            where="level",
        )


def rename_backtest_table(frame: pd.DataFrame, columns: Mapping[str, float]) -> pd.DataFrame:
    """Returns the table of a backtest (`Backtest.to_frame`) as `unique_id, ds, cutoff, y, forecaster` and the quantiles."""
    table = frame[["unique_id", "ds", "cutoff", "y", MODEL_COLUMN]].copy()
    for name, quantile in columns.items():
        table[name] = frame[f"{MODEL_COLUMN}-{quantile:g}"].array
    return table


def build_report(scores: Mapping[str, Mapping[str, float | None]]) -> pd.DataFrame:
    """Returns one row per forecaster with its scores; NaN for a score that could not be computed."""
    rows = [
        {MODEL_COLUMN: name, **{metric: np.nan if value is None else value for metric, value in values.items()}}
        for name, values in scores.items()
    ]
    return pd.DataFrame(rows)
