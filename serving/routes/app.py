"""The ASGI application of one worker: the routes in Starlette, wrapped in the request middleware."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from serving.asgi import assets, auth
from serving.asgi.metrics import Metrics
from serving.asgi.middleware import RequestMiddleware
from serving.asgi.proxies import ProxyMiddleware
from serving.deployment.pretrained import PretrainedSlot
from serving.deployment.slot import LoadPredictor, Slot, load_bundle
from serving.errors import ApiError
from serving.routes import backtest, explain, invocations, openapi, scenarios
from serving.routes.endpoints import Endpoints, json_response, model_headers
from serving.settings import Settings


class Application(NamedTuple):
    """An application and its parts."""

    app: ASGIApp  # the ASGI application to serve
    routes: Starlette  # inside the middleware; its lifespan starts and stops the slot
    slot: Slot
    shadow_slot: Slot | None  # slot of the shadow model
    metrics: Metrics


def build_application(
    settings: Settings, *, slot: Slot | None = None, load: LoadPredictor = load_bundle
) -> Application:
    """Builds the application of one worker.

    Raises BadKeys if it would accept requests without a key, unless the settings allow that.
    """
    keyring = auth.build_keyring(settings)
    settings = settings.with_state_key()
    page_assets = [
        *assets.load_assets(root_path=settings.root_path),
        *assets.load_docs_assets(root_path=settings.root_path),
    ]
    page_handlers = {**{asset.path: asset.serve for asset in page_assets}, **assets.swagger_routes()}
    metrics = Metrics([*(route.path for route in openapi.ROUTES), assets.METRICS_LABEL, assets.DOCS_METRICS_LABEL])
    slot_class = PretrainedSlot if settings.pretrained else Slot
    slot = slot or slot_class(
        settings.slot,
        load=load,
        reload_s=settings.reload_s,
        retry_s=settings.retry_s,
        on_model_change=metrics.count_model_change,
        measure_rollout=metrics.observe_rollout,
    )
    endpoints = Endpoints(settings, slot, metrics)
    handlers: dict[tuple[str, str], Callable[[Request], Awaitable[Response]]] = {
        ("post", "/v1/forecast"): endpoints.forecast,
        ("post", "/v1/scenarios"): partial(endpoints.compute, scenarios.SCENARIOS),
        ("post", "/invocations"): partial(endpoints.compute, invocations.INVOCATIONS),
        ("post", "/v1/backtest"): partial(endpoints.compute, backtest.BACKTEST),
        ("post", "/v1/explain"): partial(endpoints.compute, explain.EXPLAIN),
        ("post", "/v1/actuals"): endpoints.actuals,
        ("get", "/v1/accuracy"): endpoints.accuracy,
        ("get", "/ping"): endpoints.readyz,
        ("get", "/v1/model"): endpoints.model,
        ("get", "/livez"): endpoints.livez,
        ("get", "/readyz"): endpoints.readyz,
        ("get", "/metrics"): endpoints.metrics,
        ("get", "/docs.json"): endpoints.docs,
        ("get", "/openapi.json"): endpoints.docs,
        ("get", "/schema.json"): endpoints.bentoml_schema,
    }
    routes = Starlette(
        routes=[
            *(
                Route(route.path, handlers[route.method, route.path], methods=[route.method.upper()])
                for route in openapi.ROUTES
            ),
            *(Route(path, handler, methods=["GET"]) for path, handler in page_handlers.items()),
        ],
        # Every error has a handler, so that Starlette never writes its own; unexpected ones also propagate to the middleware.
        exception_handlers={
            HTTPException: _http_error_response,
            ApiError: _error_response,
            Exception: _internal_error_response,
        },
        lifespan=endpoints.lifespan,
    )
    routes.router.redirect_slashes = False
    scopes = {route.path: route.scope for route in openapi.ROUTES if route.scope is not None}
    open_paths = {route.path for route in openapi.ROUTES} - set(scopes) | set(page_handlers)

    def authorize(path: str, headers: Mapping[bytes, bytes]) -> str | None:
        return None if keyring is None or path in open_paths else keyring.authorize(scopes.get(path), headers)

    middleware = RequestMiddleware(
        routes,
        max_body_bytes=settings.max_body,
        observe=lambda path, status, seconds: metrics.count_request(assets.metrics_label(path), status, seconds),
        authorize=authorize,
        media_types={
            route.path: [body_format.media_type for body_format in route.request_formats]
            for route in openapi.ROUTES
            if route.request_formats
        },
        model_headers=lambda: model_headers(slot.current),
        allowed_hosts=auth.find_allowed_hosts(settings),
    )
    app: ASGIApp = middleware
    if settings.root_path or settings.proxies:
        own_paths = frozenset({*(route.path for route in openapi.ROUTES), *page_handlers})
        networks = settings.proxy_networks
        app = ProxyMiddleware(middleware, root_path=settings.root_path, proxies=networks, own_paths=own_paths)
    return Application(app, routes, slot, endpoints.shadow_slot, metrics)


async def _error_response(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "Starlette calls this handler for ApiError only"
    return json_response(error.to_json(), status=error.status, headers=error.headers)


async def _http_error_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "Starlette calls this handler for HTTPException only"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        api_error = ApiError(
            "method_not_allowed",
            f"Expected one of the methods {allowed} on this path; found {request.method}. Use another method.",
            headers={"allow": allowed},
        )
    elif error.status_code == 404:
        api_error = ApiError(
            "not_found", "Expected a path of this service; found an unknown one. /docs.json lists all paths."
        )
    else:
        api_error = ApiError("invalid_request", error.detail, status=error.status_code)
    return await _error_response(request, api_error)


async def _internal_error_response(request: Request, _: Exception) -> Response:
    return await _error_response(
        request, ApiError("internal_error", "The service failed. Its log has the details under the request id.")
    )
