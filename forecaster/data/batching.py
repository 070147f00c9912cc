"""Several histories in one array: padding of different lengths, tails, and the timestamps of their forecasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from forecaster.errors import BadStamp, CovariateUnknown, InputError, NotANumber, ValueOutOfRange
from forecaster.frequency import Timestamps
from forecaster.series import MAX_ABS_VALUE, Series
from forecaster.shapes import Bool, Float64, Int


def pad_histories(
    histories: Sequence[Float64[np.ndarray, "_ *columns"]], *, context: int, fill_value: float
) -> Float64[np.ndarray, "row context *columns"]:
    """The last `context` steps of every history, with `fill_value` before those that are shorter."""
    if all(len(history) >= context for history in histories):
        return np.concatenate([history[-context:] for history in histories]).reshape(
            len(histories), context, *histories[0].shape[1:]
        )
    rows = np.full((len(histories), context, *histories[0].shape[1:]), fill_value)
    for row, history in enumerate(histories):
        tail = history[-context:]
        rows[row, context - len(tail) :] = tail
    return rows


def stack_channels(series: Series, names: Sequence[str]) -> Float64[np.ndarray, "step channel"]:
    """The channels of a series by name, side by side; raises CovariateUnknown if it lacks one."""
    missing = [name for name in names if name not in series.channels]
    if missing:
        raise CovariateUnknown(
            f"Series {series.id!r} needs the channels {', '.join(names)} for its history; {', '.join(missing)} not found among: "
            f"{', '.join(series.channels) or 'none'}. Send a value for each step, with gaps where it was not observed.",
            where=series.id,
        )
    return np.stack([series.channels[name] for name in names], axis=1) if names else np.zeros((len(series), 0))


def compute_future_timestamps(series: Sequence[Series], horizon: int) -> Iterator[Timestamps | BadStamp]:
    """The stamps of each forecast; series of a panel often end together, and are then given the same ones."""
    known: dict[tuple[Any, ...], Timestamps] = {}
    for one in series:
        start = one.start
        kind = (
            None if isinstance(start, int) else (start.tz, start.unit)
        )  # moments of two zones, or units, may be equal
        key = (start, kind, one.freq, len(one.y))
        ahead = known.get(key)
        if ahead is None:
            try:
                ahead = known[key] = one.future_timestamps(horizon)
            except BadStamp as error:
                yield error
                continue
        yield ahead


def compute_usable_mask(
    histories: Sequence[Float64[np.ndarray, "_"]], lengths: Int[np.ndarray, "series"], *, context: int
) -> Bool[np.ndarray, "series"]:
    """Which histories are certainly of numbers that can be reckoned with, and were observed within the context."""
    whole = np.concatenate(histories)
    if (np.abs(whole) > MAX_ABS_VALUE).any() or not lengths.all():
        return np.zeros(len(lengths), dtype=bool)
    ends = np.cumsum(lengths)
    seen = np.concatenate([[0], np.cumsum(~np.isnan(whole))])
    return np.asarray(seen[ends] > seen[ends - np.minimum(lengths, context)])


def take_last(series: Series, steps: int) -> Series:
    """The last steps of a series, and all that is known ahead."""
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
    """A channel that is not there, or a value of y or of a channel that cannot be reckoned with."""
    try:
        stack_channels(series, channels)
    except CovariateUnknown as fault:
        return fault
    for values, place in [(series.y, ""), *((series.channels[name], f" in the channel {name!r}") for name in channels)]:
        if np.isinf(values).any():
            return NotANumber(
                f"Series {series.id!r} holds an infinite value{place}. Correct it, or send null.", where=series.id
            )
        if (np.abs(values) > MAX_ABS_VALUE).any():
            return ValueOutOfRange(
                f"Series {series.id!r} holds a value{place} beyond {MAX_ABS_VALUE:g}, too large to be reckoned with. Correct it.",
                where=series.id,
            )
    return None


def replace_non_finite(
    mean: Float64[np.ndarray, "horizon"], history: Float64[np.ndarray, "_"], *, season: int
) -> Float64[np.ndarray, "horizon"]:
    """The forecast, with the seasonal naive in place of all that follows its first value that is not finite."""
    sound = np.isfinite(mean).cumprod().astype(bool)
    return np.where(sound, mean, repeat_season(history, season, len(mean)))


def repeat_season(history: Float64[np.ndarray, "_"], season: int, horizon: int) -> Float64[np.ndarray, "_"]:
    """The last season over and over; each place takes its latest observed value, or the latest of all where it has none."""
    cycle = history[-season:]
    if len(cycle) < season or np.isnan(cycle).any():
        padding = np.full(season if not len(history) else -len(history) % season, np.nan)
        seasons = np.concatenate([padding, history]).reshape(-1, season)
        seen = ~np.isnan(seasons)
        latest = len(seasons) - 1 - seen[::-1].argmax(axis=0)
        observed = history[~np.isnan(history)]
        last = observed[-1] if len(observed) else np.nan
        cycle = np.where(seen.any(axis=0), seasons[latest, np.arange(season)], last)
    return np.resize(cycle, horizon)
