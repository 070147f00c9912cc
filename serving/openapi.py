"""The OpenAPI 3.1 document, written from the same models and tables that the server answers with."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from forecaster import __version__
from serving import schema
from serving.problem import CODES

_ANYWHERE = (400, 401, 403, 404, 405, 413, 415, 500)  # the guard, and what no route expects


class Route(NamedTuple):
    """What a route takes and gives; `answer` None means text."""

    method: str
    path: str
    summary: str
    asks: type[BaseModel] | None
    answer: type[BaseModel] | None
    media_type: str
    fails: tuple[int, ...]
    description: str = ""
    scope: str | None = "read"  # that a key needs; None: open, whatever keys there are


_JSON = "application/json"
_ONE_SERIES = (
    "One outcome for each series, in order: a forecast, or an error that concerns that series alone (too short, "
    "another frequency, irregular stamps, covariates or channels that are missing or end too early), and status 200. "
    "Exception: when the only series of a request is refused, "
    "the answer is that error with status 422. What concerns the whole request (types, unknown fields, horizon, "
    "limits, and `level_out_of_range` for levels that the model in use was not calibrated for) is always 422. "
    "Stamps come back in the offset from UTC and the style of the request, whole numbers as numbers."
)
ROUTES = (
    Route(
        "post",
        "/v1/forecast",
        "Forecast some series",
        schema.ForecastRequest,
        schema.ForecastAnswer,
        _JSON,
        (422, 429, 503, 504),
        _ONE_SERIES,
    ),
    Route("get", "/v1/model", "The model in use", None, schema.ModelAnswer, _JSON, (503,)),
    Route("get", "/livez", "Whether the process answers", None, schema.LiveAnswer, _JSON, (), scope=None),
    Route("get", "/readyz", "Whether a model is in use", None, schema.ReadyAnswer, _JSON, (503,), scope=None),
    Route("get", "/metrics", "Counters for Prometheus", None, None, "text/plain", (), scope="observe"),
    Route("get", "/docs.json", "This document", None, None, _JSON, ()),
)


_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the server has any"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same in a header of its own"},
}


def document() -> dict[str, Any]:
    """The whole document."""
    models = {model for route in ROUTES for model in (route.asks, route.answer) if model is not None} | {
        schema.ErrorAnswer
    }
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
    content = {"schema": _ref(route.answer)} if route.answer else {}
    answers: dict[str, Any] = {"200": {"description": "The answer", "content": {route.media_type: content}}}
    for status in sorted({*_ANYWHERE, *route.fails}):
        answers[str(status)] = {
            "description": _failures(status),
            "content": {_JSON: {"schema": _ref(schema.ErrorAnswer)}},
        }
    name = f"{route.method}{route.path.replace('/', '_').replace('.', '_')}"
    operation: dict[str, Any] = {"operationId": name, "summary": route.summary, "responses": answers}
    if route.scope is not None:
        operation["security"] = [{name: [route.scope]} for name in _SCHEMES] + [{}]
    if route.description:
        operation["description"] = route.description
    if route.asks is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": _ref(route.asks)}}}
    return operation


def _failures(status: int) -> str:
    told = " ".join(f"`{code}`: {when}" for code, (found, when) in CODES.items() if found == status)
    return told + (" Or the code of the refused series." if status == 422 else "")


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
