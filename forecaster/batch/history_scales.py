"""The scale of MASE of each history, which a batch stores beside its forecasts so that they can be scored without histories."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from forecaster.batch.manifest import ReadingOptions
from forecaster.data.frames.grid import compute_grid_positions
from forecaster.data.frames.timestamps import parse_timestamp_column
from forecaster.frequency.timestamps import timestamps_to_int64
from forecaster.metrics import scale_season
from forecaster.shapes import Float64, Int


def compute_history_scales(
    rows: pa.Table, ids: pa.Array, reading: ReadingOptions, *, freq: str, season: int
) -> Float64[np.ndarray, "series"]:
    """Returns the mean absolute seasonal difference of each history, the scale of MASE; NaN if there is none.

    Equal to `forecaster.metrics.seasonal_error` of each series, with a season of 1 for a history that is not longer.

    Args:
        rows: The histories.
        ids: The distinct ids of series that have a forecast, so that their timestamps lie on the grid.
        reading: How the columns are read.
        freq: The frequency of the model.
        season: Its season, in steps.
    """
    index = pc.index_in(rows.column(reading.id_column), value_set=ids)
    y = _to_numbers(rows.column(reading.y_column))
    is_used = np.isfinite(y) & pc.is_valid(index).to_numpy(zero_copy_only=False)
    codes = pc.fill_null(index, 0).to_numpy()[is_used].astype(np.int64)
    ds = parse_timestamp_column(
        rows.column(reading.ds_column).filter(pa.array(is_used)).to_pandas(),
        column=reading.ds_column,
        freq=freq,
        zone=reading.zone,
        series_codes=codes,
    ).timestamps
    ticks, values = timestamps_to_int64(ds), y[is_used]
    if not _is_sorted(codes, ticks):
        order = np.lexsort((ticks, codes))
        codes, ds, values = codes[order], ds[order], values[order]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    first_rows = np.repeat(starts, np.diff(np.append(starts, len(codes))))
    positions = compute_grid_positions(ds, freq, first_rows).step
    return _average_differences(codes, positions, values, num_series=len(ids), season=season)


def _is_sorted(codes: Int[np.ndarray, "row"], ticks: Int[np.ndarray, "row"]) -> bool:
    """Whether rows are sorted by series and timestamp."""
    steps = np.diff(codes)
    return bool(((steps > 0) | ((steps == 0) & (np.diff(ticks) >= 0))).all())


def _to_numbers(column: pa.ChunkedArray) -> Float64[np.ndarray, "row"]:
    """Returns a column as numbers; NaN for a missing value, and for text that is none."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.asarray(pd.to_numeric(column.to_pandas(), errors="coerce"), dtype=np.float64)
    return np.asarray(column.cast(pa.float64()).to_numpy())


def _average_differences(
    codes: Int[np.ndarray, "row"],
    positions: Int[np.ndarray, "row"],
    values: Float64[np.ndarray, "row"],
    *,
    num_series: int,
    season: int,
) -> Float64[np.ndarray, "series"]:
    """Returns the mean of |y_t - y_(t-season)| of each series, over rows that are sorted by series and position.

    A step without a row has no difference. Of two rows for one step the first counts.
    """
    scales = np.full(num_series, np.nan)
    if not len(codes):
        return scales
    keys = codes * (int(positions.max()) + 1 + season) + positions  # one key per step, with room between two series
    is_first = np.diff(keys, prepend=-1) > 0
    if not is_first.all():
        keys, codes, positions, values = keys[is_first], codes[is_first], positions[is_first], values[is_first]
    last_rows = np.append(np.flatnonzero(np.diff(codes)), len(codes) - 1)
    distinct, index = np.unique(positions[last_rows] + 1, return_inverse=True)
    season_of_length = np.array([scale_season(int(length), season=season) for length in distinct])
    lags = np.zeros(num_series, dtype=np.int64)
    lags[codes[last_rows]] = season_of_length[index]
    earlier_keys = keys - lags[codes]
    earlier = np.maximum(np.arange(len(keys)) - lags[codes], 0)  # where no step is absent
    if not np.array_equal(positions[1:], np.where(np.diff(codes) == 0, positions[:-1] + 1, 0)):
        earlier = np.searchsorted(keys, earlier_keys)
    is_pair = (keys[earlier] == earlier_keys) & (positions >= lags[codes])
    differences = np.abs(values[is_pair] - values[earlier[is_pair]])
    totals = np.bincount(codes[is_pair], weights=differences, minlength=num_series)
    pairs = np.bincount(codes[is_pair], minlength=num_series)
    has_scale = (pairs > 0) & (totals > 0)
    scales[has_scale] = totals[has_scale] / pairs[has_scale]
    return scales
