"""From what is asked to one outcome for each series, whatever form it was sent in and is answered in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from time import perf_counter
from typing import TypeVar

import numpy as np

from forecaster.errors import BadSpec, ForecasterError, LevelOutOfRange
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64
from serving.deadline import Deadline
from serving.deployment.slot import InUse
from serving.errors import Problem
from serving.forecasting.sampling import in_rounds
from serving.formats import series as reading
from serving.formats import state_token as state
from serving.formats.outcome import Answer, Outcome
from serving.formats.schema import Ask, AskedHistory, CarriedSeries
from serving.formats.series import ReadSeries
from serving.formats.state_token import Model, Seal
from serving.formats.timestamps import Numbers, Style

T = TypeVar("T")
_AT_ONCE = 1 << 17  # steps, known and foretold, that are rolled between two looks at the deadline: tens of milliseconds
_OF_BLEND = 64  # times that long take steps that a statistical model is fitted to


def outcomes(
    series: Sequence[AskedHistory], ask: Ask, model: InUse | None, deadline: Deadline, seal: Seal
) -> list[Outcome]:
    """One for each series, in order.

    Raises Problem if no model is in use, if the deadline passes, or if the model cannot give what is asked of all series
    (levels, samples).
    """
    model = in_use(model)
    read = read_all(series, ask, model, deadline, seal)
    good = [one.series for one in read if isinstance(one, ReadSeries)]
    means, paths = forecasts(good, ask, model, deadline), _paths(good, ask, model, deadline)
    return _assembled(series, ask, model, read, means, paths, seal, deadline)


def together(
    requests: Sequence[Sequence[AskedHistory]], ask: Ask, model: InUse, deadline: Deadline, seal: Seal
) -> list[list[Outcome]]:
    """Those of several requests that ask the same, without samples; rolled as one. Raises Problem as `outcomes` does."""
    read = [read_all(series, ask, model, deadline, seal) for series in requests]
    good = [[one.series for one in some if isinstance(one, ReadSeries)] for some in read]
    means = iter(forecasts([one for some in good for one in some], ask, model, deadline))
    return [
        _assembled(series, ask, model, some, list(islice(means, len(own))), [None] * len(own), seal, deadline)
        for series, some, own in zip(requests, read, good, strict=True)
    ]


def _assembled(
    series: Sequence[AskedHistory],
    ask: Ask,
    model: InUse,
    read: Sequence[ReadSeries | ForecasterError],
    means: Sequence[Forecast | ForecasterError],
    paths: Sequence[Float64[np.ndarray, "path horizon"] | ForecasterError | None],
    seal: Seal,
    deadline: Deadline,
) -> list[Outcome]:
    """Means and paths are those of the series that could be read."""
    general = general_warnings(ask.horizon, scored=model.predictor.forecaster.spec.horizon)
    told, drawn = iter(means), iter(paths)
    done: list[Outcome] = []
    for asked, one in zip(series, read, strict=True):
        if not isinstance(one, ReadSeries):
            done.append(Outcome(asked.id, one))
            continue
        found = answered(one.style, next(told), next(drawn), general, samples=ask.samples)
        if ask.return_state and isinstance(found, Answer):
            deadline.check()
            found = with_state(found, one.series, model, seal)
        done.append(Outcome(asked.id, found))
    return done


def forecasts(series: list[Series], ask: Ask, model: InUse, deadline: Deadline) -> list[Forecast | ForecasterError]:
    """Those of series that were read. Raises Problem if the deadline passes, or for levels that the model cannot give."""

    def some(part: list[Series]) -> list[Forecast | ForecasterError]:
        began = perf_counter()
        drift = {} if model.drift is None or not ask.levels else {"drift": model.drift}
        told = model.predictor.forecast_each(part, ask.horizon, levels=ask.levels, **drift)
        stand_ins = sum(isinstance(one, Forecast) and bool(one.warnings) for one in told)
        model.measure(len(part), perf_counter() - began, stand_ins)
        return told

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


def answered(
    style: Style | Numbers,
    forecast: Forecast | ForecasterError,
    paths: Float64[np.ndarray, "path horizon"] | ForecasterError | None,
    general: list[str],
    *,
    samples: int,
) -> Answer | ForecasterError:
    """A forecast and its paths, of which `samples` were asked, with what a reader should know."""
    if isinstance(forecast, ForecasterError):
        return forecast
    if isinstance(paths, ForecasterError):
        return paths
    warnings = [*general, *forecast.warnings]
    if paths is not None and not np.isfinite(paths).all():
        left = int((~np.isfinite(paths)).any(axis=1).sum())
        warnings.append(f"{left} of {len(paths)} samples left the finite numbers; they are null from there on.")
        paths = np.where(np.logical_and.accumulate(np.isfinite(paths), axis=1), paths, np.nan)
    fewer = paths is not None and len(paths) < samples
    if paths is not None and fewer:
        warnings.append(f"The deadline left time for {len(paths)} of {samples} samples.")
    return Answer(forecast, style, paths, warnings, fewer)


def with_state(found: Answer, one: Series, model: InUse, seal: Seal) -> Answer | ForecasterError:
    """The answer with a state to go on from after a series, or why there is none."""
    learned = model.predictor.forecaster
    try:
        carried = model.predictor.carry(one)
        told = state.issue(carried, found.style, model=Model(model.release.digest, learned.encoding), seal=seal)
    except ForecasterError as error:
        return error
    return found._replace(state=told)


def read_all(
    series: Sequence[AskedHistory], ask: Ask, model: InUse, deadline: Deadline, seal: Seal
) -> list[ReadSeries | ForecasterError]:
    """The histories as the model reads them, or what is wrong with each. Raises Problem if the deadline passes."""
    learned = model.predictor.forecaster
    whose = Model(model.release.digest, learned.encoding)
    read: list[ReadSeries | ForecasterError] = []
    starts: reading.Starts = {}
    for asked in series:
        deadline.check()
        try:
            if isinstance(asked, CarriedSeries):
                read.append(state.to_series(asked, model=whose, seal=seal, horizon=ask.horizon))
                continue
            read.append(
                reading.to_series(
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

    def draw(some: range, until: Deadline) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        def part(those: list[Series]) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
            return model.predictor.sample_each(those, ask.horizon, paths=len(some), seed=ask.seed, first=some.start)

        return _in_parts(part, series, longer=ask.horizon * len(some), at_once=_AT_ONCE, deadline=until)

    return in_rounds(draw, samples=ask.samples, steps=ask.horizon * max(1, len(series)), deadline=deadline)


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


def general_warnings(horizon: int, *, scored: int) -> list[str]:
    """What a reader should know of every forecast so far ahead."""
    if horizon <= scored:
        return []
    return [f"The horizon of {horizon} steps goes beyond the {scored} that this model was scored on."]
