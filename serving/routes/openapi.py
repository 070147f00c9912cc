"""The OpenAPI 3.1 document, generated from the models and tables that the routes themselves use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from forecaster import __version__
from serving.errors import ERROR_CODES
from serving.forecasting import ndjson
from serving.formats import arrow, schema
from serving.routes import accuracy, actuals, backtest, explain, invocations, scenarios
from serving.routes.examples import NDJSON_REQUEST_EXAMPLE, REQUEST_EXAMPLES, RESPONSE_EXAMPLES
from serving.routes.model import ModelResponse

_COMMON_STATUSES = (400, 401, 403, 404, 405, 413, 415, 421, 431, 500)  # of the middleware, and of unexpected errors


class BodyFormat(NamedTuple):
    """One format of a body: its media type, and its models; without models it is text or bytes, as the description says."""

    media_type: str
    models: tuple[type[BaseModel], ...] = ()
    description: str = ""

    def to_openapi(self) -> dict[str, Any]:
        """Returns the format as an entry of `content`."""
        references = [_schema_reference(model) for model in self.models]
        media_type_object: dict[str, Any] = {}
        if references:
            media_type_object = {"schema": references[0] if len(references) == 1 else {"anyOf": references}}
        if self.description:
            media_type_object = {"schema": {"type": "string", "description": self.description}}
        return {self.media_type: media_type_object}


class RouteSpec(NamedTuple):
    """The description of a route, from which its entry in the document is generated."""

    method: str
    path: str
    summary: str
    request_formats: tuple[BodyFormat, ...]
    response_formats: tuple[BodyFormat, ...]
    error_statuses: tuple[int, ...]
    description: str = ""
    scope: str | None = "read"  # scope that an API key needs; None: the route needs no key
    query_parameters: Mapping[str, str] = {}  # descriptions of the optional parameters, by name
    tag: str = "Forecasts"  # the group of the route in the interactive documentation


JSON_MEDIA_TYPE = "application/json"
_FORECAST_DESCRIPTION = (
    "Returns one outcome for each series, in order, with status 200: a forecast, or an error that concerns that series only (too "
    "short, another frequency, irregular timestamps, covariates or channels that are missing or end too early). "
    "Exception: if the only series of a request is rejected, the response is its error with status 422. "
    "Errors of the whole request (types, unknown fields, horizon, limits, and `level_out_of_range` for levels that the model in "
    "use was not calibrated for) always have status 422. "
    "Timestamps have the offset from UTC and the style of the request; integers remain integers."
)
_STATE_DESCRIPTION = (
    " With `return_state` every forecast has a `state`. A ContinuedSeries contains that state and only the new values; its "
    "forecast equals that of the whole history. A state of another model is rejected with `state_of_other_model`; if that "
    "applies to every series, it is the whole response, with status 409. A state that was altered or does not fit is rejected "
    "with `bad_state`. If the deadline leaves time for a part of the samples only, the response contains those, with "
    "`samples_used` and a warning."
)
_SCENARIOS_DESCRIPTION = (
    "The history is read once and forecast with each scenario; all scenarios share the noise of the samples. Returns one outcome "
    "for each scenario, as `/v1/forecast` does for series; an error of the history, or of the only scenario, is the whole "
    "response, with status 422."
)
_NDJSON_REQUEST_DESCRIPTION = (
    "One JSON value per line. The first is a ForecastOptions (horizon, levels, samples, ...), each further line is "
    "a GridSeries, a TimestampedSeries or a ContinuedSeries."
)
_NDJSON_RESPONSE_DESCRIPTION = (
    "Streamed, one JSON value per line: an NdjsonHeader, then a SeriesForecast or a SeriesError for each series, in order, and "
    "an NdjsonTrailer. If the response is incomplete, the last line is an ErrorResponse with the reason."
)
_ARROW_REQUEST_DESCRIPTION = (
    "An Arrow IPC stream without compressed and dictionary batches. Each row is a series: `id`, `start` (text, timestamp or "
    "integer), `freq`, `y` (list of numbers), and optionally `season` (integer), `covariates.NAME`, `static.NAME` and "
    "`channels.NAME`. The schema metadata has a ForecastOptions as JSON under the key `forecast`. Status 415 if pyarrow is not "
    "installed on the server."
)
_ARROW_RESPONSE_DESCRIPTION = (
    "An Arrow IPC stream with a row for each series, in order: `id`, `ds`, `mean`, `quantiles.LEVEL`, `samples`, `state`, "
    "`warnings`, and for a series without a forecast `error` and `message`. The schema metadata has a ModelInfo as JSON under "
    "the key `model`."
)
ROUTES = (
    RouteSpec(
        "post",
        "/v1/forecast",
        "Forecast one or more series",
        (
            BodyFormat(JSON_MEDIA_TYPE, (schema.ForecastRequest,)),
            BodyFormat(ndjson.MEDIA_TYPE, description=_NDJSON_REQUEST_DESCRIPTION),
            BodyFormat(arrow.MEDIA_TYPE, description=_ARROW_REQUEST_DESCRIPTION),
        ),
        (
            BodyFormat(JSON_MEDIA_TYPE, (schema.ForecastResponse,)),
            BodyFormat(ndjson.MEDIA_TYPE, description=_NDJSON_RESPONSE_DESCRIPTION),
            BodyFormat(arrow.MEDIA_TYPE, description=_ARROW_RESPONSE_DESCRIPTION),
        ),
        (409, 422, 429, 501, 503, 504),
        _FORECAST_DESCRIPTION + _STATE_DESCRIPTION,
    ),
    RouteSpec(
        "post",
        "/v1/scenarios",
        "Forecast one series under several futures of its covariates",
        (BodyFormat(JSON_MEDIA_TYPE, (scenarios.ScenariosRequest,)),),
        (BodyFormat(JSON_MEDIA_TYPE, (scenarios.ScenariosResponse,)),),
        (409, 422, 429, 501, 503, 504),
        _SCENARIOS_DESCRIPTION,
    ),
    RouteSpec(
        "post",
        "/invocations",
        "Forecast with the request formats of SageMaker's DeepAR and MLflow's scoring server",
        (BodyFormat(JSON_MEDIA_TYPE, (invocations.DeepArRequest, invocations.ScoringRequest)),),
        (BodyFormat(JSON_MEDIA_TYPE, (invocations.DeepArResponse, invocations.ScoringResponse)),),
        (422, 429, 501, 503, 504),
        "If a series is rejected, the response is the error of the first one, with status 422, because these formats have no "
        "errors of single series.",
    ),
    RouteSpec(
        "post",
        "/v1/backtest",
        "Score the model and seasonal naive at rolling origins of the given histories",
        (BodyFormat(JSON_MEDIA_TYPE, (backtest.BacktestRequest,)),),
        (BodyFormat(JSON_MEDIA_TYPE, (backtest.BacktestResponse,)),),
        (422, 429, 503, 504),
        "At every origin the model forecasts from the history before it, and the values after it are the actuals. Returns one "
        "outcome for each series, as `/v1/forecast` does. Origins before the model's cutoff are not out of sample; the response "
        "then has a warning.",
    ),
    RouteSpec(
        "post",
        "/v1/explain",
        "Explain a forecast: memory, gates and attributions of the network",
        (BodyFormat(JSON_MEDIA_TYPE, (explain.ExplainRequest,)),),
        (BodyFormat(JSON_MEDIA_TYPE, (explain.ExplainResponse,)),),
        (422, 429, 501, 503, 504),
    ),
    RouteSpec(
        "post",
        "/v1/actuals",
        "Record actuals and score the served forecasts against them",
        (BodyFormat(JSON_MEDIA_TYPE, (actuals.ActualsRequest,)),),
        (BodyFormat(JSON_MEDIA_TYPE, (actuals.ActualsResponse,)),),
        (422, 429, 503, 504),
        "Returns one outcome for each series, in order. A repeated value counts once; a different value for the same timestamp "
        "replaces the earlier one. Values may arrive before or after their forecasts. 404 `ledger_off` if the service has no "
        "ledger.",
        scope="actuals",
        tag="Accuracy",
    ),
    RouteSpec(
        "get",
        "/v1/accuracy",
        "Accuracy of the served forecasts",
        (),
        (BodyFormat(JSON_MEDIA_TYPE, (accuracy.AccuracyResponse,)),),
        (422, 429, 503, 504),
        "Covers the forecasts in the ledger with at least one actual. 404 `ledger_off` if the service has no ledger.",
        query_parameters=accuracy.QUERY_PARAMETERS,
        tag="Accuracy",
    ),
    RouteSpec(
        "get",
        "/ping",
        "Readiness for SageMaker, as /readyz",
        (),
        (BodyFormat(JSON_MEDIA_TYPE, (schema.ReadinessResponse,)),),
        (503,),
        tag="Operation",
    ),
    RouteSpec(
        "get",
        "/v1/model",
        "The model in use",
        (),
        (BodyFormat(JSON_MEDIA_TYPE, (ModelResponse,)),),
        (503,),
        tag="Operation",
    ),
    RouteSpec(
        "get",
        "/livez",
        "Liveness: the process responds",
        (),
        (BodyFormat(JSON_MEDIA_TYPE, (schema.LivenessResponse,)),),
        (),
        scope=None,
        tag="Operation",
    ),
    RouteSpec(
        "get",
        "/readyz",
        "Readiness: a model is in use",
        (),
        (BodyFormat(JSON_MEDIA_TYPE, (schema.ReadinessResponse,)),),
        (503,),
        scope=None,
        tag="Operation",
    ),
    RouteSpec(
        "get",
        "/metrics",
        "Metrics for Prometheus",
        (),
        (BodyFormat("text/plain"),),
        (),
        scope="observe",
        tag="Operation",
    ),
    RouteSpec("get", "/docs.json", "This document", (), (BodyFormat(JSON_MEDIA_TYPE),), (), tag="Descriptions"),
    RouteSpec(
        "get",
        "/openapi.json",
        "This document, as /docs.json",
        (),
        (BodyFormat(JSON_MEDIA_TYPE),),
        (),
        tag="Descriptions",
    ),
    RouteSpec(
        "get",
        "/schema.json",
        "The endpoints in the format of BentoML, for its clients",
        (),
        (BodyFormat(JSON_MEDIA_TYPE),),
        (),
        tag="Descriptions",
    ),
)


_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "API key; required if the service has keys"},
    "header": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "API key, as an alternative header",
    },
}
_RESPONSE_HEADERS = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in {
        "X-Request-Id": "Id of the request, also logged: that of the client if it has 1 to 64 characters of A-Z a-z 0-9 . _ -, "
        "else a new one.",
        "X-Model": "NAME/VERSION of the model that made the response, or is in use, percent-encoded. Absent without a model.",
        "X-Model-Digest": "sha256 of the manifest of the model's bundle.",
        "X-Model-Blend": "Present only for a blend: weights of the network and the statistical models, `NAME=WEIGHT, ...`.",
        "Server-Timing": "Milliseconds: `total` up to the first byte; for a forecast also `read`, `forecast` and `write`.",
    }.items()
}


def build_document(root_path: str = "") -> dict[str, Any]:
    """Returns the complete document; with a root path, it is the server's URL."""
    models = {
        model
        for route in ROUTES
        for body_format in (*route.request_formats, *route.response_formats)
        for model in body_format.models
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
            "description": "Time-series forecasts from the histories in a request. "
            'Every error response is {"error": {"code", "message", "where"}}.',
        },
        **({"servers": [{"url": root_path}]} if root_path else {}),
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": _SECURITY_SCHEMES},
    }


def _build_operation(route: RouteSpec) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {
            "description": "Success",
            "headers": _RESPONSE_HEADERS,
            "content": _build_content(route.response_formats),
        }
    }
    responses["200"]["content"][route.response_formats[0].media_type]["example"] = RESPONSE_EXAMPLES[route.path]
    for status in sorted({*_COMMON_STATUSES, *route.error_statuses}):
        responses[str(status)] = {
            "description": _describe_errors(status),
            "headers": _RESPONSE_HEADERS,
            "content": {
                JSON_MEDIA_TYPE: {"schema": _schema_reference(schema.ErrorResponse), "example": _error_example(status)}
            },
        }
    name = f"{route.method}{route.path.replace('/', '_').replace('.', '_')}"
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": route.summary,
        "tags": [route.tag],
        "responses": responses,
    }
    if route.scope is not None:
        operation["security"] = [{scheme: [route.scope]} for scheme in _SECURITY_SCHEMES] + [{}]
    if route.description:
        operation["description"] = route.description
    if route.query_parameters:
        operation["parameters"] = [
            {
                "name": parameter,
                "in": "query",
                "description": description,
                "schema": {"type": "string", "minLength": 1, "maxLength": 200},
            }
            for parameter, description in route.query_parameters.items()
        ]
    if route.request_formats:
        content = _build_content(route.request_formats)
        content[JSON_MEDIA_TYPE]["examples"] = {
            title: {"value": value} for title, value in REQUEST_EXAMPLES[route.path].items()
        }
        if ndjson.MEDIA_TYPE in content:
            content[ndjson.MEDIA_TYPE]["example"] = NDJSON_REQUEST_EXAMPLE
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _build_content(formats: tuple[BodyFormat, ...]) -> dict[str, Any]:
    return {name: value for body_format in formats for name, value in body_format.to_openapi().items()}


def _describe_errors(status: int) -> str:
    description = " ".join(
        f"`{code}`: {meaning}" for code, (code_status, meaning) in ERROR_CODES.items() if code_status == status
    )
    return description + (" Or the error code of the rejected series." if status == 422 else "")


def _error_example(status: int) -> dict[str, Any]:
    code, meaning = next(
        (code, meaning) for code, (code_status, meaning) in ERROR_CODES.items() if code_status == status
    )
    return {"error": {"code": code, "message": meaning, "where": None}}


def _schema_reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
