"""The columns of forecasts, in the names of Nixtla's libraries: `forecaster`, `forecaster-lo-80`, `forecaster-hi-80`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from forecaster.errors import LevelOutOfRange
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.head_quantiles import has_quantiles
from forecaster.series import Forecast

MODEL_COLUMN = "forecaster"
Levels = Sequence[int | float] | int | float | None
"""One level or several: percentages of intervals, or quantiles."""


def plan_quantile_columns(level: Levels, quantiles: Levels) -> dict[str, float]:
    """Returns the quantile of each column: the bounds of intervals (`level`, in percent), then single quantiles.

    Raises LevelOutOfRange.
    """
    columns: dict[str, float] = {}
    percents = _to_numbers(level, "level")
    if percents and all(0 < percent < 1 for percent in percents):
        raise LevelOutOfRange(
            f"Expected `level` in percent; found {', '.join(f'{percent:g}' for percent in percents)}. Write 80 for an 80 % "
            "interval, or pass `quantiles`.",
            where="level",
        )
    for percent in percents:
        bounds = {side: round((1 + sign * percent / 100) / 2, 9) for side, sign in (("lo", -1), ("hi", 1))}
        if not 0 < bounds["lo"] < bounds["hi"] < 1:
            raise LevelOutOfRange(
                f"Expected `level` in percent, between 0 and 100; found {percent:.12g}. Write 80 for an 80 % interval.",
                where="level",
            )
        columns |= {f"{MODEL_COLUMN}-{side}-{percent:g}": quantile for side, quantile in bounds.items()}
    for quantile in _to_numbers(quantiles, "quantiles"):
        if not 0 < quantile < 1:
            raise LevelOutOfRange(
                f"Expected `quantiles` between 0 and 1; found {quantile:g}. Write 0.9 for the upper bound of an 80 % interval.",
                where="quantiles",
            )
        columns[f"{MODEL_COLUMN}-q-{quantile:g}"] = quantile
    return columns


def _to_numbers(values: Levels, argument: str) -> list[float]:
    """Returns one number or several as a list; raises LevelOutOfRange for anything else."""
    if values is None:
        return []
    listed: list[Any] = (
        [values] if isinstance(values, (str, bytes)) or not isinstance(values, Iterable) else list(values)
    )
    invalid = [value for value in listed if isinstance(value, bool) or not isinstance(value, Real)]
    if invalid:
        raise LevelOutOfRange(
            f"Expected one number or a list of numbers for `{argument}`; found {invalid[0]!r}. Write "
            f"{'[80, 95]' if argument == 'level' else '[0.1, 0.9]'}.",
            where=argument,
        )
    return [float(value) for value in listed]


def validate_calibration(model: FittedModel | StoredModel, columns: Mapping[str, float]) -> None:
    """Raises LevelOutOfRange if quantiles are requested of a model that was not calibrated, or predicts symbols."""
    if columns and model.spec.head.is_symbolic:
        raise LevelOutOfRange(
            f"Expected no `level` and no `quantiles`: model {model.spec.name!r} predicts symbols, which have no order. Use "
            "`predict_proba`, or `num_samples`.",
            where="level",
        )
    if columns and not has_quantiles(model):
        raise LevelOutOfRange(
            f"Expected no `level` and no `quantiles`: model {model.spec.name!r} is not calibrated and has point forecasts only. "
            "Fit it with a specification whose valid_windows is 1 or more, or leave them out.",
            where="level",
        )


def build_table(
    forecasts: Sequence[Forecast], columns: Mapping[str, float], paths: Sequence[np.ndarray] = ()
) -> pd.DataFrame:
    """Returns one row per series and step ahead: `unique_id, ds, forecaster`, the quantiles, and the sample paths if given."""
    if not forecasts:
        return pd.DataFrame({"unique_id": [], "ds": [], MODEL_COLUMN: []})
    ds = [forecast.ds for forecast in forecasts]
    table = {
        "unique_id": np.repeat([forecast.id for forecast in forecasts], [len(timestamps) for timestamps in ds]),
        "ds": ds[0].append(ds[1:]),
        MODEL_COLUMN: np.concatenate([forecast.mean for forecast in forecasts]),
    }
    for name, quantile in columns.items():
        table[name] = np.concatenate([forecast.quantiles[quantile] for forecast in forecasts])
    if len(paths):
        samples = np.concatenate(paths, axis=1)
        table |= {f"{MODEL_COLUMN}-sample-{number}": values for number, values in enumerate(samples)}
    return pd.DataFrame(table)


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
