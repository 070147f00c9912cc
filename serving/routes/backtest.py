"""`POST /v1/backtest`: scores the model and its baselines at rolling origins of the histories of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import orjson
from pydantic import Field

from forecaster.data.batching import repeat_season
from forecaster.data.split import rolling_origins
from forecaster.errors import ForecasterError, HistoryTooShort
from forecaster.frequency.timestamps import format_timestamp, is_earlier
from forecaster.metrics import DECILES, mae, nanmean, pinball, scale_season, seasonal_error, smape, winkler_score
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64
from serving.asgi.admission import one_by_one
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.forecasting.endpoint import ComputeJob, EncodedResponse, Endpoint
from serving.forecasting.outcomes import compute_mixed_forecasts, compute_zero_shot_forecasts
from serving.forecasting.symbols import refuse_symbols
from serving.formats import limits, parsing, schema
from serving.formats.schema import (
    ForecastOptions,
    HistoryField,
    LevelsField,
    ModelInfo,
    RequestModel,
    SeriesError,
    StrictModel,
)
from serving.formats.series import ParsedSeries, parse_series
from serving.settings import Settings

MAX_WINDOWS = 100
MSIS_SHARE, MSIS_LEVELS = 0.95, (0.025, 0.975)
SCORED_LEVELS = (*DECILES, *MSIS_LEVELS)
"""The quantile levels that the interval scores need, whatever the request has."""
OptionalScore = float | None  # null if nothing could be scored


class BacktestRequest(RequestModel):
    """Histories to backtest the model on."""

    series: Annotated[list[HistoryField], Field(fail_fast=True)] = Field(
        min_length=1, description="each is scored independently; outcomes keep the order"
    )
    horizon: int | None = Field(
        default=None, ge=1, description="number of steps to forecast; by default the model's horizon"
    )
    windows: int = Field(
        default=3,
        ge=1,
        le=MAX_WINDOWS,
        description="number of rolling origins of each series; the last is one horizon before its end",
    )
    stride: int | None = Field(default=None, ge=1, description="steps between origins; by default the horizon")
    levels: LevelsField = Field(default=[], description="levels of the quantiles whose coverage is measured")
    deadline_ms: int | None = Field(default=None, ge=1, description="as in /v1/forecast")


class BacktestScores(StrictModel):
    """Forecast errors over all windows, and by step of the horizon."""

    mase: OptionalScore = Field(
        description="mean absolute error divided by that of seasonal naive before the first origin (Hyndman and Koehler 2006)"
    )
    mae: OptionalScore = Field(description="mean absolute error, in units of the data")
    smape: OptionalScore = Field(description="symmetric mean absolute percentage error, from 0 to 200")
    mase_by_step: list[OptionalScore] = Field(description="`mase` by step ahead")
    mae_by_step: list[OptionalScore] = Field(description="`mae` by step ahead")
    wql: OptionalScore = Field(
        default=None,
        description="weighted quantile loss, the mean over the nine deciles, with sums over all series and windows; null for "
        "forecasts without quantiles",
    )
    msis_95: OptionalScore = Field(
        default=None,
        description="mean interval score of the 95 % intervals divided by the error of seasonal naive before the first origin "
        "(MSIS of M4); null for forecasts without quantiles",
    )


class BacktestComparison(StrictModel):
    """The scores of the model, of seasonal naive and of the pretrained network."""

    model: BacktestScores
    seasonal_naive: BacktestScores
    zero_shot: BacktestScores | None = Field(
        default=None,
        description="the pretrained network without a training; null if the model is this network",
    )
    reliable_horizon: int = Field(
        description="last step up to which the model's error was never larger than seasonal naive's in this backtest; 0: it was "
        "larger at the first step"
    )
    coverage: dict[str, OptionalScore] = Field(
        default={}, description="share of actuals at or below the quantile, by level"
    )


class SeriesBacktest(BacktestComparison):
    """The backtest of one series."""

    id: str = Field(description="id of the series")
    warnings: list[str] = Field(description="warnings about this backtest")


class BacktestResponse(StrictModel):
    """One outcome for each series, in the order of the request."""

    model: ModelInfo
    horizon: int = Field(description="steps ahead of each origin")
    windows: int = Field(description="number of origins")
    stride: int = Field(description="steps between origins")
    overall: BacktestComparison | None = Field(description="means over the scored series; null if none was scored")
    series: list[SeriesBacktest | SeriesError] = Field(description="scores or error of each series")


class _BacktestPlan(NamedTuple):
    """The parameters of a backtest, with defaults filled in."""

    options: ForecastOptions
    horizon: int
    windows: int
    stride: int

    @property
    def steps_after_origin(self) -> range:
        """The numbers of steps after each origin."""
        return rolling_origins(windows=self.windows, horizon=self.horizon, stride=self.stride)


class _WindowValues(NamedTuple):
    """Actuals and forecasts of one series; NaN marks missing actuals and forecasts."""

    actual: Float64[np.ndarray, "window horizon"]
    model: Float64[np.ndarray, "window horizon"]
    naive: Float64[np.ndarray, "window horizon"]
    zero_shot: Float64[np.ndarray, "window horizon"] | None  # None if the model is the pretrained network
    is_below: Float64[np.ndarray, "level window horizon"]  # 1 if the actual is at or below the quantile, else 0
    scale: float  # denominator of MASE
    quantile_loss: Float64[np.ndarray, "window horizon"]  # of the model, twice the pinball loss, the mean over deciles
    interval_score: Float64[np.ndarray, "window horizon"]  # of the model's 95 % intervals


def decode_backtest(body: Body, _: str, __: Settings) -> BacktestRequest:
    """Decodes a request. Raises ApiError (400, 422)."""
    return parsing.validate_fields(BacktestRequest, parsing.parse_json(body))


def count_backtest_steps(request: BacktestRequest, model: DeployedModel) -> int:
    """Returns the steps of histories and forecasts, counted once for each origin."""
    plan = _plan_backtest(request, request.horizon or model.predictor.fitted_model.spec.horizon)
    forecast_steps = len(request.series) * plan.horizon * (1 + len(request.levels))
    num_forecasters = 1 if model.is_pretrained else 2  # the model, and the pretrained network beside it
    return num_forecasters * plan.windows * (sum(len(history.y) for history in request.series) + forecast_steps)


def _plan_backtest(request: BacktestRequest, horizon: int) -> _BacktestPlan:
    options = ForecastOptions(horizon=horizon, levels=request.levels)
    return _BacktestPlan(options, horizon, request.windows, request.stride or horizon)


def compute_backtest(job: ComputeJob[BacktestRequest]) -> EncodedResponse:
    """Returns an encoded BacktestResponse. Raises ApiError, also if the request has a single series and it is rejected."""
    request, model, deadline, settings, _ = job
    refuse_symbols(model, what="a backtest")
    limits.validate_history_size(request.series, settings)
    histories = [_parse_history(history, model, deadline) for history in request.series]
    plan = _plan_backtest(request, request.horizon or _find_horizon(histories, model))
    _validate_backtest_size(request.series, plan, settings)
    parsed = [_validate_length(history, plan, model) for history in histories]
    has_quantiles = model.predictor.has_quantiles
    scored_levels = sorted({*plan.options.levels, *(SCORED_LEVELS if has_quantiles else ())})
    cut_histories = [
        item._replace(series=item.series.take_first(len(item.series) - steps_after))
        for item in parsed
        if isinstance(item, ParsedSeries)
        for steps_after in plan.steps_after_origin
    ]
    options = plan.options.model_copy(update={"levels": scored_levels})
    forecasts = compute_mixed_forecasts(cut_histories, options, model, deadline)
    zero_shot_forecasts = compute_zero_shot_forecasts(
        [item.series for item in cut_histories], plan.horizon, model, deadline
    )
    outcomes: list[dict[str, Any]] = []
    scored: list[_WindowValues] = []
    first_window = 0
    for history, outcome in zip(request.series, parsed, strict=True):
        windows: Sequence[Forecast | ForecasterError] = ()
        zero_shot_windows: Sequence[Forecast | ForecasterError] | None = None
        if isinstance(outcome, ParsedSeries):
            windows = forecasts[first_window : first_window + plan.windows]
            if zero_shot_forecasts is not None:
                zero_shot_windows = zero_shot_forecasts[first_window : first_window + plan.windows]
            first_window += plan.windows
            errors = [forecast for forecast in windows if isinstance(forecast, ForecasterError)]
            if len(errors) == len(windows):
                outcome = errors[0]
        if isinstance(outcome, ForecasterError):
            if len(request.series) == 1:
                raise ApiError.from_forecaster_error(outcome)
            outcomes.append(schema.error_fields(history.id, outcome))
            continue
        series_model = model.for_series(outcome.series.freq, outcome.season)
        season = series_model.predictor.fitted_model.season
        window_values = _collect_windows(outcome.series, windows, zero_shot_windows, plan, season=season)
        scored.append(window_values)
        outcomes.append(
            {
                "id": history.id,
                **_compute_comparison([window_values], plan),
                "warnings": [*outcome.warnings, *_collect_warnings(outcome.series, windows, plan, series_model)],
            }
        )
    fields = {
        "model": model.info,
        "horizon": plan.horizon,
        "windows": plan.windows,
        "stride": plan.stride,
        "overall": _compute_comparison(scored, plan) if scored else None,
        "series": outcomes,
    }
    return EncodedResponse(orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY))  # NaN becomes null


BACKTEST = Endpoint(decode_backtest, count_backtest_steps, one_by_one(compute_backtest))


def _validate_backtest_size(series: Sequence[HistoryField], plan: _BacktestPlan, settings: Settings) -> None:
    """Raises ApiError if the request is too large; histories and forecasts count once for each origin."""
    limits.validate_request_size(plan.options, series, settings)
    limits.validate_response_size(plan.options, len(series) * plan.windows, settings)
    total = plan.windows * sum(len(history.y) for history in series)
    if total > settings.max_values:
        raise ApiError(
            "request_too_large",
            f"Expected at most {settings.max_values} values in all histories, each counted once for every window; found {total}. "
            "Request fewer windows, or send several requests.",
            where="windows",
        )


def _parse_history(history: HistoryField, model: DeployedModel, deadline: Deadline) -> ParsedSeries | ForecasterError:
    deadline.check()
    fitted_model, is_pretrained = model.predictor.fitted_model, model.is_pretrained
    try:
        return parse_series(history, model=fitted_model, horizon=0, start_cache={}, is_pretrained=is_pretrained)
    except ForecasterError as error:
        return error


def _find_horizon(histories: Sequence[ParsedSeries | ForecasterError], model: DeployedModel) -> int:
    """Returns the horizon of a request that has none. Raises ApiError (422) if the series have several usual ones."""
    horizons = {model.find_horizon(item.series.freq) for item in histories if isinstance(item, ParsedSeries)}
    if len(horizons) > 1:
        raise ApiError(
            "invalid_request",
            "Expected a `horizon`, because the series have several frequencies; found none. Add it.",
            where="horizon",
        )
    return min(horizons, default=1)


def _validate_length(
    parsed: ParsedSeries | ForecasterError, plan: _BacktestPlan, model: DeployedModel
) -> ParsedSeries | ForecasterError:
    """Returns the error of a history that is too short for all windows; anything else unchanged."""
    if isinstance(parsed, ForecasterError):
        return parsed
    series, steps_after, min_steps = (
        parsed.series,
        max(plan.steps_after_origin),
        model.predictor.fitted_model.spec.min_steps,
    )
    if len(series) < steps_after + min_steps:
        return HistoryTooShort(
            f"Series {series.id!r} has {len(series)} steps; {plan.windows} windows of {plan.horizon} steps, {plan.stride} apart, "
            f"and {min_steps} steps before the first need {steps_after + min_steps}. "
            "Send a longer history, or request fewer windows.",
            where=series.id,
        )
    return parsed


def _collect_windows(
    series: Series,
    forecasts: Sequence[Forecast | ForecasterError],
    zero_shot_forecasts: Sequence[Forecast | ForecasterError] | None,
    plan: _BacktestPlan,
    *,
    season: int,
) -> _WindowValues:
    origins = [len(series) - steps_after for steps_after in plan.steps_after_origin]
    missing = np.full(plan.horizon, np.nan)
    levels = sorted(plan.options.levels)
    results = [None if isinstance(forecast, ForecasterError) else forecast for forecast in forecasts]
    naive = [repeat_season(series.y[:origin], season, plan.horizon) for origin in origins]
    actual = np.stack([series.y[origin : origin + plan.horizon] for origin in origins])
    is_forecast = [result is not None for result in results]
    zero_shot = [
        forecast.mean if isinstance(forecast, Forecast) else values
        for forecast, values in zip(zero_shot_forecasts or [], naive, strict=False)
    ]

    def stack_quantiles(at: Sequence[float]) -> Float64[np.ndarray, "level window horizon"]:
        """Returns the quantiles at these levels; NaN where the model has none."""
        rows = [
            [missing if result is None else result.quantiles.get(level, missing) for result in results] for level in at
        ]
        return np.array(rows).reshape(len(at), *actual.shape)

    quantiles, (low, high) = stack_quantiles(levels), stack_quantiles(MSIS_LEVELS)
    losses = pinball(actual, np.moveaxis(stack_quantiles(DECILES), 0, -1), np.array(DECILES))
    return _WindowValues(
        actual,
        np.stack([missing if result is None else result.mean for result in results]),
        _keep_windows(naive, is_forecast),
        None if zero_shot_forecasts is None else _keep_windows(zero_shot, is_forecast),
        np.where(np.isnan(actual) | np.isnan(quantiles), np.nan, actual <= quantiles),
        seasonal_error(series.y[: origins[0]], season=scale_season(origins[0], season=season)),
        2 * losses.mean(axis=-1),
        winkler_score(actual, low, high, level=MSIS_SHARE),
    )


def _keep_windows(
    values: Sequence[Float64[np.ndarray, "horizon"]], keep: Sequence[bool]
) -> Float64[np.ndarray, "window horizon"]:
    """Stacks the values of the windows; those of windows without a forecast of the model become NaN."""
    return np.where(np.array(keep)[:, None], np.stack(values), np.nan)


def _compute_comparison(series_windows: Sequence[_WindowValues], plan: _BacktestPlan) -> dict[str, Any]:
    """Returns the fields of a BacktestComparison: means over the windows of each series, then over the series."""
    model, naive = (_compute_scores(series_windows, source) for source in ("model", "naive"))
    model |= _compute_interval_scores(series_windows)
    naive |= dict.fromkeys(("wql", "msis_95"))
    # NaN compares as False: a step that was not scored is not reliable.
    is_reliable = np.asarray(model["mae_by_step"]) <= np.asarray(naive["mae_by_step"])
    fields: dict[str, Any] = {
        "model": model,
        "seasonal_naive": naive,
        "zero_shot": None if series_windows[0].zero_shot is None else _compute_scores(series_windows, "zero_shot"),
        "reliable_horizon": len(is_reliable) if is_reliable.all() else int(np.argmin(is_reliable)),
    }
    if plan.options.levels:
        shares = [
            nanmean(np.stack([nanmean(windows.is_below[index]) for windows in series_windows]))
            for index in range(len(plan.options.levels))
        ]
        fields["coverage"] = {
            repr(float(level)): float(share) for level, share in zip(sorted(plan.options.levels), shares, strict=True)
        }
    return fields


def _compute_scores(series_windows: Sequence[_WindowValues], source: str) -> dict[str, Any]:
    errors = [np.abs(windows.actual - getattr(windows, source)) for windows in series_windows]
    rows = [(windows.actual.ravel()[None], getattr(windows, source).ravel()[None]) for windows in series_windows]
    by_step = np.stack([nanmean(error, axis=0) for error in errors])
    scales = np.array([windows.scale for windows in series_windows])
    series_mae = np.concatenate([mae(actual, forecast) for actual, forecast in rows])
    return {
        "mase": float(nanmean(series_mae / scales)),
        "mae": float(nanmean(series_mae)),
        "smape": float(nanmean(np.concatenate([smape(actual, forecast) for actual, forecast in rows]))),
        "mase_by_step": nanmean(by_step / scales[:, None], axis=0),
        "mae_by_step": nanmean(by_step, axis=0),
    }


def _compute_interval_scores(series_windows: Sequence[_WindowValues]) -> dict[str, float]:
    """Returns `wql` and `msis_95` of the model; NaN without quantiles."""
    loss = np.concatenate([windows.quantile_loss.ravel() for windows in series_windows])
    actual = np.concatenate([windows.actual.ravel() for windows in series_windows])
    size = np.abs(actual[np.isfinite(loss)]).sum()
    scores = np.array([float(nanmean(windows.interval_score)) / windows.scale for windows in series_windows])
    return {"wql": float(np.nansum(loss) / size) if size > 0 else float("nan"), "msis_95": float(nanmean(scores))}


def _collect_warnings(
    series: Series, forecasts: Sequence[Forecast | ForecasterError], plan: _BacktestPlan, model: DeployedModel
) -> list[str]:
    warnings = []
    cutoff = model.predictor.fitted_model.cutoff
    first_origin = series.timestamp_at(len(series) - max(plan.steps_after_origin) - 1)
    if not model.is_pretrained and is_earlier(first_origin, cutoff):  # that one is trained on synthetic series only
        warnings.append(
            f"The training data of the model end at {format_timestamp(cutoff)}; origins before that are not out of sample."
        )
    season, first_length = model.predictor.fitted_model.season, len(series) - max(plan.steps_after_origin)
    if scale_season(first_length, season=season) != season:
        warnings.append(
            f"The history before the first origin is not longer than a season ({season} steps); MASE is relative to the error of "
            "the last value instead of seasonal naive."
        )
    errors = [forecast for forecast in forecasts if isinstance(forecast, ForecasterError)]
    if errors:
        warnings.append(
            f"{len(errors)} of {plan.windows} windows have no forecast and are excluded: {errors[0].message}"
        )
    with_warnings = [forecast for forecast in forecasts if isinstance(forecast, Forecast) and forecast.warnings]
    if with_warnings:
        warnings.append(
            f"{len(with_warnings)} of {plan.windows} windows have warnings, the first: {with_warnings[0].warnings[0]}"
        )
    return warnings
