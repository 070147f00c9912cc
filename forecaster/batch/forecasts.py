"""Maps a table of histories to a table of forecasts and a table of the series that have none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from forecaster.data.forecast_table import Levels, plan_quantile_columns
from forecaster.data.frames.rows import ColumnNames
from forecaster.errors import ForecasterError
from forecaster.frequency.timestamps import normalize_frequency
from forecaster.installation import require_package
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]


class BatchResult(NamedTuple):
    """The forecasts of a table of histories.

    Attributes:
        forecasts: One row per series and step ahead: id, timestamp, `forecaster` and the columns of the quantiles. Id and
            timestamp have the names and types of the histories, timestamps as text become timestamps.
        rejects: One row per series without a forecast: `id, code, message`. The code is that of the error (`history_too_short`).
        warnings: One row per warning about a forecast: `id, message`.
        repairs: Messages about repairs of the table, as of `Panel.repairs`.
    """

    forecasts: pa.Table
    rejects: pa.Table
    warnings: pa.Table
    repairs: tuple[str, ...] = ()


def forecast_table(
    predictor: Predictor,
    table: Any,
    *,
    horizon: int | None = None,
    level: Levels = None,
    quantiles: Levels = None,
    joint: bool = False,
    future: Any = None,
    static: Any = None,
    columns: ColumnNames | None = None,
    freq: str | int | None = None,
    zone: str | None = None,
) -> BatchResult:
    """Forecasts every series of a table; a series that cannot be read or forecast is a row of the rejects.

    A series is read alone: its forecast does not depend on the other series of the table, so a data set may be cut anywhere
    between series. A table without rows has a result without rows.

    Args:
        predictor: The model and its engine.
        table: The histories, one row per series and timestamp: an Arrow table or record batch, or a frame of pandas or polars.
        horizon: Steps ahead; by default the model's.
        level: Intervals in percent: 80 gives `forecaster-lo-80` and `forecaster-hi-80`.
        quantiles: Quantiles between 0 and 1: 0.1 gives `forecaster-q-0.1`.
        joint: Whether the intervals bound whole paths.
        future: The covariates after the histories: id, timestamp and one column each. Series that the table lacks are ignored.
        static: The static features: id and one column each, one row per series. Series that the table lacks are ignored.
        columns: The names of the columns, if they are not `unique_id, ds, y`.
        freq: The frequency, in which absent rows count as gaps; by default that of the model, and a series with gaps between
            most of its rows is rejected.
        zone: The time zone of timestamps without an offset.
    Raises:
        MissingColumn, DuplicateColumn: The tables lack a column, or have it twice.
        InputError: `future` or `static` do not belong to the model or have two rows for a series.
        LevelOutOfRange, HorizonOutOfRange, FrequencyUnknown, ZoneUnknown: An argument is invalid.
        MissingPackage: pyarrow is not installed.
    """
    require_package("pyarrow", purpose="batch forecasts")
    from forecaster.batch import tables
    from forecaster.batch.reading import ReadOptions, read_series

    model, names = predictor.fitted_model, columns or ColumnNames()
    planned = plan_quantile_columns(level, quantiles)
    levels, steps = sorted(set(planned.values())), model.spec.horizon if horizon is None else horizon
    options = ReadOptions(
        names=names,
        freq=None if freq is None else normalize_frequency(freq, where="freq"),
        zone=zone,
        covariates=model.spec.covariates,
        static=model.spec.static_columns,
        channels=model.spec.channels,
        text_covariates=tuple(model.encoding.categories),
        model_freq=model.freq,
    )
    histories, style = tables.open_histories(table, options, future=future, static=static)
    read = read_series(histories, options)
    del histories  # ids and timestamps of all rows are no longer needed
    outcomes = predictor.forecast_batch(read.series, steps, levels=levels, joint=joint)
    forecasts = [outcome for outcome in outcomes if isinstance(outcome, Forecast)]
    refused = [
        (series.id, outcome)
        for series, outcome in zip(read.series, outcomes, strict=True)
        if isinstance(outcome, ForecasterError)
    ]
    return BatchResult(
        tables.build_forecasts(forecasts, planned, style, model_freq=model.freq),
        tables.build_rejects([*read.rejects, *refused], style),
        tables.build_warnings(forecasts, style),
        read.repairs,
    )
