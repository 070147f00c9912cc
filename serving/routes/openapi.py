"""The OpenAPI 3.1 document, written from the same models and tables that the server answers with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from forecaster import __version__
from serving.errors import CODES
from serving.forecasting import ndjson
from serving.formats import arrow, schema
from serving.formats.json_columns import ColumnsAnswer, ColumnsRequest
from serving.routes import accuracy, actuals, backtest, explain, invocations, scenarios

_ANYWHERE = (400, 401, 403, 404, 405, 413, 415, 500)  # the guard, and what no route expects


class Form(NamedTuple):
    """A form of a body: its media type, and one model or more; none means text or bytes, or what the description says."""

    media_type: str
    models: tuple[type[BaseModel], ...] = ()
    description: str = ""

    def content(self) -> dict[str, Any]:
        """As an entry of `content`."""
        refs = [_ref(model) for model in self.models]
        schema = {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}} if refs else {}
        if self.description:
            schema = {"schema": {"type": "string", "description": self.description}}
        return {self.media_type: schema}


class Route(NamedTuple):
    """What a route takes and gives."""

    method: str
    path: str
    summary: str
    asks: tuple[Form, ...]
    answers: tuple[Form, ...]
    fails: tuple[int, ...]
    description: str = ""
    scope: str | None = "read"  # that a key needs; None: open, whatever keys there are
    query: Mapping[str, str] = {}  # parameters that may be given, and what they mean


_JSON = "application/json"
_ONE_SERIES = (
    "One outcome for each series, in order: a forecast, or an error that concerns that series alone (too short, "
    "another frequency, irregular stamps, covariates or channels that are missing or end too early), and status 200. "
    "Exception: when the only series of a request is refused, "
    "the answer is that error with status 422. What concerns the whole request (types, unknown fields, horizon, "
    "limits, and `level_out_of_range` for levels that the model in use was not calibrated for) is always 422. "
    "Stamps come back in the offset from UTC and the style of the request, whole numbers as numbers."
)
_CARRIED = (
    " With `return_state` every forecast comes with a `state`, and a CarriedSeries goes on from it with new values alone: the "
    "forecast is that of the whole history. A state of another model is refused with `state_of_other_model`, which is the whole "
    "answer, with status 409, where it is said of every series; one that was altered, or does not fit, with `bad_state`. Where "
    "the deadline comes near, the answer has the samples that are done, and says so in `samples_used` and a warning."
)
_SCENARIOS = (
    "The history is read once and goes on each way; the noise of samples is common to all. One outcome for each scenario, as "
    "`/v1/forecast` gives it; what is wrong with the history, or with the only scenario, is the whole answer, with status 422."
)
_ASKED_LINES = (
    "One JSON value a line. The first is an Ask (horizon, levels, samples, ...), each further one "
    "a GridSeries or a StampedSeries."
)
_ANSWERED_LINES = (
    "Streamed, one JSON value a line. The first is a LinesBegin, then come a SeriesForecast or a SeriesError for each series, in "
    "order, and at last a LinesEnd. An ErrorAnswer as the last line says why the answer is not whole."
)
_ASKED_ARROW = (
    "An Arrow IPC stream without compressed and dictionary batches. A row is a series: `id`, `start` (text, timestamp or whole "
    "number), `freq`, `y` (list of numbers), and `covariates.NAME`, `static.NAME`, `channels.NAME`. An Ask as JSON stands in the "
    "metadata of the schema, under `forecast`. 415 where pyarrow is not installed."
)
_ANSWERED_ARROW = (
    "An Arrow IPC stream with a row for each series, in order: `id`, `ds`, `mean`, `quantiles.LEVEL`, `samples`, `state`, "
    "`warnings`, and `error`, `message` of one that has no forecast. A ModelName as JSON stands in the metadata of the schema, "
    "under `model`."
)
ROUTES = (
    Route(
        "post",
        "/v1/forecast",
        "Forecast some series",
        (
            Form(_JSON, (schema.ForecastRequest, ColumnsRequest)),
            Form(ndjson.MEDIA_TYPE, description=_ASKED_LINES),
            Form(arrow.MEDIA_TYPE, description=_ASKED_ARROW),
        ),
        (
            Form(_JSON, (schema.ForecastAnswer, ColumnsAnswer)),
            Form(ndjson.MEDIA_TYPE, description=_ANSWERED_LINES),
            Form(arrow.MEDIA_TYPE, description=_ANSWERED_ARROW),
        ),
        (409, 422, 429, 503, 504),
        _ONE_SERIES + _CARRIED,
    ),
    Route(
        "post",
        "/v1/scenarios",
        "Forecast one series with several futures of its covariates",
        (Form(_JSON, (scenarios.ScenariosRequest,)),),
        (Form(_JSON, (scenarios.ScenariosAnswer,)),),
        (409, 422, 429, 503, 504),
        _SCENARIOS,
    ),
    Route(
        "post",
        "/invocations",
        "Forecast as clients of SageMaker's DeepAR and of MLflow's scoring ask",
        (Form(_JSON, (invocations.DeepArRequest, invocations.ScoringRequest)),),
        (Form(_JSON, (invocations.DeepArAnswer, invocations.ScoringAnswer)),),
        (422, 429, 503, 504),
        "The first series that is refused is the answer, with status 422: these shapes have no place for an error of one.",
    ),
    Route(
        "post",
        "/v1/backtest",
        "Ask the model at rolling origins of some histories, and score it beside seasonal naive",
        (Form(_JSON, (backtest.BacktestRequest,)),),
        (Form(_JSON, (backtest.BacktestAnswer,)),),
        (422, 429, 503, 504),
        "The end of each history is what came: at every origin the model is shown what lies before it. One outcome a series, as "
        "of `/v1/forecast`. Origins that lie before the model's cutoff are not out of sample for it; the answer says so.",
    ),
    Route(
        "post",
        "/v1/explain",
        "Look into the network while it reads a history",
        (Form(_JSON, (explain.ExplainRequest,)),),
        (Form(_JSON, (explain.ExplainAnswer,)),),
        (422, 429, 503, 504),
    ),
    Route(
        "post",
        "/v1/actuals",
        "Tell what came, to be scored against the forecasts that were served",
        (Form(_JSON, (actuals.ActualsRequest,)),),
        (Form(_JSON, (actuals.ActualsAnswer,)),),
        (422, 429, 503, 504),
        "One outcome for each series, in order. A value that is told again counts once; another value for the same stamp "
        "replaces the old one. Values may come before or after the forecasts of them. 404 `ledger_off` where no ledger is kept.",
        scope="actuals",
    ),
    Route(
        "get",
        "/v1/accuracy",
        "How good the forecasts that were served have proved",
        (),
        (Form(_JSON, (accuracy.AccuracyAnswer,)),),
        (422, 429, 503, 504),
        "Over the forecasts in the ledger of which something is known. 404 `ledger_off` where no ledger is kept.",
        query=accuracy.QUERY,
    ),
    Route("get", "/ping", "As /readyz, for SageMaker", (), (Form(_JSON, (schema.ReadyAnswer,)),), (503,)),
    Route("get", "/v1/model", "The model in use", (), (Form(_JSON, (schema.ModelAnswer,)),), (503,)),
    Route("get", "/livez", "Whether the process answers", (), (Form(_JSON, (schema.LiveAnswer,)),), (), scope=None),
    Route("get", "/readyz", "Whether a model is in use", (), (Form(_JSON, (schema.ReadyAnswer,)),), (503,), scope=None),
    Route("get", "/metrics", "Counters for Prometheus", (), (Form("text/plain"),), (), scope="observe"),
    Route("get", "/docs.json", "This document", (), (Form(_JSON),), ()),
)


_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the server has any"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same in a header of its own"},
}
_HEADERS = {
    name: {"description": told, "schema": {"type": "string"}}
    for name, told in {
        "X-Request-Id": "That of the request, if it was 1 to 64 of A-Z a-z 0-9 . _ -; else a new one. It is in the log too.",
        "X-Model": "NAME/VERSION of the model that answered, or is in use, quoted as in an address. Absent without one.",
        "X-Model-Digest": "sha256 of its bundle's manifest.",
        "X-Model-Blend": "Only of a blend: the weights of the network and of the statistical models, `NAME=WEIGHT, ...`.",
        "Server-Timing": "Milliseconds: total up to the first byte, and of a forecast read, forecast, write.",
    }.items()
}


def document() -> dict[str, Any]:
    """The whole document."""
    models = {model for route in ROUTES for form in (*route.asks, *route.answers) for model in form.models}
    models |= {schema.ErrorAnswer, schema.Ask, ndjson.LinesBegin, ndjson.LinesEnd}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "forecaster",
            "version": __version__,
            "description": 'A history in, a forecast out. Every failure is {"error": {"code", "message", "where"}}.',
        },
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": _SCHEMES},
    }


def _operation(route: Route) -> dict[str, Any]:
    answers: dict[str, Any] = {
        "200": {"description": "The answer", "headers": _HEADERS, "content": _content(route.answers)}
    }
    for status in sorted({*_ANYWHERE, *route.fails}):
        answers[str(status)] = {
            "description": _failures(status),
            "headers": _HEADERS,
            "content": {_JSON: {"schema": _ref(schema.ErrorAnswer)}},
        }
    name = f"{route.method}{route.path.replace('/', '_').replace('.', '_')}"
    operation: dict[str, Any] = {"operationId": name, "summary": route.summary, "responses": answers}
    if route.scope is not None:
        operation["security"] = [{name: [route.scope]} for name in _SCHEMES] + [{}]
    if route.description:
        operation["description"] = route.description
    if route.query:
        operation["parameters"] = [
            {
                "name": name,
                "in": "query",
                "description": told,
                "schema": {"type": "string", "minLength": 1, "maxLength": 200},
            }
            for name, told in route.query.items()
        ]
    if route.asks:
        operation["requestBody"] = {"required": True, "content": _content(route.asks)}
    return operation


def _content(forms: tuple[Form, ...]) -> dict[str, Any]:
    return {name: value for form in forms for name, value in form.content().items()}


def _failures(status: int) -> str:
    told = " ".join(f"`{code}`: {when}" for code, (found, when) in CODES.items() if found == status)
    return told + (" Or the code of the refused series." if status == 422 else "")


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
