"""From what is asked to one outcome for each series, whatever form it was sent in and is answered in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np

from forecaster.errors import BadSpec, ForecasterError, LevelOutOfRange
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64
from serving import schema
from serving.deadline import Deadline
from serving.problem import Problem
from serving.schema import Ask, AskedHistory, ReadSeries
from serving.slot import InUse
from serving.stamps import Numbers, Style

T = TypeVar("T")
_AT_ONCE = 1 << 17  # steps, known and foretold, that are rolled between two looks at the deadline: tens of milliseconds
_OF_BLEND = 64  # times that long take steps that a statistical model is fitted to


class Answer(NamedTuple):
    """The forecast of a series, and what else its request asked for.

    Attributes:
        forecast: The forecast.
        style: How its stamps are to be written.
        paths: Sampled futures; None if none were asked for.
        warnings: What a reader should know of it.
    """

    forecast: Forecast
    style: Style | Numbers
    paths: Float64[np.ndarray, "path horizon"] | None
    warnings: list[str]


class Outcome(NamedTuple):
    """What became of a series."""

    id: str
    found: Answer | ForecasterError


def outcomes(series: Sequence[AskedHistory], ask: Ask, model: InUse | None, deadline: Deadline) -> list[Outcome]:
    """One for each series, in order.

    Raises Problem if no model is in use, if the deadline passes, or if the model cannot give what is asked of all series
    (levels, samples).
    """
    model = in_use(model)
    read = _read(series, ask, model, deadline)
    good = [one.series for one in read if isinstance(one, ReadSeries)]
    means, paths = forecasts(good, ask, model, deadline), _paths(good, ask, model, deadline)
    return _assembled(series, ask, model, read, means, paths)


def together(
    requests: Sequence[Sequence[AskedHistory]], ask: Ask, model: InUse, deadline: Deadline
) -> list[list[Outcome]]:
    """Those of several requests that ask the same, without samples; rolled as one. Raises Problem as `outcomes` does."""
    read = [_read(series, ask, model, deadline) for series in requests]
    good = [[one.series for one in some if isinstance(one, ReadSeries)] for some in read]
    means = iter(forecasts([one for some in good for one in some], ask, model, deadline))
    return [
        _assembled(series, ask, model, some, list(islice(means, len(own))), [None] * len(own))
        for series, some, own in zip(requests, read, good, strict=True)
    ]


def _assembled(
    series: Sequence[AskedHistory],
    ask: Ask,
    model: InUse,
    read: Sequence[ReadSeries | ForecasterError],
    means: Sequence[Forecast | ForecasterError],
    paths: Sequence[Float64[np.ndarray, "path horizon"] | ForecasterError | None],
) -> list[Outcome]:
    """Means and paths are those of the series that could be read."""
    general = _warnings(ask.horizon, scored=model.predictor.forecaster.spec.horizon)
    told, drawn = iter(means), iter(paths)
    done: list[Outcome] = []
    for asked, one in zip(series, read, strict=True):
        if isinstance(one, ReadSeries):
            done.append(Outcome(asked.id, _outcome(one, next(told), next(drawn), general)))
        else:
            done.append(Outcome(asked.id, one))
    return done


def forecasts(series: list[Series], ask: Ask, model: InUse, deadline: Deadline) -> list[Forecast | ForecasterError]:
    """Those of series that were read. Raises Problem if the deadline passes, or for levels that the model cannot give."""

    def some(part: list[Series]) -> list[Forecast | ForecasterError]:
        if model.drift is not None and ask.levels:
            return model.predictor.forecast_each(part, ask.horizon, levels=ask.levels, drift=model.drift)
        return model.predictor.forecast_each(part, ask.horizon, levels=ask.levels)

    at_once = _AT_ONCE // (_OF_BLEND if model.predictor.forecaster.blend else 1)
    found = _in_parts(some, series, longer=ask.horizon, at_once=at_once, deadline=deadline)
    model.note(model, series, found)
    return found


def in_use(model: InUse | None) -> InUse:
    """The model; raises Problem where there is none."""
    if model is None:
        raise Problem(
            "not_ready", "No model is in use yet. Try again later, or see /readyz.", headers={"retry-after": "1"}
        )
    return model


def _outcome(
    one: ReadSeries,
    forecast: Forecast | ForecasterError,
    paths: Float64[np.ndarray, "path horizon"] | ForecasterError | None,
    general: list[str],
) -> Answer | ForecasterError:
    if isinstance(forecast, ForecasterError):
        return forecast
    if isinstance(paths, ForecasterError):
        return paths
    warnings = [*general, *forecast.warnings]
    if paths is not None and not np.isfinite(paths).all():
        left = int((~np.isfinite(paths)).any(axis=1).sum())
        warnings.append(f"{left} of {len(paths)} samples left the finite numbers; they are null from there on.")
        paths = np.where(np.logical_and.accumulate(np.isfinite(paths), axis=1), paths, np.nan)
    return Answer(forecast, one.style, paths, warnings)


def _read(
    series: Sequence[AskedHistory], ask: Ask, model: InUse, deadline: Deadline
) -> list[ReadSeries | ForecasterError]:
    learned = model.predictor.forecaster
    read: list[ReadSeries | ForecasterError] = []
    starts: schema.Starts = {}
    for asked in series:
        deadline.check()
        try:
            read.append(
                schema.to_series(
                    asked, served=learned.freq, encoding=learned.encoding, horizon=ask.horizon, starts=starts
                )
            )
        except ForecasterError as error:
            read.append(error)
    return read


def _paths(
    series: list[Series], ask: Ask, model: InUse, deadline: Deadline
) -> Sequence[Float64[np.ndarray, "path horizon"] | ForecasterError | None]:
    if not ask.samples:
        return [None] * len(series)

    def some(part: list[Series]) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        return model.predictor.sample_each(part, ask.horizon, paths=ask.samples, seed=ask.seed)

    return _in_parts(some, series, longer=ask.horizon * ask.samples, at_once=_AT_ONCE, deadline=deadline)


def _in_parts(
    work: Callable[[list[Series]], list[T]], series: list[Series], *, longer: int, at_once: int, deadline: Deadline
) -> list[T]:
    """Some series at a time; even if there is none, for what is asked of all is judged whatever becomes of them."""
    rows = max(1, at_once // (max((len(one) for one in series), default=0) + longer))
    found: list[T] = []
    for first in range(0, max(1, len(series)), rows):
        deadline.check()
        try:
            found += work(series[first : first + rows])
        except (LevelOutOfRange, BadSpec) as error:
            raise Problem.of(error) from error
    return found


def _warnings(horizon: int, *, scored: int) -> list[str]:
    if horizon <= scored:
        return []
    return [f"The horizon of {horizon} steps goes beyond the {scored} that this model was scored on."]
