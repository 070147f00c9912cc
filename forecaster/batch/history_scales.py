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
    order = np.lexsort((timestamps_to_int64(ds), codes))
    codes, ds, values = codes[order], ds[order], y[is_used][order]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    first_rows = np.repeat(starts, np.diff(np.append(starts, len(codes))))
    positions = compute_grid_positions(ds, freq, first_rows).step
    return _average_differences(codes, positions, values, num_series=len(ids), season=season)


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
    longest = int(positions.max()) + 1
    keys = codes * (longest + season) + positions + season  # those of an earlier step lie between two series, or exist
    is_first = np.diff(keys, prepend=-1) > 0
    keys, codes, positions, values = keys[is_first], codes[is_first], positions[is_first], values[is_first]
    lengths = np.zeros(num_series, dtype=np.int64)
    np.maximum.at(lengths, codes, positions + 1)
    distinct, index = np.unique(lengths, return_inverse=True)
    lags = np.array([scale_season(int(length), season=season) for length in distinct])[index][codes]
    earlier = np.minimum(np.searchsorted(keys, keys - lags), len(keys) - 1)
    is_pair = keys[earlier] == keys - lags
    differences = np.abs(values[is_pair] - values[earlier[is_pair]])
    totals = np.bincount(codes[is_pair], weights=differences, minlength=num_series)
    pairs = np.bincount(codes[is_pair], minlength=num_series)
    has_scale = (pairs > 0) & (totals > 0)
    scales[has_scale] = totals[has_scale] / pairs[has_scale]
    return scales
