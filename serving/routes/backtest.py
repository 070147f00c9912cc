"""`POST /v1/backtest`: how the model would have done at the end of the histories that are sent, beside seasonal naive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from forecaster.data.batching import repeat_season
from forecaster.data.split import origins
from forecaster.errors import ForecasterError, HistoryTooShort
from forecaster.frequency import earlier, tell
from forecaster.metrics import mae, nanmean, seasonal_error, smape
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import InUse
from serving.errors import Problem
from serving.forecasting.outcomes import forecasts, in_use
from serving.formats import chunked_json, limits, parsing, schema
from serving.formats import series as reading
from serving.formats.schema import Ask, AskedSeries, Levels, ModelName, SeriesError, Strict
from serving.settings import Settings

MOST_WINDOWS = 100
Perhaps = float | None  # null where nothing could be measured


class BacktestRequest(Strict):
    """Some histories whose ends are foretold."""

    series: list[AskedSeries] = Field(min_length=1, description="scored one by one, in order")
    horizon: int | None = Field(default=None, ge=1, description="steps ahead; the model's own, if not given")
    windows: int = Field(
        default=3,
        ge=1,
        le=MOST_WINDOWS,
        description="rolling origins of each series, the last a horizon before its end",
    )
    stride: int | None = Field(default=None, ge=1, description="steps between origins; a horizon, if not given")
    levels: Levels = Field(default=[], description="of quantiles whose coverage is measured")
    deadline_ms: int | None = Field(default=None, ge=1, description="as of /v1/forecast")


class Scores(Strict):
    """Errors over all windows, and by step ahead."""

    mase: Perhaps = Field(
        description="mean absolute error over that of seasonal naive before the first origin (Hyndman and Koehler 2006)"
    )
    mae: Perhaps
    smape: Perhaps = Field(description="0 to 200")
    mase_by_step: list[Perhaps]
    mae_by_step: list[Perhaps]


class Compared(Strict):
    """The model beside seasonal naive."""

    model: Scores
    seasonal_naive: Scores
    reliable_horizon: int = Field(
        description="the last step up to which the model's error was never larger than seasonal naive's here; 0: not at the first"
    )
    coverage: dict[str, Perhaps] = Field(
        default={}, description="by level: the share of what came that lies at or below the quantile"
    )


class SeriesBacktest(Compared):
    """Of one series."""

    id: str
    warnings: list[str] = Field(description="what a reader should know of it")


class BacktestAnswer(Strict):
    """One outcome for each series, in order."""

    model: ModelName
    horizon: int
    windows: int
    stride: int
    overall: Compared | None = Field(description="means over the series that were scored; null where none was")
    series: list[SeriesBacktest | SeriesError]


class _Asked(NamedTuple):
    """What is measured."""

    ask: Ask
    horizon: int
    windows: int
    stride: int

    @property
    def lefts(self) -> range:
        """Steps that lie after each origin."""
        return origins(windows=self.windows, horizon=self.horizon, stride=self.stride)


class _Errors(NamedTuple):
    """What came of one series, and what was said, one row a window; NaN where it was not observed, or nothing said."""

    actual: Float64[np.ndarray, "window horizon"]
    model: Float64[np.ndarray, "window horizon"]
    naive: Float64[np.ndarray, "window horizon"]
    below: Float64[np.ndarray, "level window horizon"]
    scale: float


def answer(body: Body, model: InUse | None, settings: Settings, deadline: Deadline) -> bytes:
    """A BacktestAnswer. Raises Problem; also where the only series of a request is refused."""
    told = parsing.validated(BacktestRequest, parsing.parse(body))
    model, deadline = in_use(model), deadline.within(told.deadline_ms)
    horizon = told.horizon or model.predictor.forecaster.spec.horizon
    asked = _Asked(Ask(horizon=horizon, levels=told.levels), horizon, told.windows, told.stride or horizon)
    _check(told.series, asked, settings)
    outcomes = [_read(one, asked, model, deadline) for one in told.series]
    good = [one for one in outcomes if isinstance(one, Series)]
    histories = [one.until(len(one) - left) for one in good for left in asked.lefts]
    said = forecasts(histories, asked.ask, model, deadline)
    found: list[dict[str, Any]] = []
    measured: list[_Errors] = []
    place = 0
    for series, outcome in zip(told.series, outcomes, strict=True):
        windows: Sequence[Forecast | ForecasterError] = ()
        if isinstance(outcome, Series):
            windows = said[place : place + asked.windows]
            place += asked.windows
            refused = [one for one in windows if isinstance(one, ForecasterError)]
            if len(refused) == len(windows):
                outcome = refused[0]
        if isinstance(outcome, ForecasterError):
            if len(told.series) == 1:
                raise Problem.of(outcome)
            found.append(schema.from_error(series.id, outcome))
            continue
        errors = _measured(outcome, windows, asked, season=model.predictor.forecaster.season)
        measured.append(errors)
        found.append(
            {"id": series.id, **_compared([errors], asked), "warnings": _warnings(outcome, windows, asked, model)}
        )
    fields = {
        "model": model.name,
        "horizon": horizon,
        "windows": asked.windows,
        "stride": asked.stride,
        "overall": _compared(measured, asked) if measured else None,
        "series": found,
    }
    return chunked_json.dumps(fields)  # NaN becomes null


def _check(series: Sequence[AskedSeries], asked: _Asked, settings: Settings) -> None:
    """Raises Problem for more than a request may ask: what is read and foretold at each origin counts once for each."""
    limits.check(asked.ask, series, settings)
    limits.check_ask(asked.ask, len(series) * asked.windows, settings)
    total = asked.windows * sum(len(one.y) for one in series)
    if total > settings.max_values:
        raise Problem(
            "request_too_large",
            f"Expected at most {settings.max_values} values in all histories, each counted once for every window; found {total}. "
            "Ask for fewer windows, or send several requests.",
            where="windows",
        )


def _read(told: AskedSeries, asked: _Asked, model: InUse, deadline: Deadline) -> Series | ForecasterError:
    learned = model.predictor.forecaster
    deadline.check()
    try:
        one = reading.to_series(told, served=learned.freq, encoding=learned.encoding, horizon=0, starts={}).series
    except ForecasterError as error:
        return error
    held, least = max(asked.lefts), learned.spec.least
    if len(one) < held + least:
        return HistoryTooShort(
            f"Series {one.id!r} has {len(one)} steps; {asked.windows} windows of {asked.horizon} steps, {asked.stride} apart, "
            f"and {least} before the first need {held + least}. Send a longer history, or ask for fewer windows.",
            where=one.id,
        )
    return one


def _measured(one: Series, said: Sequence[Forecast | ForecasterError], asked: _Asked, *, season: int) -> _Errors:
    known = [len(one) - left for left in asked.lefts]
    nothing = np.full(asked.horizon, np.nan)
    levels = sorted(asked.ask.levels)
    good = [None if isinstance(each, ForecasterError) else each for each in said]
    naive = [repeat_season(one.y[:steps], season, asked.horizon) for steps in known]
    actual = np.stack([one.y[steps : steps + asked.horizon] for steps in known])
    bands = [[nothing if each is None else each.quantiles[level] for each in good] for level in levels]
    below = np.array(bands).reshape(len(levels), *actual.shape)
    return _Errors(
        actual,
        np.stack([nothing if each is None else each.mean for each in good]),
        np.stack([nothing if each is None else row for each, row in zip(good, naive, strict=True)]),
        np.where(np.isnan(actual) | np.isnan(below), np.nan, actual <= below),
        seasonal_error(one.y[: known[0]], season=season),
    )


def _compared(each: Sequence[_Errors], asked: _Asked) -> dict[str, Any]:
    """The fields of a Compared: of each series over its windows, then the mean over series."""
    model, naive = (_scores(each, name) for name in ("model", "naive"))
    good = np.asarray(model["mae_by_step"]) <= np.asarray(naive["mae_by_step"])  # not so where nothing was measured
    told: dict[str, Any] = {
        "model": model,
        "seasonal_naive": naive,
        "reliable_horizon": len(good) if good.all() else int(np.argmin(good)),
    }
    if asked.ask.levels:
        shares = [
            nanmean(np.stack([nanmean(one.below[place]) for one in each])) for place in range(len(asked.ask.levels))
        ]
        told["coverage"] = {
            repr(float(level)): float(share) for level, share in zip(sorted(asked.ask.levels), shares, strict=True)
        }
    return told


def _scores(each: Sequence[_Errors], name: str) -> dict[str, Any]:
    gaps = [np.abs(one.actual - getattr(one, name)) for one in each]
    rows = [(one.actual.ravel()[None], getattr(one, name).ravel()[None]) for one in each]
    by_step = np.stack([nanmean(gap, axis=0) for gap in gaps])
    scales = np.array([one.scale for one in each])
    plain = np.concatenate([mae(actual, forecast) for actual, forecast in rows])
    return {
        "mase": float(nanmean(plain / scales)),
        "mae": float(nanmean(plain)),
        "smape": float(nanmean(np.concatenate([smape(actual, forecast) for actual, forecast in rows]))),
        "mase_by_step": nanmean(by_step / scales[:, None], axis=0),
        "mae_by_step": nanmean(by_step, axis=0),
    }


def _warnings(one: Series, said: Sequence[Forecast | ForecasterError], asked: _Asked, model: InUse) -> list[str]:
    told = []
    cutoff, first = model.predictor.forecaster.cutoff, one.stamp(len(one) - max(asked.lefts) - 1)
    if earlier(first, cutoff):
        told.append(f"The model saw data up to {tell(cutoff)}: origins before that are not out of sample for it.")
    refused = [each for each in said if isinstance(each, ForecasterError)]
    if refused:
        told.append(
            f"{len(refused)} of {asked.windows} windows have no forecast and were left out: {refused[0].message}"
        )
    marked = [each for each in said if isinstance(each, Forecast) and each.warnings]
    if marked:
        told.append(f"At {len(marked)} of {asked.windows} windows: {marked[0].warnings[0]}")
    return told
