"""From a history in a request to a Series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from forecaster.data.encoding import Encoding
from forecaster.errors import CovariateUnknown, HistoryTooShort, NotANumber, ValueOutOfRange
from forecaster.frequency import Offset, Timestamp, parse_frequency, timestamp_at
from forecaster.series import Series
from forecaster.shapes import Float64
from serving.formats import timestamps
from serving.formats.schema import GridSeries, SeriesInput, TimestampedSeries
from serving.formats.timestamps import IntegerStyle, TimestampStyle

LARGEST_COVARIATE = 1e30  # in spreads of the training data; the network reads float32


class ParsedStart(NamedTuple):
    """The beginning of a history, as many others in a request may begin."""

    timestamp: Timestamp
    style: TimestampStyle | IntegerStyle
    freq: str
    step: Offset


StartCache = dict[tuple[str | int, str | int], ParsedStart]


class ParsedSeries(NamedTuple):
    """A history from a request, and how its stamps are to be written back."""

    series: Series
    style: TimestampStyle | IntegerStyle


def parse_series(
    series_input: SeriesInput, *, model_freq: str, encoding: Encoding, horizon: int, start_cache: StartCache
) -> ParsedSeries:
    """One history of a request as a Series; raises the InputError that stands in its way.

    Args:
        asked: The history.
        served: The frequency of the model in use; other frequencies are left to the Predictor to refuse.
        encoding: That of the model in use: which covariates are numbers, and which are text.
        horizon: Steps ahead, which must stay on the calendar.
        starts: Those that were read for this request; more are added.
    """
    if len(series_input.y) == 0:
        raise HistoryTooShort(f"Series {series_input.id!r} has no values. Send a history.", where=series_input.id)
    y = np.array(series_input.y, dtype=np.float64)  # None becomes NaN
    if isinstance(series_input, GridSeries):
        start, style, freq, step = start_cache.get((series_input.start, series_input.freq)) or _parse_start(
            series_input, start_cache
        )
    else:
        assert isinstance(series_input, TimestampedSeries), "there is no third kind"
        read, style = timestamps.parse_timestamps(series_input.ds, where=series_input.id)
        freq = timestamps.resolve_frequency(
            read, declared=series_input.freq, model_freq=model_freq, where=series_input.id
        )
        start, step = timestamp_at(read, 0), parse_frequency(freq, where=series_input.id)
    if step == parse_frequency(model_freq):
        timestamps.validate_range(start, step, len(y) + horizon, where=series_input.id)
    columns = parse_covariates(series_input.covariates, steps=len(y), encoding=encoding, where=series_input.id)
    channels = parse_channels(series_input.channels, steps=len(y), where=series_input.id)
    return ParsedSeries(Series(series_input.id, start, freq, y, columns, series_input.static, channels), style)


def _parse_start(grid_series: GridSeries, start_cache: StartCache) -> ParsedStart:
    stamp, style = timestamps.parse_single_timestamp(grid_series.start, where=grid_series.id)
    freq = timestamps.normalize_frequency(grid_series.freq, stamp, where=grid_series.id)
    one = start_cache[grid_series.start, grid_series.freq] = ParsedStart(
        stamp, style, freq, parse_frequency(freq, where=grid_series.id)
    )
    return one


def parse_covariates(
    covariates: Mapping[str, Sequence[float] | Sequence[str]], *, steps: int, encoding: Encoding, where: str
) -> dict[str, np.ndarray]:
    """The covariates of a series as arrays; whether they reach over the horizon is left to the Predictor."""
    lengths = sorted({len(values) for values in covariates.values()})
    if len(lengths) > 1 or min(lengths, default=steps) < steps:
        raise CovariateUnknown(
            f"Expected covariates of one length, {steps} or more; those of series {where!r} have "
            f"{', '.join(map(str, lengths[:5]))}. Send each for every step of the history and of the horizon.",
            where=where,
        )
    return {name: parse_covariate(name, values, encoding=encoding, where=where) for name, values in covariates.items()}


def parse_channels(
    channels: Mapping[str, Sequence[float | None]], *, steps: int, where: str
) -> dict[str, Float64[np.ndarray, "step"]]:
    """The channels of a series as arrays; which of them the model needs is left to the Predictor."""
    for name, values in channels.items():
        if len(values) != steps:
            raise CovariateUnknown(
                f"Expected {steps} values in the channel {name!r}, as many as in `y`; series {where!r} has {len(values)}. "
                "Send one for each step, null where it was not observed.",
                where=where,
            )
    return {name: np.array(values, dtype=np.float64) for name, values in channels.items()}


def parse_covariate(
    name: str, values: Sequence[float] | Sequence[str], *, encoding: Encoding, where: str
) -> np.ndarray:
    """One covariate as an array, of the kind that the model knows it by; raises the InputError that stands in its way."""
    if isinstance(values[0], str):
        if name in encoding.numeric:
            raise NotANumber(
                f"Expected numbers in the covariate {name!r}; series {where!r} has text. Send numbers.", where=where
            )
        return np.array(values, dtype=object)
    if name in encoding.categories:
        raise CovariateUnknown(
            f"Expected text in the covariate {name!r}; series {where!r} has numbers. Send its categories.", where=where
        )
    column = np.array(values, dtype=np.float64)
    mean, spread = encoding.numeric.get(name, (0.0, 1.0))
    with np.errstate(over="ignore"):
        sizes = np.abs((column - mean) / spread)
    if (sizes > LARGEST_COVARIATE).any():
        raise ValueOutOfRange(
            f"Series {where!r} holds a value in the covariate {name!r} that is too large to be reckoned with: "
            f"{sizes.max():g} times its usual spread. Correct it.",
            where=where,
        )
    return column
