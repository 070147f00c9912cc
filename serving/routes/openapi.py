"""The OpenAPI 3.1 document, written from the same models and tables that the server answers with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from forecaster import __version__
from serving.errors import ERROR_CODES
from serving.forecasting import ndjson
from serving.formats import arrow, schema
from serving.formats.json_columns import ColumnsRequest, ColumnsResponse
from serving.routes import accuracy, actuals, backtest, explain, invocations, scenarios

_COMMON_STATUSES = (400, 401, 403, 404, 405, 413, 415, 500)  # the guard, and what no route expects


class BodyFormat(NamedTuple):
    """A form of a body: its media type, and one model or more; none means text or bytes, or what the description says."""

    media_type: str
    models: tuple[type[BaseModel], ...] = ()
    description: str = ""

    def to_openapi(self) -> dict[str, Any]:
        """As an entry of `to_openapi`."""
        refs = [_schema_reference(model) for model in self.models]
        schema = {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}} if refs else {}
        if self.description:
            schema = {"schema": {"type": "string", "description": self.description}}
        return {self.media_type: schema}


class RouteSpec(NamedTuple):
    """What a route takes and gives."""

    method: str
    path: str
    summary: str
    request_formats: tuple[BodyFormat, ...]
    response_formats: tuple[BodyFormat, ...]
    error_statuses: tuple[int, ...]
    description: str = ""
    scope: str | None = "read"  # that a key needs; None: open, whatever keys there are
    query_parameters: Mapping[str, str] = {}  # parameters that may be given, and what they mean


_JSON = "application/json"
_FORECAST_DESCRIPTION = (
    "One outcome for each series, in order: a forecast, or an error that concerns that series alone (too short, "
    "another frequency, irregular stamps, covariates or channels that are missing or end too early), and status 200. "
    "Exception: when the only series of a request is refused, "
    "the answer is that error with status 422. What concerns the whole request (types, unknown fields, horizon, "
    "limits, and `level_out_of_range` for levels that the model in use was not calibrated for) is always 422. "
    "Stamps come back in the offset from UTC and the style of the request, whole numbers as numbers."
)
_STATE_DESCRIPTION = (
    " With `return_state` every forecast comes with a `state`, and a CarriedSeries goes on from it with new values alone: the "
    "forecast is that of the whole history. A state of another model is refused with `state_of_other_model`, which is the whole "
    "answer, with status 409, where it is said of every series; one that was altered, or does not fit, with `bad_state`. Where "
    "the deadline comes near, the answer has the samples that are done, and says so in `samples_used` and a warning."
)
_SCENARIOS_DESCRIPTION = (
    "The history is read once and goes on each way; the noise of samples is common to all. One outcome for each scenario, as "
    "`/v1/forecast` gives it; what is wrong with the history, or with the only scenario, is the whole answer, with status 422."
)
_NDJSON_REQUEST_DESCRIPTION = (
    "One JSON value a line. The first is an Ask (horizon, levels, samples, ...), each further one "
    "a GridSeries or a StampedSeries."
)
_NDJSON_RESPONSE_DESCRIPTION = (
    "Streamed, one JSON value a line. The first is a LinesBegin, then come a SeriesForecast or a SeriesError for each series, in "
    "order, and at last a LinesEnd. An ErrorAnswer as the last line says why the answer is not whole."
)
_ARROW_REQUEST_DESCRIPTION = (
    "An Arrow IPC stream without compressed and dictionary batches. A row is a series: `id`, `start` (text, timestamp or whole "
    "number), `freq`, `y` (list of numbers), and `covariates.NAME`, `static.NAME`, `channels.NAME`. An Ask as JSON stands in the "
    "metadata of the schema, under `forecast`. 415 where pyarrow is not installed."
)
_ARROW_RESPONSE_DESCRIPTION = (
    "An Arrow IPC stream with a row for each series, in order: `id`, `ds`, `mean`, `quantiles.LEVEL`, `samples`, `state`, "
    "`warnings`, and `error`, `message` of one that has no forecast. A ModelName as JSON stands in the metadata of the schema, "
    "under `model`."
)
ROUTES = (
    RouteSpec(
        "post",
        "/v1/forecast",
        "Forecast some series",
        (
            BodyFormat(_JSON, (schema.ForecastRequest, ColumnsRequest)),
            BodyFormat(ndjson.MEDIA_TYPE, description=_NDJSON_REQUEST_DESCRIPTION),
            BodyFormat(arrow.MEDIA_TYPE, description=_ARROW_REQUEST_DESCRIPTION),
        ),
        (
            BodyFormat(_JSON, (schema.ForecastResponse, ColumnsResponse)),
            BodyFormat(ndjson.MEDIA_TYPE, description=_NDJSON_RESPONSE_DESCRIPTION),
            BodyFormat(arrow.MEDIA_TYPE, description=_ARROW_RESPONSE_DESCRIPTION),
        ),
        (409, 422, 429, 503, 504),
        _FORECAST_DESCRIPTION + _STATE_DESCRIPTION,
    ),
    RouteSpec(
        "post",
        "/v1/scenarios",
        "Forecast one series with several futures of its covariates",
        (BodyFormat(_JSON, (scenarios.ScenariosRequest,)),),
        (BodyFormat(_JSON, (scenarios.ScenariosResponse,)),),
        (409, 422, 429, 503, 504),
        _SCENARIOS_DESCRIPTION,
    ),
    RouteSpec(
        "post",
        "/invocations",
        "Forecast as clients of SageMaker's DeepAR and of MLflow's scoring ask",
        (BodyFormat(_JSON, (invocations.DeepArRequest, invocations.ScoringRequest)),),
        (BodyFormat(_JSON, (invocations.DeepArResponse, invocations.ScoringResponse)),),
        (422, 429, 503, 504),
        "The first series that is refused is the answer, with status 422: these shapes have no place for an error of one.",
    ),
    RouteSpec(
        "post",
        "/v1/backtest",
        "Ask the model at rolling origins of some histories, and score it beside seasonal naive",
        (BodyFormat(_JSON, (backtest.BacktestRequest,)),),
        (BodyFormat(_JSON, (backtest.BacktestResponse,)),),
        (422, 429, 503, 504),
        "The end of each history is what came: at every origin the model is shown what lies before it. One outcome a series, as "
        "of `/v1/forecast`. Origins that lie before the model's cutoff are not out of sample for it; the answer says so.",
    ),
    RouteSpec(
        "post",
        "/v1/explain",
        "Look into the network while it reads a history",
        (BodyFormat(_JSON, (explain.ExplainRequest,)),),
        (BodyFormat(_JSON, (explain.ExplainResponse,)),),
        (422, 429, 503, 504),
    ),
    RouteSpec(
        "post",
        "/v1/actuals",
        "Tell what came, to be scored against the forecasts that were served",
        (BodyFormat(_JSON, (actuals.ActualsRequest,)),),
        (BodyFormat(_JSON, (actuals.ActualsResponse,)),),
        (422, 429, 503, 504),
        "One outcome for each series, in order. A value that is told again counts once; another value for the same stamp "
        "replaces the old one. Values may come before or after the forecasts of them. 404 `ledger_off` where no ledger is kept.",
        scope="actuals",
    ),
    RouteSpec(
        "get",
        "/v1/accuracy",
        "How good the forecasts that were served have proved",
        (),
        (BodyFormat(_JSON, (accuracy.AccuracyResponse,)),),
        (422, 429, 503, 504),
        "Over the forecasts in the ledger of which something is known. 404 `ledger_off` where no ledger is kept.",
        query_parameters=accuracy.QUERY_PARAMETERS,
    ),
    RouteSpec(
        "get", "/ping", "As /readyz, for SageMaker", (), (BodyFormat(_JSON, (schema.ReadinessResponse,)),), (503,)
    ),
    RouteSpec("get", "/v1/model", "The model in use", (), (BodyFormat(_JSON, (schema.ModelResponse,)),), (503,)),
    RouteSpec(
        "get",
        "/livez",
        "Whether the process answers",
        (),
        (BodyFormat(_JSON, (schema.LivenessResponse,)),),
        (),
        scope=None,
    ),
    RouteSpec(
        "get",
        "/readyz",
        "Whether a model is in use",
        (),
        (BodyFormat(_JSON, (schema.ReadinessResponse,)),),
        (503,),
        scope=None,
    ),
    RouteSpec("get", "/metrics", "Counters for Prometheus", (), (BodyFormat("text/plain"),), (), scope="observe"),
    RouteSpec("get", "/docs.json", "This document", (), (BodyFormat(_JSON),), ()),
)


_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the server has any"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same in a header of its own"},
}
_RESPONSE_HEADERS = {
    name: {"description": told, "schema": {"type": "string"}}
    for name, told in {
        "X-Request-Id": "That of the request, if it was 1 to 64 of A-Z a-z 0-9 . _ -; else a new one. It is in the log too.",
        "X-Model": "NAME/VERSION of the model that answered, or is in use, quoted as in an address. Absent without one.",
        "X-Model-Digest": "sha256 of its bundle's manifest.",
        "X-Model-Blend": "Only of a blend: the weights of the network and of the statistical models, `NAME=WEIGHT, ...`.",
        "Server-Timing": "Milliseconds: total up to the first byte, and of a forecast read, forecast, write.",
    }.items()
}


def build_document() -> dict[str, Any]:
    """The whole document."""
    models = {
        model for route in ROUTES for form in (*route.request_formats, *route.response_formats) for model in form.models
    }
    models |= {schema.ErrorResponse, schema.ForecastOptions, ndjson.NdjsonHeader, ndjson.NdjsonTrailer}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = _build_operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "forecaster",
            "version": __version__,
            "description": 'A history in, a forecast out. Every failure is {"error": {"code", "message", "where"}}.',
        },
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": _SECURITY_SCHEMES},
    }


def _build_operation(route: RouteSpec) -> dict[str, Any]:
    answers: dict[str, Any] = {
        "200": {
            "description": "The answer",
            "headers": _RESPONSE_HEADERS,
            "content": _build_content(route.response_formats),
        }
    }
    for status in sorted({*_COMMON_STATUSES, *route.error_statuses}):
        answers[str(status)] = {
            "description": _describe_errors(status),
            "headers": _RESPONSE_HEADERS,
            "content": {_JSON: {"schema": _schema_reference(schema.ErrorResponse)}},
        }
    name = f"{route.method}{route.path.replace('/', '_').replace('.', '_')}"
    operation: dict[str, Any] = {"operationId": name, "summary": route.summary, "responses": answers}
    if route.scope is not None:
        operation["security"] = [{name: [route.scope]} for name in _SECURITY_SCHEMES] + [{}]
    if route.description:
        operation["description"] = route.description
    if route.query_parameters:
        operation["parameters"] = [
            {
                "name": name,
                "in": "query",
                "description": told,
                "schema": {"type": "string", "minLength": 1, "maxLength": 200},
            }
            for name, told in route.query_parameters.items()
        ]
    if route.request_formats:
        operation["requestBody"] = {"required": True, "content": _build_content(route.request_formats)}
    return operation


def _build_content(formats: tuple[BodyFormat, ...]) -> dict[str, Any]:
    return {name: value for form in formats for name, value in form.to_openapi().items()}


def _describe_errors(status: int) -> str:
    told = " ".join(f"`{code}`: {when}" for code, (found, when) in ERROR_CODES.items() if found == status)
    return told + (" Or the code of the refused series." if status == 422 else "")


def _schema_reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
