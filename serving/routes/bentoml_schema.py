"""`GET /schema.json`: the endpoints in the format of BentoML, from which `bentoml.SyncHTTPClient` builds its methods."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.routes.openapi import JSON_MEDIA_TYPE, ROUTES, BodyFormat


def build_schema(name: str = "forecaster") -> dict[str, Any]:
    """Describes every route with a JSON body, which is what BentoML calls an endpoint; its clients cannot send GET requests.

    A method has the name of the last part of its path, and the fields of the request are its arguments: `client.forecast(series=
    [...], horizon=12)`. A route that accepts several requests takes one of them as its only argument.

    Args:
        name: The name of the service.
    """
    routes = [
        {
            "name": route.path.rpartition("/")[2],
            "route": route.path,
            "doc": route.summary,
            "batchable": False,
            "input": _describe_models(request_models, is_input=True),
            "output": _describe_models(_json_models(route.response_formats), is_input=False),
        }
        for route in ROUTES
        if (request_models := _json_models(route.request_formats))
    ]
    paths = {route.path: {"mounted": True} for route in ROUTES}
    return {"name": name, "type": "service", "routes": routes, "description": "Forecasts over HTTP.", "paths": paths}


def _json_models(formats: tuple[BodyFormat, ...]) -> tuple[type[BaseModel], ...]:
    return next((each.models for each in formats if each.media_type == JSON_MEDIA_TYPE), ())


def _describe_models(models: tuple[type[BaseModel], ...], *, is_input: bool) -> dict[str, Any]:
    if len(models) == 1:
        return models[0].model_json_schema()
    references, schemas = models_json_schema([(model, "validation") for model in models])
    schema = {"anyOf": [references[model, "validation"] for model in models], **schemas}
    return {"root_input": True, **schema} if is_input else schema
