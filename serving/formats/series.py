"""Converts the histories of a request to Series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from forecaster.data.encoding import Encoding
from forecaster.data.symbols import encode_symbols
from forecaster.errors import (
    CovariateUnknown,
    HistoryTooShort,
    NotANumber,
    NotASymbol,
    SeasonMismatch,
    ValueOutOfRange,
)
from forecaster.frequency.names import have_equal_periods
from forecaster.frequency.timestamps import Offset, Timestamp, parse_frequency, timestamp_at
from forecaster.series import Series
from forecaster.shapes import Float64
from forecaster.spec import Spec
from serving.deployment.slot import FittedModelProtocol
from serving.formats import timestamps
from serving.formats.schema import BaseSeries, GridSeries, SeriesInput, TimestampedSeries
from serving.formats.timestamps import IntegerStyle, TimestampStyle

LARGEST_COVARIATE = 1e30  # in standard deviations of the training data; the network computes in float32


class ParsedStart(NamedTuple):
    """The parsed start and frequency of a history, which many histories of a request share."""

    timestamp: Timestamp
    style: TimestampStyle | IntegerStyle
    freq: str
    step: Offset


StartCache = dict[tuple[str | int, str | int], ParsedStart]


class ParsedSeries(NamedTuple):
    """A history from a request.

    Attributes:
        series: The history.
        style: The style in which its timestamps are written in the response.
        season: Its season, if the request declares one.
        warnings: Warnings about what the model ignores.
    """

    series: Series
    style: TimestampStyle | IntegerStyle
    season: int | None = None
    warnings: tuple[str, ...] = ()


def parse_series(
    series_input: SeriesInput,
    *,
    model: FittedModelProtocol,
    horizon: int,
    start_cache: StartCache,
    is_pretrained: bool = False,
) -> ParsedSeries:
    """Converts one history of a request to a Series; raises InputError if it is not valid.

    Args:
        series_input: The history.
        model: The model in use: its columns, their types and its frequency. The Predictor rejects other frequencies.
        horizon: Number of forecast steps, whose timestamps must be representable.
        start_cache: The starts parsed for this request so far; this call may add one.
        is_pretrained: Whether the model is the pretrained network, which has no frequency and season of its own.
    """
    if len(series_input.y) == 0:
        raise HistoryTooShort(
            f"Expected at least one value; series {series_input.id!r} has none. Send a history.", where=series_input.id
        )
    warnings: tuple[str, ...] = ()
    if is_pretrained:
        series_input, warnings = drop_columns(series_input)
    else:
        validate_column_names(series_input, model.spec)
        validate_season(series_input.season, model.season, where=series_input.id)
    y = parse_values(series_input, model.spec)
    if isinstance(series_input, GridSeries):
        start, style, freq, step = start_cache.get((series_input.start, series_input.freq)) or _parse_start(
            series_input, start_cache
        )
    else:
        assert isinstance(series_input, TimestampedSeries), "continued series are parsed by parse_token_series"
        index, style = timestamps.parse_timestamps(series_input.ds, where=series_input.id)
        freq = timestamps.resolve_frequency(
            index, declared=series_input.freq, model_freq=None if is_pretrained else model.freq, where=series_input.id
        )
        start, step = timestamp_at(index, 0), parse_frequency(freq, where=series_input.id)
    if is_pretrained or have_equal_periods(freq, model.freq, start):
        timestamps.validate_range(start, step, len(y) + horizon, where=series_input.id)
    covariates = parse_covariates(series_input.covariates, steps=len(y), encoding=model.encoding, where=series_input.id)
    channels = parse_channels(series_input.channels, steps=len(y), where=series_input.id)
    series = Series(series_input.id, start, freq, y, covariates, series_input.static, channels)
    return ParsedSeries(series, style, series_input.season, warnings)


def parse_values(series_input: SeriesInput, spec: Spec) -> Float64[np.ndarray, "step"]:
    """Returns the values of a history, NaN where missing; of symbols, their codes in the vocabulary of the model.

    Raises NotASymbol for numbers to a model of symbols, NotANumber for the reverse.
    """
    if series_input.symbols is None:
        if spec.head.is_symbolic and len(series_input.y):
            raise NotASymbol(
                f"Expected `symbols`, because the model in use ({spec.name!r}) predicts symbols; series {series_input.id!r} has "
                "numbers in `y`. Send its symbols, as texts.",
                where=series_input.id,
            )
        return np.array(series_input.y, dtype=np.float64)  # None becomes NaN
    if not spec.head.is_symbolic:
        raise NotANumber(
            f"Expected numbers in `y`, because the model in use ({spec.name!r}) predicts numbers; series {series_input.id!r} has "
            "`symbols`. Send its values, or use a model of symbols.",
            where=series_input.id,
        )
    return encode_symbols(series_input.symbols, spec.head.vocabulary)


def _parse_start(grid_series: GridSeries, start_cache: StartCache) -> ParsedStart:
    timestamp, style = timestamps.parse_single_timestamp(grid_series.start, where=grid_series.id)
    freq = timestamps.normalize_frequency(grid_series.freq, timestamp, where=grid_series.id)
    parsed_start = ParsedStart(timestamp, style, freq, parse_frequency(freq, where=grid_series.id))
    start_cache[grid_series.start, grid_series.freq] = parsed_start
    return parsed_start


SeriesInputT = TypeVar("SeriesInputT", bound=SeriesInput)


def drop_columns(series_input: SeriesInputT) -> tuple[SeriesInputT, tuple[str, ...]]:
    """Returns a history without its covariates, static features and channels, and a warning if it had any."""
    columns = {
        "covariates": series_input.covariates,
        "static features": series_input.static,
        "channels": series_input.channels,
    }
    present = [f"{kind} {', '.join(map(repr, names))}"[:200] for kind, names in columns.items() if names]
    if not present:
        return series_input, ()
    assert isinstance(series_input, BaseSeries), "every format builds one of the models of the schema"
    warning = f"The pretrained network reads only the values of a series; it ignores the {' and the '.join(present)}."
    return series_input.model_copy(update={"covariates": {}, "static": {}, "channels": {}}), (warning,)


def validate_season(declared: int | None, season: int, *, where: str) -> None:
    """Raises SeasonMismatch for a declared season that is not that of the model or of a state."""
    if declared not in (None, season):
        raise SeasonMismatch(
            f"Expected a season of {season} steps, which is that of the model in use or of the state; found one of {declared}. "
            "Leave `season` out, or send the history to a service of the pretrained network.",
            where=where,
        )


def validate_column_names(series_input: SeriesInput, spec: Spec) -> None:
    """Raises CovariateUnknown for a covariate, static feature or channel that the model does not read."""
    static = spec.static if spec.group is None else (*spec.static, spec.group)
    for kind, columns, names in (
        ("covariates", series_input.covariates, spec.covariates),
        ("static features", series_input.static, static),
        ("channels", series_input.channels, spec.channels),
    ):
        unknown = [name for name in columns if name not in names]
        if unknown:
            raise CovariateUnknown(
                f"Expected only the {kind} that the model reads ({', '.join(dict.fromkeys(names)) or 'none'}); series "
                f"{series_input.id!r} has {', '.join(map(repr, unknown))[:300]}. Correct the names, or leave them out.",
                where=series_input.id,
            )


def parse_covariates(
    covariates: Mapping[str, Sequence[float] | Sequence[str]], *, steps: int, encoding: Encoding, where: str
) -> dict[str, np.ndarray]:
    """Returns the covariates of a series as arrays; the Predictor validates that they cover the horizon."""
    lengths = sorted({len(values) for values in covariates.values()})
    if len(lengths) > 1 or min(lengths, default=steps) < steps:
        raise CovariateUnknown(
            f"Expected covariates of equal length, at least {steps}; those of series {where!r} have "
            f"{', '.join(map(str, lengths[:5]))} values. Send each for every step of the history and the horizon.",
            where=where,
        )
    return {name: parse_covariate(name, values, encoding=encoding, where=where) for name, values in covariates.items()}


def parse_channels(
    channels: Mapping[str, Sequence[float | None]], *, steps: int, where: str
) -> dict[str, Float64[np.ndarray, "step"]]:
    """Returns the channels of a series as arrays; the Predictor validates that the model's channels are there."""
    for name, values in channels.items():
        if len(values) != steps:
            raise CovariateUnknown(
                f"Expected {steps} values in the channel {name!r}, as many as in `y`; series {where!r} has {len(values)}. "
                "Send one for each step, and null for missing values.",
                where=where,
            )
    return {name: np.array(values, dtype=np.float64) for name, values in channels.items()}


def parse_covariate(
    name: str, values: Sequence[float] | Sequence[str], *, encoding: Encoding, where: str
) -> np.ndarray:
    """Returns one covariate as an array of the type the model was trained with; raises InputError if it is not valid."""
    if isinstance(values[0], str):
        if name in encoding.numeric:
            raise NotANumber(
                f"Expected numbers in the covariate {name!r}; series {where!r} has text. Send numbers.", where=where
            )
        return np.array(values, dtype=object)
    if name in encoding.categories:
        raise CovariateUnknown(
            f"Expected text in the covariate {name!r}; series {where!r} has numbers. Send category labels.", where=where
        )
    column = np.array(values, dtype=np.float64)
    mean, spread = encoding.numeric.get(name, (0.0, 1.0))
    with np.errstate(over="ignore"):
        sizes = np.abs((column - mean) / spread)
    if (sizes > LARGEST_COVARIATE).any():
        raise ValueOutOfRange(
            f"Expected values of the covariate {name!r} within {LARGEST_COVARIATE:g} standard deviations of the training data; "
            f"series {where!r} has one at {sizes.max():g}. Correct it.",
            where=where,
        )
    return column
