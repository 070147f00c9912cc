"""`POST /v1/scenarios`: one history and several futures of its covariates, read once and forked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from forecaster.errors import BadSpec, CovariateUnknown, ForecasterError, LevelOutOfRange
from forecaster.series import Forecast, Series
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.forecasting.outcomes import (
    attach_state_token,
    build_result,
    horizon_warnings,
    parse_all_series,
    require_model,
)
from serving.forecasting.sampling import PathsOrError, sample_in_batches
from serving.formats import chunked_json, json_rows, limits, parsing
from serving.formats.outcome import ForecastResult, SeriesOutcome
from serving.formats.schema import (
    CovariatesField,
    ErrorDetail,
    ForecastOptions,
    ModelInfo,
    SeriesField,
    SeriesForecast,
    SeriesId,
    StrictModel,
)
from serving.formats.series import ParsedSeries, parse_covariate
from serving.formats.state_token import TokenSigner
from serving.settings import Settings

_BATCH_STEPS = 1 << 17  # steps that are rolled between two looks at the deadline


class Scenario(StrictModel):
    """One future."""

    name: SeriesId
    covariates: CovariatesField = Field(
        description="of the steps ahead alone, the first value for the first step after the history: one for each step of the "
        "horizon or more. What is not named here goes on as in `series`"
    )


class ScenariosRequest(ForecastOptions):
    """One history, its futures, and what is asked of each."""

    series: SeriesField = Field(description="the history; its covariates may end with it")
    scenarios: list[Scenario] = Field(min_length=1, description="answered one by one, in order")

    @model_validator(mode="after")
    def _validate_unique_names(self) -> ScenariosRequest:
        if len({one.name for one in self.scenarios}) < len(self.scenarios):
            raise ValueError("Expected every scenario's name once; found one twice")
        return self


class ScenarioForecast(SeriesForecast):
    """The forecast of one scenario. `samples` share their noise: those of one place in two scenarios differ by the covariates."""

    id: str = Field(description="of the series")
    name: str
    difference: list[float] = Field(
        default=[], description="mean less that of the first scenario; not of the first, nor where that has no forecast"
    )


class ScenarioError(StrictModel):
    """Why one scenario got no forecast."""

    name: str
    id: str = Field(description="of the series")
    error: ErrorDetail


class ScenariosResponse(StrictModel):
    """One outcome for each scenario, in the order of the request."""

    model: ModelInfo
    scenarios: list[ScenarioForecast | ScenarioError]
    state: str | None = Field(default=None, description="of the history, where `return_state` was asked")


class EncodedScenarios(NamedTuple):
    """An answer as it is sent, and how many scenarios got a forecast or none."""

    body: bytes
    forecast_count: int
    refused_count: int


def run_scenarios(body: Body, model: DeployedModel | None, settings: Settings, deadline: Deadline) -> EncodedScenarios:
    """Answers `POST /v1/scenarios`.

    Raises Problem for what concerns all: the history, the limits, levels or samples that the model cannot give, a model
    that reads no covariates, the deadline; and if the only scenario is refused.
    """
    deadline.check()
    asked = parsing.validate_fields(ScenariosRequest, parsing.parse_json(body))
    _validate_scenarios_size(asked, settings)
    model, deadline, seal = (
        require_model(model),
        deadline.capped(asked.deadline_ms),
        TokenSigner.from_settings(settings),
    )
    if not model.predictor.fitted_model.spec.covariates:
        raise ApiError.from_forecaster_error(
            CovariateUnknown(
                "Expected a model that reads covariates known ahead; the one in use reads none, so all scenarios would be alike. "
                "Use /v1/forecast.",
                where="scenarios",
            )
        )
    [read] = parse_all_series([asked.series], asked, model, deadline, seal)
    if not isinstance(read, ParsedSeries):
        raise ApiError.from_forecaster_error(read)
    found = _compute_results(read, asked, model, deadline)
    refused = [one for one in found if isinstance(one, ForecasterError)]
    if len(found) == 1 and refused:
        raise ApiError.from_forecaster_error(refused[0])
    told: dict[str, Any] = {"model": model.info, "scenarios": _result_fields(found, asked)}
    first = next((one for one in found if isinstance(one, ForecastResult)), None)
    if asked.return_state and first is not None:
        going_on = attach_state_token(first, read.series, model, seal)
        if isinstance(going_on, ForecasterError):
            raise ApiError.from_forecaster_error(going_on)
        told["state"] = going_on.state_token
    whole = chunked_json.dumps(told)
    return EncodedScenarios(whole, len(found) - len(refused), len(refused))


def _validate_scenarios_size(request: ScenariosRequest, settings: Settings) -> None:
    if len(request.scenarios) > settings.max_scenarios:
        raise ApiError(
            "too_many_scenarios",
            f"Expected at most {settings.max_scenarios} scenarios; found {len(request.scenarios)}. Send several requests.",
            where="scenarios",
        )
    limits.validate_response_size(request, len(request.scenarios), settings)
    limits.validate_history_size([request.series], settings)
    count = sum(len(values) for one in request.scenarios for values in one.covariates.values())
    if count > settings.max_values:
        raise ApiError(
            "request_too_large",
            f"Expected at most {settings.max_values} values in all scenarios; found {count}. Send several requests.",
            where="scenarios",
        )


def _compute_results(
    parsed: ParsedSeries, request: ScenariosRequest, model: DeployedModel, deadline: Deadline
) -> list[ForecastResult | ForecasterError]:
    """One for each scenario."""
    ways = [_apply_scenario(parsed.series, one, request.horizon, model) for one in request.scenarios]
    good = [one for one in ways if isinstance(one, Series)]
    deadline.check()
    try:
        means = iter(_forecast_scenarios(good, request, model))
        paths = iter(_sample_scenarios(good, request, model, deadline) if request.samples else [None] * len(good))
    except (LevelOutOfRange, BadSpec) as error:
        raise ApiError.from_forecaster_error(error) from error
    general = horizon_warnings(request.horizon, scored_horizon=model.predictor.fitted_model.spec.horizon)
    return [
        build_result(parsed.style, next(means), next(paths), general, samples=request.samples)
        if isinstance(one, Series)
        else one
        for one in ways
    ]


def _forecast_scenarios(
    scenario_series: Sequence[Series], request: ScenariosRequest, model: DeployedModel
) -> list[Forecast | ForecasterError]:
    """They are not noted in the ledger: what was never meant to come is not to be scored."""
    if model.adaptive_state is not None and request.levels:
        return model.predictor.forecast_scenarios(
            scenario_series, request.horizon, levels=request.levels, adaptive_state=model.adaptive_state
        )
    return model.predictor.forecast_scenarios(scenario_series, request.horizon, levels=request.levels)


def _sample_scenarios(
    scenario_series: Sequence[Series], request: ScenariosRequest, model: DeployedModel, deadline: Deadline
) -> list[PathsOrError]:
    def draw(some: range, until: Deadline) -> list[PathsOrError]:
        at_once, drawn = max(1, _BATCH_STEPS // (request.horizon * len(some))), []
        for first in range(0, max(1, len(scenario_series)), at_once):
            until.check()
            drawn += model.predictor.sample_scenarios(
                scenario_series[first : first + at_once],
                request.horizon,
                paths=len(some),
                seed=request.seed,
                first_path=some.start,
            )
        return drawn

    return sample_in_batches(
        draw, samples=request.samples, steps=request.horizon * max(1, len(scenario_series)), deadline=deadline
    )


def _apply_scenario(series: Series, scenario: Scenario, horizon: int, model: DeployedModel) -> Series | ForecasterError:
    """The history with a scenario's covariates behind it; an error where they are not what the model needs."""
    learned, steps = model.predictor.fitted_model, len(series)
    names = learned.spec.covariates
    unknown = [name for name in scenario.covariates if name not in names]
    if unknown:
        return CovariateUnknown(
            f"Expected covariates that the model in use reads ({', '.join(names)}); scenario {scenario.name!r} has "
            f"{unknown[0]!r}. Leave it out.",
            where=scenario.name,
        )
    try:
        told = {
            name: parse_covariate(name, values, encoding=learned.encoding, where=series.id)
            for name, values in scenario.covariates.items()
            if len(values)
        }
    except ForecasterError as error:
        return error
    further = {name: told.get(name, series.covariates[name][steps:]) for name in names if name in series.covariates}
    short = [name for name, values in further.items() if len(values) < horizon]
    if short:
        return CovariateUnknown(
            f"Expected {horizon} values ahead of each covariate; {short[0]!r} in scenario {scenario.name!r} has "
            f"{len(further[short[0]])}. Send it there, or for the steps ahead in `series`.",
            where=scenario.name,
        )
    ahead = min(map(len, further.values()), default=0)
    columns = {
        name: np.concatenate([series.covariates[name][:steps], values[:ahead]]) for name, values in further.items()
    }
    return Series(
        series.id, series.start, series.freq, series.y, columns, series.static, series.channels, series.history_summary
    )


def _result_fields(
    results: Sequence[ForecastResult | ForecasterError], request: ScenariosRequest
) -> list[dict[str, Any]]:
    """The outcomes as fields of ScenarioForecast or ScenarioError."""
    stamper, first = json_rows.TimestampFormatter(), results[0]
    told = []
    for scenario, one in zip(request.scenarios, results, strict=True):
        fields = {"name": scenario.name, **json_rows.outcome_fields(SeriesOutcome(request.series.id, one), stamper)}
        if isinstance(one, ForecastResult) and isinstance(first, ForecastResult) and one is not first:
            fields["difference"] = one.forecast.mean - first.forecast.mean
        told.append(fields)
    return told
