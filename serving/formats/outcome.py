"""The outcome of one series of a request: a forecast, or an error. Every format encodes these records."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from forecaster.errors import ForecasterError
from forecaster.series import Forecast
from forecaster.shapes import Float64
from serving.formats.timestamps import IntegerStyle, TimestampStyle


class ForecastResult(NamedTuple):
    """The forecast of a series, with the sample paths and the state token that the request asks for.

    Attributes:
        forecast: The forecast.
        style: The format of its timestamps.
        paths: Sample paths; None if none were requested.
        warnings: Warnings for the reader of the forecast.
        has_fewer_paths: Whether there are fewer paths than requested.
        state_token: Token to continue the series from; None if none was requested.
        vocabulary: The symbols of the codes in forecast and paths; empty if they are numbers.
        probabilities: The probability of each symbol at each step; None if it was not requested.
    """

    forecast: Forecast
    style: TimestampStyle | IntegerStyle
    paths: Float64[np.ndarray, "path horizon"] | None
    warnings: list[str]
    has_fewer_paths: bool = False
    state_token: str | None = None
    vocabulary: tuple[str, ...] = ()
    probabilities: Float64[np.ndarray, "horizon symbol"] | None = None


class SeriesOutcome(NamedTuple):
    """The result of one series: a forecast, or the error that prevented it."""

    id: str
    result: ForecastResult | ForecasterError
