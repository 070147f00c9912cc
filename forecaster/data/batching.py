"""Batches of histories: padding to one array, truncation, value checks, and the timestamps of their forecasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from forecaster.errors import BadStamp, CovariateUnknown, InputError, NotANumber, ValueOutOfRange
from forecaster.frequency.timestamps import Timestamps
from forecaster.series import MAX_ABS_VALUE, Series
from forecaster.shapes import Bool, Float, Float64, Int


def pad_histories(
    histories: Sequence[Float64[np.ndarray, "_ *columns"]],
    *,
    context: int,
    fill_value: float,
    dtype: type[np.floating] = np.float64,
) -> Float[np.ndarray, "row context *columns"]:
    """Stacks the last `context` steps of every history; shorter histories are padded on the left with `fill_value`."""
    if all(len(history) >= context for history in histories):
        tails = [history[-context:] for history in histories]
        return np.concatenate(tails, dtype=dtype, casting="same_kind").reshape(
            len(histories), context, *histories[0].shape[1:]
        )
    rows = np.full((len(histories), context, *histories[0].shape[1:]), fill_value, dtype=dtype)
    for row, history in enumerate(histories):
        tail = history[-context:]
        rows[row, context - len(tail) :] = tail
    return rows


def stack_channels(series: Series, names: Sequence[str]) -> Float64[np.ndarray, "step channel"]:
    """Stacks the named channels of a series as columns; raises CovariateUnknown if one is missing."""
    error = _find_missing_channel(series, names)
    if error is not None:
        raise error
    return np.stack([series.channels[name] for name in names], axis=1) if names else np.zeros((len(series), 0))


def _find_missing_channel(series: Series, names: Sequence[str]) -> CovariateUnknown | None:
    missing = [name for name in names if name not in series.channels]
    if not missing:
        return None
    return CovariateUnknown(
        f"Series {series.id!r} needs the channels {', '.join(names)} for its history; {', '.join(missing)} not found among: "
        f"{', '.join(series.channels) or 'none'}. Send a value for each step, and null where it was not observed.",
        where=series.id,
    )


def compute_future_timestamps(series: Sequence[Series], horizon: int) -> Iterator[Timestamps | BadStamp]:
    """Yields the timestamps of each forecast, or the error for timestamps that leave the calendar.

    The series of a panel often end together; those with the same end share one index.
    """
    cache: dict[tuple[Any, ...], Timestamps] = {}
    for item in series:
        start = item.start
        # Datetimes of different zones or units may compare equal, so both are part of the key.
        kind = None if isinstance(start, int) else (start.tz, start.unit)
        key = (start, kind, item.freq, len(item.y))
        timestamps = cache.get(key)
        if timestamps is None:
            try:
                timestamps = cache[key] = item.future_timestamps(horizon)
            except BadStamp as error:
                yield error
                continue
        yield timestamps


def compute_usable_mask(
    histories: Sequence[Float64[np.ndarray, "_"]], lengths: Int[np.ndarray, "series"], *, context: int
) -> Bool[np.ndarray, "series"]:
    """Returns a mask of the histories whose values are certainly in range, with an observed value within the context.

    One value out of range, or one empty history, makes the mask False for all: they are then checked one by one.
    """
    values = np.concatenate(histories)
    if (np.abs(values) > MAX_ABS_VALUE).any() or not lengths.all():
        return np.zeros(len(lengths), dtype=bool)
    ends = np.cumsum(lengths)
    observed_counts = np.concatenate([[0], np.cumsum(~np.isnan(values))])
    return np.asarray(observed_counts[ends] > observed_counts[ends - np.minimum(lengths, context)])


def take_last(series: Series, steps: int) -> Series:
    """Returns the last steps of a series, with all future covariates."""
    if len(series) <= steps:
        return series
    cut = len(series) - steps
    return replace(
        series,
        start=series.timestamp_at(cut),
        y=series.y[cut:],
        covariates={name: values[cut:] for name, values in series.covariates.items()},
        channels={name: values[cut:] for name, values in series.channels.items()},
    )


def find_value_error(series: Series, channels: Sequence[str]) -> InputError | None:
    """Returns an error for a missing channel, or for an infinite or too large value of y or a channel; None if there is none."""
    error = _find_missing_channel(series, channels)
    if error is not None:
        return error
    columns = [(series.y, ""), *((series.channels[name], f" in the channel {name!r}") for name in channels)]
    for values, location in columns:
        is_too_large = np.abs(values) > MAX_ABS_VALUE  # infinite values too
        if not is_too_large.any():
            continue
        if np.isinf(values[is_too_large]).any():
            return NotANumber(
                f"Series {series.id!r} holds an infinite value{location}. Correct it, or send null.", where=series.id
            )
        return ValueOutOfRange(
            f"Series {series.id!r} holds a value{location} beyond {MAX_ABS_VALUE:g}, which is too large to compute with. "
            "Correct it, or send null.",
            where=series.id,
        )
    return None


def replace_non_finite(
    mean: Float64[np.ndarray, "horizon"], history: Float64[np.ndarray, "_"], *, season: int
) -> Float64[np.ndarray, "horizon"]:
    """Replaces the forecast by the seasonal naive from its first non-finite value on."""
    is_valid = np.isfinite(mean).cumprod().astype(bool)
    return np.where(is_valid, mean, repeat_season(history, season, len(mean)))


def repeat_season(history: Float64[np.ndarray, "_"], season: int, horizon: int) -> Float64[np.ndarray, "_"]:
    """Repeats the last season over the horizon (the seasonal naive).

    A phase whose last value is missing takes its latest observed value, or, if it has none, the latest observed value of all.
    """
    cycle = history[-season:]
    if len(cycle) < season or np.isnan(cycle).any():
        padding = np.full(season if not len(history) else -len(history) % season, np.nan)
        seasons = np.concatenate([padding, history]).reshape(-1, season)
        is_observed = ~np.isnan(seasons)
        latest_rows = len(seasons) - 1 - is_observed[::-1].argmax(axis=0)
        observed = history[~np.isnan(history)]
        last_value = observed[-1] if len(observed) else np.nan
        cycle = np.where(is_observed.any(axis=0), seasons[latest_rows, np.arange(season)], last_value)
    return np.resize(cycle, horizon)
