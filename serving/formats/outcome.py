"""The outcome of one series of a request: its forecast and what goes with it, or an error. Every format writes these records."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from forecaster.errors import ForecasterError
from forecaster.series import Forecast
from forecaster.shapes import Float64
from serving.formats.timestamps import IntegerStyle, TimestampStyle


class ForecastResult(NamedTuple):
    """The forecast of a series, and what else its request asked for.

    Attributes:
        forecast: The forecast.
        style: How its stamps are to be written.
        paths: Sampled futures; None if none were asked for.
        warnings: What a reader should know of it.
        fewer: Whether there are fewer paths than were asked for.
        state: To go on from; None if none was asked for.
    """

    forecast: Forecast
    style: TimestampStyle | IntegerStyle
    paths: Float64[np.ndarray, "path horizon"] | None
    warnings: list[str]
    has_fewer_paths: bool = False
    state_token: str | None = None


class SeriesOutcome(NamedTuple):
    """What became of a series."""

    id: str
    result: ForecastResult | ForecasterError
