"""Appends the future of the covariates, a frame of its own, to the rows of the histories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from forecaster.data.frames.rows import ColumnNames
from forecaster.data.frames.timestamps import parse_timestamp_column
from forecaster.errors import InputError


def append_future(
    rows: pd.DataFrame,
    future: pd.DataFrame,
    names: ColumnNames,
    *,
    covariates: Sequence[str],
    static: Sequence[str],
    zone: str | None,
) -> pd.DataFrame:
    """Returns the rows, followed in each series by its future rows, which get the static features of their series.

    Args:
        rows: The histories, with valid columns.
        future: Ids, timestamps and covariates after the histories; the ids may be absent if there is one series.
        names: The names of the columns `unique_id, ds, y`.
        covariates: The covariates, which the future must have.
        static: The static features.
        zone: The time zone of timestamps without an offset.
    Raises:
        InputError: The future does not belong to the histories; the message names it `X_df`.
    """
    later = future
    if names.unique_id not in later and names.unique_id in rows and rows[names.unique_id].nunique() == 1:
        later = later.assign(**{names.unique_id: rows[names.unique_id].iloc[0]})
    missing = [name for name in (names.unique_id, names.ds, *covariates) if name not in later]
    if missing:
        advice = "Add them." if set(missing) <= set(covariates) else "Add them, or declare their names (`columns`)."
        raise InputError(
            f"Expected the columns {', '.join([names.unique_id, names.ds, *covariates])} in `X_df`; "
            f"{', '.join(missing)} not found. {advice}",
            where="X_df",
        )
    distinct = rows[names.unique_id].unique()
    later_distinct = later[names.unique_id].unique()
    unknown = set(map(str, later_distinct)) - set(map(str, distinct))
    if unknown:
        raise InputError(
            f"Expected series of the histories in `X_df`; found {min(unknown)!r}, which has none. Leave it out.",
            where="X_df",
        )
    ids = {str(series_id): series_id for series_id in distinct}
    later = later.assign(**{names.unique_id: later[names.unique_id].map(str).map(ids)})
    if pd.api.types.is_datetime64_any_dtype(rows[names.ds]) and not pd.api.types.is_datetime64_any_dtype(
        later[names.ds]
    ):
        codes, _ = pd.factorize(later[names.unique_id])
        has_offset = isinstance(rows[names.ds].dtype, pd.DatetimeTZDtype)  # else both get the zone together, later
        timestamps = parse_timestamp_column(
            later[names.ds],
            column=names.ds,
            freq=None,
            zone=zone if has_offset else None,
            series_codes=codes.astype(np.int64),
        ).timestamps
        later = later.assign(**{names.ds: timestamps})
    absent = [name for name in static if name not in later]
    if absent:
        features = rows.drop_duplicates(names.unique_id)[[names.unique_id, *absent]]
        later = later.merge(features, on=names.unique_id, how="left")
    _refuse_overlap(rows, later, names)
    both = pd.concat([rows, later[[name for name in rows.columns if name in later]]], ignore_index=True)
    codes, _ = pd.factorize(both[names.unique_id])
    return both.iloc[np.argsort(codes, kind="stable")].reset_index(drop=True)


def _refuse_overlap(rows: pd.DataFrame, later: pd.DataFrame, names: ColumnNames) -> None:
    """Raises InputError for a row of `X_df` whose timestamp a history has with a value."""
    keys = [names.unique_id, names.ds]
    if rows[names.ds].dtype != later[names.ds].dtype:
        return  # the same text may be another timestamp; a duplicate is refused later
    observed = pd.MultiIndex.from_frame(rows.loc[rows[names.y].notna(), keys])
    repeated = pd.MultiIndex.from_frame(later[keys]).isin(observed)
    if repeated.any():
        first = later[repeated].iloc[0]
        raise InputError(
            f"Expected rows after the histories in `X_df`; series {str(first[names.unique_id])!r} has a value at "
            f"{first[names.ds]} already. Leave out the {int(repeated.sum())} rows of the past.",
            where="X_df",
        )
