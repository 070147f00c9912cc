"""Errors and warnings of the Python API: errors name its arguments, and warnings are given once for each kind."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from numbers import Number
from pathlib import Path
from types import FrameType
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np

from forecaster.errors import ForecasterError, HorizonOutOfRange, InputError, rename_arguments
from forecaster.series import Forecast, Panel
from forecaster.spec import MAX_STEPS

_COLUMN_ARGUMENTS = {
    "columns": "`id_col`, `time_col`, `target_col` of `Forecaster`, `Forecaster.pretrained` or `Forecaster.load`"
}
_VARYING_TEXT = re.compile(r"'[^']*'|-?\d[\d.,e+-]*")
_P = ParamSpec("_P")
_T = TypeVar("_T")


class DataWarning(UserWarning):
    """The data were repaired, or a part of them was left out."""


class ForecastWarning(UserWarning):
    """Some forecasts are missing or uncertain (`Forecaster.warnings` has a row for each), or a naive forecast was better."""


def with_argument_names(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Makes errors name the arguments of this class, where those of the functions beneath have other names."""

    @wraps(function)
    def call(*arguments: _P.args, **options: _P.kwargs) -> _T:
        try:
            return function(*arguments, **options)
        except ForecasterError as error:
            error.message = rename_arguments(error.message, _COLUMN_ARGUMENTS)
            error.args = (error.message,)
            raise

    return call


class CollectedForecasts(NamedTuple):
    """The forecasts of those series that have one, and all warnings and errors: the id of the series and the message."""

    forecasts: list[Forecast]
    warnings: list[tuple[str, str]]


def collect_forecasts(panel: Panel, outcomes: Sequence[Forecast | ForecasterError]) -> CollectedForecasts:
    """Separates forecasts from errors, and gives one warning for each kind; raises the first error if there is no forecast."""
    forecasts = [outcome for outcome in outcomes if isinstance(outcome, Forecast)]
    errors = [outcome for outcome in outcomes if isinstance(outcome, ForecasterError)]
    if errors and not forecasts:
        raise errors[0]
    if errors:
        _warn(
            f"{len(errors)} of {len(outcomes)} series have no forecast, the first: {errors[0].message} All are in `warnings`.",
            ForecastWarning,
        )
    kinds: dict[str, list[tuple[str, str]]] = {}
    for forecast in forecasts:
        for message in forecast.warnings:
            kinds.setdefault(_VARYING_TEXT.sub("", message), []).append((forecast.id, message))
    for found in kinds.values():
        others = f", and {len(found) - 1} more in `warnings`" if len(found) > 1 else ""
        _warn(f"Series {found[0][0]!r}{others}: {found[0][1]}", ForecastWarning)
    details = [
        (series.id, message)
        for series, outcome in zip(panel.series, outcomes, strict=True)
        for message in (outcome.warnings if isinstance(outcome, Forecast) else (outcome.message,))
    ]
    return CollectedForecasts(forecasts, details)


def validate_counts(**counts: int | None) -> None:
    """Raises InputError, with the name of the argument, for a number that is below 1 or not whole."""
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1):
            raise InputError(
                f"Expected a whole number of at least 1 for `{name}`; found {_describe(count)}. Use a positive number.",
                where=name,
            )


def validate_horizon(horizon: int | None) -> None:
    """Raises InputError for a horizon that is not a whole number of at least 1, HorizonOutOfRange for one that is too long."""
    validate_counts(horizon=horizon)
    if horizon is not None and horizon > MAX_STEPS:
        raise HorizonOutOfRange(
            f"Expected a `horizon` of at most {MAX_STEPS} steps; found {horizon}. Forecast fewer steps, or use a model of a "
            "coarser frequency.",
            where="horizon",
        )


def _describe(value: object) -> str:
    """Returns the text of a number, or the type of anything else: a frame is long."""
    return repr(value) if isinstance(value, (str, Number)) else f"an object of type {type(value).__name__}"


def warn_about_data(messages: Iterable[str]) -> None:
    """Gives a `DataWarning` for each message."""
    for message in messages:
        _warn(message, DataWarning)


def warn_about_forecasts(message: str) -> None:
    """Gives a `ForecastWarning`."""
    _warn(message, ForecastWarning)


def _warn(message: str, category: type[Warning]) -> None:
    """Warns at the line that called the API."""
    frame: FrameType | None = sys._getframe(1)
    stack_level = 2
    while frame is not None and frame.f_code.co_filename.startswith(str(Path(__file__).parent)):
        frame, stack_level = frame.f_back, stack_level + 1
    warnings.warn(message, category, stacklevel=stack_level)
