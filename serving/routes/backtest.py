"""`POST /v1/backtest`: how the model would have done at the end of the histories that are sent, beside seasonal naive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from forecaster.data.batching import repeat_season
from forecaster.data.split import rolling_origins
from forecaster.errors import ForecasterError, HistoryTooShort
from forecaster.frequency import format_timestamp, is_earlier
from forecaster.metrics import mae, nanmean, seasonal_error, smape
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.forecasting.outcomes import compute_forecasts, require_model
from serving.formats import chunked_json, limits, parsing, schema
from serving.formats import series as reading
from serving.formats.schema import ForecastOptions, HistoryField, LevelsField, ModelInfo, SeriesError, StrictModel
from serving.settings import Settings

MAX_WINDOWS = 100
OptionalScore = float | None  # null where nothing could be measured


class BacktestRequest(StrictModel):
    """Some histories whose ends are foretold."""

    series: list[HistoryField] = Field(min_length=1, description="scored one by one, in order")
    horizon: int | None = Field(default=None, ge=1, description="steps ahead; the model's own, if not given")
    windows: int = Field(
        default=3,
        ge=1,
        le=MAX_WINDOWS,
        description="rolling origins of each series, the last a horizon before its end",
    )
    stride: int | None = Field(default=None, ge=1, description="steps between origins; a horizon, if not given")
    levels: LevelsField = Field(default=[], description="of quantiles whose coverage is measured")
    deadline_ms: int | None = Field(default=None, ge=1, description="as of /v1/forecast")


class BacktestScores(StrictModel):
    """Errors over all windows, and by step ahead."""

    mase: OptionalScore = Field(
        description="mean absolute error over that of seasonal naive before the first origin (Hyndman and Koehler 2006)"
    )
    mae: OptionalScore
    smape: OptionalScore = Field(description="0 to 200")
    mase_by_step: list[OptionalScore]
    mae_by_step: list[OptionalScore]


class BacktestComparison(StrictModel):
    """The model beside seasonal naive."""

    model: BacktestScores
    seasonal_naive: BacktestScores
    reliable_horizon: int = Field(
        description="the last step up to which the model's error was never larger than seasonal naive's here; 0: not at the first"
    )
    coverage: dict[str, OptionalScore] = Field(
        default={}, description="by level: the share of what came that lies at or below the quantile"
    )


class SeriesBacktest(BacktestComparison):
    """Of one series."""

    id: str
    warnings: list[str] = Field(description="what a reader should know of it")


class BacktestResponse(StrictModel):
    """One outcome for each series, in order."""

    model: ModelInfo
    horizon: int
    windows: int
    stride: int
    overall: BacktestComparison | None = Field(
        description="means over the series that were scored; null where none was"
    )
    series: list[SeriesBacktest | SeriesError]


class _BacktestPlan(NamedTuple):
    """What is measured."""

    options: ForecastOptions
    horizon: int
    windows: int
    stride: int

    @property
    def steps_after_origin(self) -> range:
        """Steps that lie after each origin."""
        return rolling_origins(windows=self.windows, horizon=self.horizon, stride=self.stride)


class _WindowValues(NamedTuple):
    """What came of one series, and what was said, one row a window; NaN where it was not observed, or nothing said."""

    actual: Float64[np.ndarray, "window horizon"]
    model: Float64[np.ndarray, "window horizon"]
    naive: Float64[np.ndarray, "window horizon"]
    is_below: Float64[np.ndarray, "level window horizon"]
    scale: float


def run_backtest(body: Body, model: DeployedModel | None, settings: Settings, deadline: Deadline) -> bytes:
    """A BacktestAnswer. Raises Problem; also where the only series of a request is refused."""
    told = parsing.validate_fields(BacktestRequest, parsing.parse_json(body))
    model, deadline = require_model(model), deadline.capped(told.deadline_ms)
    horizon = told.horizon or model.predictor.fitted_model.spec.horizon
    asked = _BacktestPlan(
        ForecastOptions(horizon=horizon, levels=told.levels), horizon, told.windows, told.stride or horizon
    )
    _validate_backtest_size(told.series, asked, settings)
    outcomes = [_parse_history(one, asked, model, deadline) for one in told.series]
    good = [one for one in outcomes if isinstance(one, Series)]
    histories = [one.take_first(len(one) - left) for one in good for left in asked.steps_after_origin]
    said = compute_forecasts(histories, asked.options, model, deadline)
    found: list[dict[str, Any]] = []
    measured: list[_WindowValues] = []
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
                raise ApiError.from_forecaster_error(outcome)
            found.append(schema.error_fields(series.id, outcome))
            continue
        errors = _collect_windows(outcome, windows, asked, season=model.predictor.fitted_model.season)
        measured.append(errors)
        found.append(
            {
                "id": series.id,
                **_compute_comparison([errors], asked),
                "warnings": _collect_warnings(outcome, windows, asked, model),
            }
        )
    fields = {
        "model": model.info,
        "horizon": horizon,
        "windows": asked.windows,
        "stride": asked.stride,
        "overall": _compute_comparison(measured, asked) if measured else None,
        "series": found,
    }
    return chunked_json.dumps(fields)  # NaN becomes null


def _validate_backtest_size(series: Sequence[HistoryField], plan: _BacktestPlan, settings: Settings) -> None:
    """Raises Problem for more than a request may ask: what is read and foretold at each origin counts once for each."""
    limits.validate_request_size(plan.options, series, settings)
    limits.validate_response_size(plan.options, len(series) * plan.windows, settings)
    total = plan.windows * sum(len(one.y) for one in series)
    if total > settings.max_values:
        raise ApiError(
            "request_too_large",
            f"Expected at most {settings.max_values} values in all histories, each counted once for every window; found {total}. "
            "Ask for fewer windows, or send several requests.",
            where="windows",
        )


def _parse_history(
    history: HistoryField, plan: _BacktestPlan, model: DeployedModel, deadline: Deadline
) -> Series | ForecasterError:
    learned = model.predictor.fitted_model
    deadline.check()
    try:
        one = reading.parse_series(
            history, model_freq=learned.freq, encoding=learned.encoding, horizon=0, start_cache={}
        ).series
    except ForecasterError as error:
        return error
    held, least = max(plan.steps_after_origin), learned.spec.min_steps
    if len(one) < held + least:
        return HistoryTooShort(
            f"Series {one.id!r} has {len(one)} steps; {plan.windows} windows of {plan.horizon} steps, {plan.stride} apart, "
            f"and {least} before the first need {held + least}. Send a longer history, or ask for fewer windows.",
            where=one.id,
        )
    return one


def _collect_windows(
    series: Series, forecasts: Sequence[Forecast | ForecasterError], plan: _BacktestPlan, *, season: int
) -> _WindowValues:
    known = [len(series) - left for left in plan.steps_after_origin]
    nothing = np.full(plan.horizon, np.nan)
    levels = sorted(plan.options.levels)
    good = [None if isinstance(each, ForecasterError) else each for each in forecasts]
    naive = [repeat_season(series.y[:steps], season, plan.horizon) for steps in known]
    actual = np.stack([series.y[steps : steps + plan.horizon] for steps in known])
    bands = [[nothing if each is None else each.quantiles[level] for each in good] for level in levels]
    below = np.array(bands).reshape(len(levels), *actual.shape)
    return _WindowValues(
        actual,
        np.stack([nothing if each is None else each.mean for each in good]),
        np.stack([nothing if each is None else row for each, row in zip(good, naive, strict=True)]),
        np.where(np.isnan(actual) | np.isnan(below), np.nan, actual <= below),
        seasonal_error(series.y[: known[0]], season=season),
    )


def _compute_comparison(series_windows: Sequence[_WindowValues], plan: _BacktestPlan) -> dict[str, Any]:
    """The fields of a Compared: of each series over its windows, then the mean over series."""
    model, naive = (_compute_scores(series_windows, name) for name in ("model", "naive"))
    good = np.asarray(model["mae_by_step"]) <= np.asarray(naive["mae_by_step"])  # not so where nothing was measured
    told: dict[str, Any] = {
        "model": model,
        "seasonal_naive": naive,
        "reliable_horizon": len(good) if good.all() else int(np.argmin(good)),
    }
    if plan.options.levels:
        shares = [
            nanmean(np.stack([nanmean(one.is_below[place]) for one in series_windows]))
            for place in range(len(plan.options.levels))
        ]
        told["coverage"] = {
            repr(float(level)): float(share) for level, share in zip(sorted(plan.options.levels), shares, strict=True)
        }
    return told


def _compute_scores(series_windows: Sequence[_WindowValues], source: str) -> dict[str, Any]:
    gaps = [np.abs(one.actual - getattr(one, source)) for one in series_windows]
    rows = [(one.actual.ravel()[None], getattr(one, source).ravel()[None]) for one in series_windows]
    by_step = np.stack([nanmean(gap, axis=0) for gap in gaps])
    scales = np.array([one.scale for one in series_windows])
    plain = np.concatenate([mae(actual, forecast) for actual, forecast in rows])
    return {
        "mase": float(nanmean(plain / scales)),
        "mae": float(nanmean(plain)),
        "smape": float(nanmean(np.concatenate([smape(actual, forecast) for actual, forecast in rows]))),
        "mase_by_step": nanmean(by_step / scales[:, None], axis=0),
        "mae_by_step": nanmean(by_step, axis=0),
    }


def _collect_warnings(
    series: Series, forecasts: Sequence[Forecast | ForecasterError], plan: _BacktestPlan, model: DeployedModel
) -> list[str]:
    told = []
    cutoff, first = (
        model.predictor.fitted_model.cutoff,
        series.timestamp_at(len(series) - max(plan.steps_after_origin) - 1),
    )
    if is_earlier(first, cutoff):
        told.append(
            f"The model saw data up to {format_timestamp(cutoff)}: origins before that are not out of sample for it."
        )
    refused = [each for each in forecasts if isinstance(each, ForecasterError)]
    if refused:
        told.append(
            f"{len(refused)} of {plan.windows} windows have no forecast and were left out: {refused[0].message}"
        )
    marked = [each for each in forecasts if isinstance(each, Forecast) and each.warnings]
    if marked:
        told.append(f"At {len(marked)} of {plan.windows} windows: {marked[0].warnings[0]}")
    return told
