"""Frames of pandas, polars, pyarrow and others are read as long pandas frames; results are frames of the same library."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

import narwhals as nw
import pandas as pd

from forecaster.data.frames.rows import ColumnNames
from forecaster.errors import InputError, MissingColumn
from forecaster.installation import describe_missing_module


@dataclass(frozen=True, eq=False)
class FrameStyle:
    """What a result takes over from the frame that was given: its library, its column names, its ids and its timestamps.

    Attributes:
        names: The names of the columns `unique_id, ds, y`.
        ids: The ids as they were given, by their text; empty if they are text.
        time_type: The type of the timestamps in pandas, None to leave them as they are.
        library: The library of the frame; None for pandas.
        schema: The types of id and timestamps in that library.
    """

    names: ColumnNames = field(default_factory=ColumnNames)
    ids: pd.Series | None = None
    time_type: Any = None
    library: Any = None
    schema: tuple[Any, Any] | None = None

    def convert(self, table: pd.DataFrame) -> Any:
        """Converts a result, whose columns have the default names, to the library, names and types of the input."""
        frame = table.copy(deep=False)
        if self.ids is not None and "unique_id" in frame:
            codes, distinct = pd.factorize(frame["unique_id"])
            frame["unique_id"] = self.ids.loc[distinct].array.take(codes)
        for name in {"ds", "cutoff"} & set(frame.columns):
            if self.time_type is not None:
                frame[name] = _cast_timestamps(frame[name], self.time_type)
        frame = frame.rename(columns=dict(zip(ColumnNames(), self.names, strict=True)))
        return frame if self.library is None else self._to_library(frame)

    def _to_library(self, frame: pd.DataFrame) -> Any:
        from forecaster.batch.tables import to_arrow_column  # pyarrow converted the input, so it is installed

        table = import_module("pyarrow").table({name: to_arrow_column(frame[name]) for name in frame})
        converted = nw.from_arrow(table, backend=self.library)
        assert self.schema is not None
        id_type, time_type = self.schema
        for name, column_type in ((self.names.unique_id, id_type), (self.names.ds, time_type), ("cutoff", time_type)):
            if column_type is not None and name in converted.columns and converted.schema[name] != column_type:
                converted = converted.with_columns(nw.col(name).cast(column_type))
        return converted.to_native()


class InputFrame(NamedTuple):
    """The rows of an input frame, and the style of results."""

    rows: pd.DataFrame
    style: FrameStyle


def read_frame(data: Any, names: ColumnNames, *, extra_columns: Sequence[str] = ()) -> InputFrame:
    """Reads a frame of any library, in one of four shapes, as one row per series and timestamp.

    1. Long: columns for id, timestamps and values.
    2. One series: timestamps (a column or a pandas DatetimeIndex) and values, without ids.
    3. A pandas Series with a DatetimeIndex, or with ids and timestamps in its index.
    4. Wide: timestamps, and neither a column of ids nor one of values: every other column is a series with its name as id.

    Args:
        data: The frame.
        names: The names of its columns.
        extra_columns: Covariates, static features and channels, which a wide frame cannot have.
    Raises:
        InputError: The frame is of an unknown type or shape. Missing columns are reported later.
    """
    library, schema = None, None
    if isinstance(data, pd.Series):
        frame = _series_to_rows(data, names)
    elif isinstance(data, pd.DataFrame):
        frame = _index_to_columns(data, names)
    else:
        native = _open_frame(data)
        library = native.implementation
        types = [native.schema.get(name) for name in (names.unique_id, names.ds)]
        schema = (types[0], types[1] if types[1] is not None and types[1].is_temporal() else None)
        frame = _to_pandas(native)
    if names.unique_id not in frame and names.ds in frame and frame.columns.is_unique:
        if names.y not in frame:
            frame = _unpivot(frame, names, extra_columns)
        elif (
            not frame[names.ds].duplicated().any()
        ):  # otherwise the rows are of several series, and their ids are missing
            frame = frame.assign(**{names.unique_id: names.y})
    return InputFrame(frame, _build_style(frame, names, library, schema))


def read_future(data: Any, names: ColumnNames, *, argument: str) -> pd.DataFrame:
    """Reads a frame of future covariates or forecasts, one row per series and timestamp; errors name the argument."""
    frame = (
        _index_to_columns(data, names) if isinstance(data, pd.DataFrame) else _to_pandas(_open_frame(data, argument))
    )
    return frame.drop(columns=[name for name in (names.y,) if name in frame])


def _open_frame(data: Any, argument: str = "df") -> nw.DataFrame[Any]:
    try:
        return nw.from_native(data, eager_only=True)
    except TypeError as error:
        series = ", or a pandas Series with a DatetimeIndex" if argument == "df" else ""
        raise InputError(
            f"Expected a data frame of pandas, polars or pyarrow{series} for `{argument}`; found "
            f"{type(data).__module__.split('.')[0]}.{type(data).__name__}. Collect a lazy frame, or convert the data to a frame.",
            where=argument,
        ) from error


def _to_pandas(native: nw.DataFrame[Any]) -> pd.DataFrame:
    try:
        return native.to_pandas()
    except ModuleNotFoundError as error:
        raise describe_missing_module("pyarrow", purpose=f"frames of {native.implementation.value}") from error


def _series_to_rows(series: pd.Series, names: ColumnNames) -> pd.DataFrame:
    if {names.unique_id, names.ds} <= set(series.index.names):
        return series.rename(names.y).reset_index(level=[names.unique_id, names.ds])
    if not isinstance(series.index, (pd.DatetimeIndex, pd.PeriodIndex)):
        raise InputError(
            f"Expected a Series with a DatetimeIndex; its index is a {type(series.index).__name__}. Set the timestamps as its "
            f"index, or pass a frame with the columns {', '.join(names)}.",
            where="df",
        )
    series_id = names.y if series.name is None else series.name
    return pd.DataFrame({names.unique_id: series_id, names.ds: series.index, names.y: series.array})


def _index_to_columns(frame: pd.DataFrame, names: ColumnNames) -> pd.DataFrame:
    """Moves ids and timestamps from the index to columns; a DatetimeIndex of any name holds the timestamps."""
    in_index = [name for name in (names.unique_id, names.ds) if name in frame.index.names and name not in frame.columns]
    if in_index:
        return frame.reset_index(level=in_index)
    if names.ds not in frame.columns and isinstance(frame.index, (pd.DatetimeIndex, pd.PeriodIndex)):
        return frame.rename_axis(index=names.ds).reset_index()
    return frame


def _unpivot(frame: pd.DataFrame, names: ColumnNames, extra_columns: Sequence[str]) -> pd.DataFrame:
    """Converts a wide frame; a series begins with its first observed value."""
    columns = [name for name in frame.columns if name != names.ds]
    text = [str(name) for name in columns if not pd.api.types.is_numeric_dtype(frame[name])]
    if extra_columns or text or not columns:
        found = (
            f"the columns {', '.join(text[:5])} are not numbers"
            if text
            else f"there are also covariates, static features or channels ({', '.join(extra_columns)})"
            if extra_columns
            else "there are no others"
        )
        raise MissingColumn(
            f"Expected the columns {', '.join(names)}; found neither {names.unique_id!r} nor {names.y!r}. Such a frame is wide, "
            f"with one column of numbers for each series, but {found}. Rename the columns, or declare their names (`columns`).",
            where=names.y,
        )
    rows = frame.melt(id_vars=names.ds, value_vars=columns, var_name=names.unique_id, value_name=names.y)
    rows[names.unique_id] = rows[names.unique_id].infer_objects()  # numbers beside the text of the column of timestamps
    is_observed = rows[names.y].notna()
    return rows[is_observed.groupby(rows[names.unique_id], sort=False).cummax()].reset_index(drop=True)


def _build_style(frame: pd.DataFrame, names: ColumnNames, library: Any, schema: tuple[Any, Any] | None) -> FrameStyle:
    ids, time_type = None, None
    if names.unique_id in frame and frame.columns.is_unique:
        distinct = pd.Series(frame[names.unique_id].unique()).dropna()
        ids = distinct.set_axis(distinct.map(str).astype(object).array)
        ids = ids[~ids.index.duplicated()]
    if names.ds in frame and frame.columns.is_unique and library is None:
        time_type = frame[names.ds].dtype
        if not (pd.api.types.is_datetime64_any_dtype(time_type) or isinstance(time_type, pd.PeriodDtype)):
            time_type = None
    return FrameStyle(names, ids, time_type, library, schema)


def _cast_timestamps(values: pd.Series, time_type: Any) -> pd.Series:
    if isinstance(time_type, pd.PeriodDtype):
        periods: pd.Series = values.dt.to_period(time_type.freq)
        return periods
    with suppress(TypeError, ValueError):  # such as a declared zone, which the input does not have
        return values.astype(time_type)
    return values
