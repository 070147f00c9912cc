"""From a history in a request to a Series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from forecaster.data.encoding import Encoding
from forecaster.errors import CovariateUnknown, HistoryTooShort, NotANumber, ValueOutOfRange
from forecaster.frequency import Stamp, Step, at, offset
from forecaster.series import Series
from forecaster.shapes import Float64
from serving.formats import timestamps
from serving.formats.schema import AskedHistory, GridSeries, StampedSeries
from serving.formats.timestamps import Numbers, Style

LARGEST_COVARIATE = 1e30  # in spreads of the training data; the network reads float32


class Start(NamedTuple):
    """The beginning of a history, as many others in a request may begin."""

    stamp: Stamp
    style: Style | Numbers
    freq: str
    step: Step


Starts = dict[tuple[str | int, str | int], Start]


class ReadSeries(NamedTuple):
    """A history from a request, and how its stamps are to be written back."""

    series: Series
    style: Style | Numbers


def to_series(asked: AskedHistory, *, served: str, encoding: Encoding, horizon: int, starts: Starts) -> ReadSeries:
    """One history of a request as a Series; raises the InputError that stands in its way.

    Args:
        asked: The history.
        served: The frequency of the model in use; other frequencies are left to the Predictor to refuse.
        encoding: That of the model in use: which covariates are numbers, and which are text.
        horizon: Steps ahead, which must stay on the calendar.
        starts: Those that were read for this request; more are added.
    """
    if len(asked.y) == 0:
        raise HistoryTooShort(f"Series {asked.id!r} has no values. Send a history.", where=asked.id)
    y = np.array(asked.y, dtype=np.float64)  # None becomes NaN
    if isinstance(asked, GridSeries):
        start, style, freq, step = starts.get((asked.start, asked.freq)) or _start(asked, starts)
    else:
        assert isinstance(asked, StampedSeries), "there is no third kind"
        read, style = timestamps.read(asked.ds, where=asked.id)
        freq = timestamps.frequency(read, declared=asked.freq, served=served, where=asked.id)
        start, step = at(read, 0), offset(freq, where=asked.id)
    if step == offset(served):
        timestamps.check_room(start, step, len(y) + horizon, where=asked.id)
    columns = columns_of(asked.covariates, steps=len(y), encoding=encoding, where=asked.id)
    channels = channels_of(asked.channels, steps=len(y), where=asked.id)
    return ReadSeries(Series(asked.id, start, freq, y, columns, asked.static, channels), style)


def _start(asked: GridSeries, starts: Starts) -> Start:
    stamp, style = timestamps.read_one(asked.start, where=asked.id)
    freq = timestamps.declared_frequency(asked.freq, stamp, where=asked.id)
    one = starts[asked.start, asked.freq] = Start(stamp, style, freq, offset(freq, where=asked.id))
    return one


def columns_of(
    asked: Mapping[str, Sequence[float] | Sequence[str]], *, steps: int, encoding: Encoding, where: str
) -> dict[str, np.ndarray]:
    """The covariates of a series as arrays; whether they reach over the horizon is left to the Predictor."""
    lengths = sorted({len(values) for values in asked.values()})
    if len(lengths) > 1 or min(lengths, default=steps) < steps:
        raise CovariateUnknown(
            f"Expected covariates of one length, {steps} or more; those of series {where!r} have "
            f"{', '.join(map(str, lengths[:5]))}. Send each for every step of the history and of the horizon.",
            where=where,
        )
    return {name: column_of(name, values, encoding=encoding, where=where) for name, values in asked.items()}


def channels_of(
    asked: Mapping[str, Sequence[float | None]], *, steps: int, where: str
) -> dict[str, Float64[np.ndarray, "step"]]:
    """The channels of a series as arrays; which of them the model needs is left to the Predictor."""
    for name, values in asked.items():
        if len(values) != steps:
            raise CovariateUnknown(
                f"Expected {steps} values in the channel {name!r}, as many as in `y`; series {where!r} has {len(values)}. "
                "Send one for each step, null where it was not observed.",
                where=where,
            )
    return {name: np.array(values, dtype=np.float64) for name, values in asked.items()}


def column_of(name: str, values: Sequence[float] | Sequence[str], *, encoding: Encoding, where: str) -> np.ndarray:
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
