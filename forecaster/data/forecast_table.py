"""Forecasts as one long table, in two sets of column names: by level (`mean`, `0.1`), and those of Nixtla's libraries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.data.symbols import decode_symbols
from forecaster.errors import LevelOutOfRange
from forecaster.frequency.timestamps import Timestamps, timestamps_to_int64
from forecaster.series import Forecast
from forecaster.shapes import Float64, Int

MODEL_COLUMN = "forecaster"
Levels = Sequence[int | float] | int | float | None
"""One level or several: percentages of intervals, or quantiles."""


def plan_quantile_columns(level: Levels, quantiles: Levels) -> dict[str, float]:
    """Returns the quantile of each column: the bounds of intervals (`level`, in percent), then single quantiles.

    Raises LevelOutOfRange.
    """
    columns: dict[str, float] = {}
    percents = parse_levels(level, "level")
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
    for quantile in parse_levels(quantiles, "quantiles"):
        if not 0 < quantile < 1:
            raise LevelOutOfRange(
                f"Expected `quantiles` between 0 and 1; found {quantile:g}. Write 0.9 for the upper bound of an 80 % interval.",
                where="quantiles",
            )
        columns[f"{MODEL_COLUMN}-q-{quantile:g}"] = quantile
    return columns


def parse_levels(values: Levels, argument: str) -> tuple[float, ...]:
    """Returns one number or several as a tuple; raises LevelOutOfRange for anything else."""
    if values is None:
        return ()
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
    return tuple(float(value) for value in listed)


class ForecastColumns(NamedTuple):
    """The columns of a table of forecasts, one value per series and step ahead.

    Attributes:
        ids: The id of each series.
        lengths: The number of steps of each series.
        ds: The timestamps.
        mean: The point forecasts.
        quantiles: The values of each column of quantiles.
    """

    ids: list[str]
    lengths: Int[np.ndarray, "series"]
    ds: Timestamps
    mean: Float64[np.ndarray, "row"]
    quantiles: dict[str, Float64[np.ndarray, "row"]]


def collect_columns(forecasts: Sequence[Forecast], columns: Mapping[str, float]) -> ForecastColumns:
    """Collects the columns of at least one forecast; `columns` has the level of each column of quantiles."""
    return ForecastColumns(
        [forecast.id for forecast in forecasts],
        np.array([len(forecast.mean) for forecast in forecasts]),
        _concatenate_timestamps([forecast.ds for forecast in forecasts]),
        np.concatenate([forecast.mean for forecast in forecasts]),
        {
            name: np.concatenate([forecast.quantiles[level] for forecast in forecasts])
            for name, level in columns.items()
        },
    )


def build_table(
    forecasts: Sequence[Forecast], columns: Mapping[str, float], paths: Sequence[np.ndarray] = ()
) -> pd.DataFrame:
    """Returns one row per series and step ahead: `unique_id, ds, forecaster`, the quantiles, and the sample paths if given."""
    if not forecasts:
        return pd.DataFrame({"unique_id": [], "ds": [], MODEL_COLUMN: []})
    samples = np.concatenate(paths, axis=1) if len(paths) else ()
    named_samples = {f"{MODEL_COLUMN}-sample-{number}": values for number, values in enumerate(samples)}
    return _to_frame(collect_columns(forecasts, columns), MODEL_COLUMN, named_samples)


def build_forecast_table(
    forecasts: Sequence[Forecast], levels: Sequence[float], *, vocabulary: Sequence[str] = ()
) -> pd.DataFrame:
    """Returns one row per series and step ahead: `unique_id, ds, mean`, and a column per level. All forecasts need all levels.

    With the vocabulary of a model of symbols, the columns are `unique_id, ds, symbol`.
    """
    value = "symbol" if vocabulary else "mean"
    if not forecasts:
        return pd.DataFrame(columns=["unique_id", "ds", value, *(f"{level:g}" for level in sorted(levels))])
    names = {f"{level:g}": level for level in forecasts[0].quantiles}
    if vocabulary:
        table = _to_frame(collect_columns(forecasts, {}), value, {})
        table[value] = decode_symbols(table[value].to_numpy(), vocabulary)
        return table
    return _to_frame(collect_columns(forecasts, names), "mean", {})


def _to_frame(columns: ForecastColumns, mean: str, others: Mapping[str, np.ndarray]) -> pd.DataFrame:
    ids = pd.array(columns.ids, dtype="str").take(np.repeat(np.arange(len(columns.ids)), columns.lengths))
    named = {"unique_id": ids, "ds": columns.ds, mean: columns.mean, **columns.quantiles, **others}
    return pd.DataFrame(named, copy=False)


def _concatenate_timestamps(parts: Sequence[Timestamps]) -> Timestamps:
    """Concatenates indices; series that end together share one, so most of them are the same object."""
    first = parts[0]
    distinct = {id(part): part for part in parts}
    if any(part.dtype != first.dtype for part in distinct.values()):
        appended: Timestamps = first.append(list(parts[1:]))
        return appended
    values = {key: timestamps_to_int64(part) for key, part in distinct.items()}
    ticks = np.concatenate([values[id(part)] for part in parts])
    if not isinstance(first, pd.DatetimeIndex):
        numbers: Timestamps = pd.Index(ticks)
        return numbers
    utc = pd.DatetimeIndex(ticks.view(f"M8[{first.unit}]"))
    return utc if first.tz is None else pd.DatetimeIndex(utc.tz_localize("UTC").tz_convert(first.tz))
