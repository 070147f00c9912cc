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
from serving.deployment.slot import InUse
from serving.errors import Problem
from serving.forecasting.outcomes import answered, general_warnings, in_use, read_all, with_state
from serving.forecasting.sampling import Paths, in_rounds
from serving.formats import chunked_json, json_rows, limits, parsing
from serving.formats.outcome import Answer, Outcome
from serving.formats.schema import Ask, Continued, Covariates, ErrorDetail, Id, ModelName, SeriesForecast, Strict
from serving.formats.series import ReadSeries, column_of
from serving.formats.state_token import Seal
from serving.settings import Settings

_AT_ONCE = 1 << 17  # steps that are rolled between two looks at the deadline


class Scenario(Strict):
    """One future."""

    name: Id
    covariates: Covariates = Field(
        description="of the steps ahead alone, the first value for the first step after the history: one for each step of the "
        "horizon or more. What is not named here goes on as in `series`"
    )


class ScenariosRequest(Ask):
    """One history, its futures, and what is asked of each."""

    series: Continued = Field(description="the history; its covariates may end with it")
    scenarios: list[Scenario] = Field(min_length=1, description="answered one by one, in order")

    @model_validator(mode="after")
    def _no_twins(self) -> ScenariosRequest:
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


class ScenarioError(Strict):
    """Why one scenario got no forecast."""

    name: str
    id: str = Field(description="of the series")
    error: ErrorDetail


class ScenariosAnswer(Strict):
    """One outcome for each scenario, in the order of the request."""

    model: ModelName
    scenarios: list[ScenarioForecast | ScenarioError]
    state: str | None = Field(default=None, description="of the history, where `return_state` was asked")


class Told(NamedTuple):
    """An answer as it is sent, and how many scenarios got a forecast or none."""

    body: bytes
    forecast: int
    refused: int


def answer(body: Body, model: InUse | None, settings: Settings, deadline: Deadline) -> Told:
    """Answers `POST /v1/scenarios`.

    Raises Problem for what concerns all: the history, the limits, levels or samples that the model cannot give, a model
    that reads no covariates, the deadline; and if the only scenario is refused.
    """
    deadline.check()
    asked = parsing.validated(ScenariosRequest, parsing.parse(body))
    _check(asked, settings)
    model, deadline, seal = in_use(model), deadline.within(asked.deadline_ms), Seal.of(settings)
    if not model.predictor.forecaster.spec.covariates:
        raise Problem.of(
            CovariateUnknown(
                "Expected a model that reads covariates known ahead; the one in use reads none, so all scenarios would be alike. "
                "Use /v1/forecast.",
                where="scenarios",
            )
        )
    [read] = read_all([asked.series], asked, model, deadline, seal)
    if not isinstance(read, ReadSeries):
        raise Problem.of(read)
    found = _found(read, asked, model, deadline)
    refused = [one for one in found if isinstance(one, ForecasterError)]
    if len(found) == 1 and refused:
        raise Problem.of(refused[0])
    told: dict[str, Any] = {"model": model.name, "scenarios": _fields(found, asked)}
    first = next((one for one in found if isinstance(one, Answer)), None)
    if asked.return_state and first is not None:
        going_on = with_state(first, read.series, model, seal)
        if isinstance(going_on, ForecasterError):
            raise Problem.of(going_on)
        told["state"] = going_on.state
    whole = chunked_json.dumps(told)
    return Told(whole, len(found) - len(refused), len(refused))


def _check(asked: ScenariosRequest, settings: Settings) -> None:
    if len(asked.scenarios) > settings.max_scenarios:
        raise Problem(
            "too_many_scenarios",
            f"Expected at most {settings.max_scenarios} scenarios; found {len(asked.scenarios)}. Send several requests.",
            where="scenarios",
        )
    limits.check_ask(asked, len(asked.scenarios), settings)
    limits.check_histories([asked.series], settings)
    count = sum(len(values) for one in asked.scenarios for values in one.covariates.values())
    if count > settings.max_values:
        raise Problem(
            "request_too_large",
            f"Expected at most {settings.max_values} values in all scenarios; found {count}. Send several requests.",
            where="scenarios",
        )


def _found(
    read: ReadSeries, asked: ScenariosRequest, model: InUse, deadline: Deadline
) -> list[Answer | ForecasterError]:
    """One for each scenario."""
    ways = [_way(read.series, one, asked.horizon, model) for one in asked.scenarios]
    good = [one for one in ways if isinstance(one, Series)]
    deadline.check()
    try:
        means = iter(_means(good, asked, model))
        paths = iter(_paths(good, asked, model, deadline) if asked.samples else [None] * len(good))
    except (LevelOutOfRange, BadSpec) as error:
        raise Problem.of(error) from error
    general = general_warnings(asked.horizon, scored=model.predictor.forecaster.spec.horizon)
    return [
        answered(read.style, next(means), next(paths), general, samples=asked.samples)
        if isinstance(one, Series)
        else one
        for one in ways
    ]


def _means(good: Sequence[Series], asked: ScenariosRequest, model: InUse) -> list[Forecast | ForecasterError]:
    """They are not noted in the ledger: what was never meant to come is not to be scored."""
    if model.drift is not None and asked.levels:
        return model.predictor.forecast_ways(good, asked.horizon, levels=asked.levels, drift=model.drift)
    return model.predictor.forecast_ways(good, asked.horizon, levels=asked.levels)


def _paths(good: Sequence[Series], asked: ScenariosRequest, model: InUse, deadline: Deadline) -> list[Paths]:
    def draw(some: range, until: Deadline) -> list[Paths]:
        at_once, drawn = max(1, _AT_ONCE // (asked.horizon * len(some))), []
        for first in range(0, max(1, len(good)), at_once):
            until.check()
            drawn += model.predictor.sample_ways(
                good[first : first + at_once], asked.horizon, paths=len(some), seed=asked.seed, first=some.start
            )
        return drawn

    return in_rounds(draw, samples=asked.samples, steps=asked.horizon * max(1, len(good)), deadline=deadline)


def _way(one: Series, scenario: Scenario, horizon: int, model: InUse) -> Series | ForecasterError:
    """The history with a scenario's covariates behind it; an error where they are not what the model needs."""
    learned, steps = model.predictor.forecaster, len(one)
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
            name: column_of(name, values, encoding=learned.encoding, where=one.id)
            for name, values in scenario.covariates.items()
            if len(values)
        }
    except ForecasterError as error:
        return error
    further = {name: told.get(name, one.covariates[name][steps:]) for name in names if name in one.covariates}
    short = [name for name, values in further.items() if len(values) < horizon]
    if short:
        return CovariateUnknown(
            f"Expected {horizon} values ahead of each covariate; {short[0]!r} in scenario {scenario.name!r} has "
            f"{len(further[short[0]])}. Send it there, or for the steps ahead in `series`.",
            where=scenario.name,
        )
    ahead = min(map(len, further.values()), default=0)
    columns = {name: np.concatenate([one.covariates[name][:steps], values[:ahead]]) for name, values in further.items()}
    return Series(one.id, one.start, one.freq, one.y, columns, one.static, one.channels, one.past)


def _fields(found: Sequence[Answer | ForecasterError], asked: ScenariosRequest) -> list[dict[str, Any]]:
    """The outcomes as fields of ScenarioForecast or ScenarioError."""
    stamper, first = json_rows.Stamper(), found[0]
    told = []
    for scenario, one in zip(asked.scenarios, found, strict=True):
        fields = {"name": scenario.name, **json_rows.fields(Outcome(asked.series.id, one), stamper)}
        if isinstance(one, Answer) and isinstance(first, Answer) and one is not first:
            fields["difference"] = one.forecast.mean - first.forecast.mean
        told.append(fields)
    return told
