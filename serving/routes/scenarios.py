"""`POST /v1/scenarios`: forecasts of one history under several futures of its covariates; the history is read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import orjson
from pydantic import Field, model_validator

from forecaster.errors import BadSpec, CovariateUnknown, ForecasterError, LevelOutOfRange, MissingPackage
from forecaster.series import Forecast, Series
from serving.asgi.admission import one_by_one
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.forecasting.endpoint import ComputeJob, EncodedResponse, Endpoint
from serving.forecasting.outcomes import attach_state_token, build_result, horizon_warnings, parse_all_series
from serving.forecasting.sampling import PathsOrError, sample_in_batches
from serving.forecasting.symbols import refuse_symbols, validate_symbol_options
from serving.formats import json_rows, limits, parsing
from serving.formats.outcome import ForecastResult, SeriesOutcome
from serving.formats.schema import (
    CovariatesField,
    ErrorDetail,
    ForecastOptions,
    ModelInfo,
    RequestModel,
    SeriesField,
    SeriesForecast,
    SeriesId,
    StrictModel,
)
from serving.formats.series import ParsedSeries, parse_covariate
from serving.formats.state_token import TokenSigner
from serving.settings import Settings

_BATCH_STEPS = 1 << 17  # rollout steps between two checks of the deadline


class Scenario(RequestModel):
    """One future of the covariates."""

    name: SeriesId = Field(description="name of the scenario, which its outcome repeats")
    covariates: CovariatesField = Field(
        description="values after the history only, the first for the first forecast step: one for each step of the horizon, or "
        "more. Covariates that are not named here keep their future values from `series`"
    )


class ScenariosRequest(ForecastOptions):
    """One history, the scenarios, and the options of their forecasts."""

    series: SeriesField = Field(description="the history; its covariates may end with it")
    scenarios: Annotated[list[Scenario], Field(fail_fast=True)] = Field(
        min_length=1, description="each is forecast independently; outcomes keep the order"
    )

    @model_validator(mode="after")
    def _validate_unique_names(self) -> ScenariosRequest:
        if len({scenario.name for scenario in self.scenarios}) < len(self.scenarios):
            raise ValueError("Expected unique names of the scenarios; found a duplicate")
        return self


class ScenarioForecast(SeriesForecast):
    """The forecast of one scenario.

    Scenarios share the noise of their `samples`: samples with the same index in two scenarios differ only by the covariates.
    """

    id: str = Field(description="id of the series")
    name: str = Field(description="name of the scenario")
    difference: list[float] = Field(
        default=[],
        description="mean minus that of the first scenario; absent for the first, and if the first has no forecast",
    )


class ScenarioError(StrictModel):
    """The error that prevented the forecast of one scenario."""

    name: str = Field(description="name of the scenario")
    id: str = Field(description="id of the series")
    error: ErrorDetail


class ScenariosResponse(StrictModel):
    """One outcome for each scenario, in the order of the request."""

    model: ModelInfo
    scenarios: list[ScenarioForecast | ScenarioError] = Field(description="forecast or error of each scenario")
    state: str | None = Field(
        default=None,
        description="state to continue the history from, without its scenarios; present only if `return_state` was set",
    )


def decode_scenarios(body: Body, _: str, settings: Settings) -> ScenariosRequest:
    """Decodes a request and validates its size. Raises ApiError (400, 422)."""
    request = parsing.validate_fields(ScenariosRequest, parsing.parse_json(body))
    _validate_scenarios_size(request, settings)
    return request


def count_scenario_steps(request: ScenariosRequest, _: DeployedModel) -> int:
    """Returns the steps of the history, and of all forecasts with their quantiles and samples."""
    numbers_per_step = 1 + len(request.levels) + request.samples
    return len(request.series.y) + len(request.scenarios) * request.horizon * numbers_per_step


def compute_scenarios(job: ComputeJob[ScenariosRequest]) -> EncodedResponse:
    """Computes the response to `POST /v1/scenarios`.

    Raises ApiError for errors that concern all scenarios (the history, levels or samples that the model cannot give, a model
    without covariates, the deadline), and if the request has a single scenario and it is rejected.
    """
    request, model, deadline, settings, _ = job
    deadline.check()
    refuse_symbols(model, what="scenarios")
    validate_symbol_options(request, model)
    signer = TokenSigner.from_settings(settings)
    if not model.predictor.fitted_model.spec.covariates:
        raise ApiError.from_forecaster_error(
            CovariateUnknown(
                "Expected a model with covariates; the one in use has none, so all scenarios would have the same forecast. "
                "Use /v1/forecast.",
                where="scenarios",
            )
        )
    [parsed] = parse_all_series([request.series], request, model, deadline, signer)
    if not isinstance(parsed, ParsedSeries):
        raise ApiError.from_forecaster_error(parsed)
    results = _compute_results(parsed, request, model, deadline)
    errors = [result for result in results if isinstance(result, ForecasterError)]
    if len(results) == 1 and errors:
        raise ApiError.from_forecaster_error(errors[0])
    fields: dict[str, Any] = {"model": model.info, "scenarios": _result_fields(results, request)}
    first = next((result for result in results if isinstance(result, ForecastResult)), None)
    if request.return_state and first is not None:
        with_state = attach_state_token(first, parsed, model, signer)
        if isinstance(with_state, ForecasterError):
            raise ApiError.from_forecaster_error(with_state)
        fields["state"] = with_state.state_token
    body = orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
    return EncodedResponse(body, len(results) - len(errors), len(errors))


SCENARIOS = Endpoint(decode_scenarios, count_scenario_steps, one_by_one(compute_scenarios), is_recorded=True)


def _validate_scenarios_size(request: ScenariosRequest, settings: Settings) -> None:
    if len(request.scenarios) > settings.max_scenarios:
        raise ApiError(
            "too_many_scenarios",
            f"Expected at most {settings.max_scenarios} scenarios; found {len(request.scenarios)}. Send several requests.",
            where="scenarios",
        )
    limits.validate_response_size(request, len(request.scenarios), settings)
    limits.validate_history_size([request.series], settings)
    value_count = sum(len(values) for scenario in request.scenarios for values in scenario.covariates.values())
    if value_count > settings.max_values:
        raise ApiError(
            "request_too_large",
            f"Expected at most {settings.max_values} values in all scenarios; found {value_count}. Send several requests.",
            where="scenarios",
        )


def _compute_results(
    parsed: ParsedSeries, request: ScenariosRequest, model: DeployedModel, deadline: Deadline
) -> list[ForecastResult | ForecasterError]:
    """Returns one result for each scenario, in order."""
    applied = [_apply_scenario(parsed.series, scenario, request.horizon, model) for scenario in request.scenarios]
    scenario_series = [outcome for outcome in applied if isinstance(outcome, Series)]
    deadline.check()
    try:
        forecasts = iter(_forecast_scenarios(scenario_series, request, model))
        paths = iter(
            _sample_scenarios(scenario_series, request, model, deadline)
            if request.samples
            else [None] * len(scenario_series)
        )
    except (LevelOutOfRange, BadSpec, MissingPackage) as error:
        raise ApiError.from_forecaster_error(error) from error
    warnings = horizon_warnings(request.horizon, scored_horizon=model.predictor.fitted_model.spec.horizon)
    return [
        build_result(parsed.style, next(forecasts), next(paths), warnings, samples=request.samples)
        if isinstance(outcome, Series)
        else outcome
        for outcome in applied
    ]


def _forecast_scenarios(
    scenario_series: Sequence[Series], request: ScenariosRequest, model: DeployedModel
) -> list[Forecast | ForecasterError]:
    """Forecasts the scenarios; they are not recorded in the ledger, because hypothetical futures must not be scored."""
    optional: dict[str, Any] = {"joint": True} if request.joint else {}
    if model.adaptive_state is not None and request.levels:
        optional["adaptive_state"] = model.adaptive_state
    return model.predictor.forecast_scenarios(scenario_series, request.horizon, levels=request.levels, **optional)


def _sample_scenarios(
    scenario_series: Sequence[Series], request: ScenariosRequest, model: DeployedModel, deadline: Deadline
) -> list[PathsOrError]:
    def sample(path_range: range, batch_deadline: Deadline) -> list[PathsOrError]:
        batch_size = max(1, _BATCH_STEPS // (request.horizon * len(path_range)))
        paths: list[PathsOrError] = []
        for first in range(0, max(1, len(scenario_series)), batch_size):
            batch_deadline.check()
            paths += model.predictor.sample_scenarios(
                scenario_series[first : first + batch_size],
                request.horizon,
                paths=len(path_range),
                seed=request.seed,
                first_path=path_range.start,
            )
        return paths

    return sample_in_batches(
        sample, samples=request.samples, steps=request.horizon * max(1, len(scenario_series)), deadline=deadline
    )


def _apply_scenario(series: Series, scenario: Scenario, horizon: int, model: DeployedModel) -> Series | ForecasterError:
    """Returns the history with the future covariates of a scenario, or an error if they are not what the model needs."""
    fitted_model, steps = model.predictor.fitted_model, len(series)
    names = fitted_model.spec.covariates
    unknown = [name for name in scenario.covariates if name not in names]
    if unknown:
        return CovariateUnknown(
            f"Expected covariates of the model in use ({', '.join(names)}); scenario {scenario.name!r} has "
            f"{unknown[0]!r}. Remove it.",
            where=scenario.name,
        )
    try:
        overrides = {
            name: parse_covariate(name, values, encoding=fitted_model.encoding, where=series.id)
            for name, values in scenario.covariates.items()
            if len(values)
        }
    except ForecasterError as error:
        return error
    future = {name: overrides.get(name, series.covariates[name][steps:]) for name in names if name in series.covariates}
    too_short = [name for name, values in future.items() if len(values) < horizon]
    if too_short:
        return CovariateUnknown(
            f"Expected at least {horizon} future values of each covariate; {too_short[0]!r} in scenario {scenario.name!r} has "
            f"{len(future[too_short[0]])}. Send them in the scenario, or after the history in `series`.",
            where=scenario.name,
        )
    future_steps = min(map(len, future.values()), default=0)
    covariates = {
        name: np.concatenate([series.covariates[name][:steps], values[:future_steps]])
        for name, values in future.items()
    }
    return Series(
        series.id,
        series.start,
        series.freq,
        series.y,
        covariates,
        series.static,
        series.channels,
        series.history_summary,
    )


def _result_fields(
    results: Sequence[ForecastResult | ForecasterError], request: ScenariosRequest
) -> list[dict[str, Any]]:
    """Returns the results as the fields of a ScenarioForecast or a ScenarioError."""
    formatter, first = json_rows.TimestampFormatter(), results[0]
    outcomes = []
    for scenario, result in zip(request.scenarios, results, strict=True):
        outcome = SeriesOutcome(request.series.id, result)
        fields = {"name": scenario.name, **json_rows.outcome_fields(outcome, formatter)}
        if isinstance(result, ForecastResult) and isinstance(first, ForecastResult) and result is not first:
            fields["difference"] = result.forecast.mean - first.forecast.mean
        outcomes.append(fields)
    return outcomes
